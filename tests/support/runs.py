"""Runs the real command on tiny studies, in folders of their own."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from study.cli.app import main
from study.config.load import load_config
from study.config.schema import StudyConfig
from tests.support.copies import copy_study
from tests.support.forked import Forked
from tests.support.photos import draw_set

REPOSITORY = Path(__file__).parents[2]
ENV = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONWARNINGS": "ignore"}


def without_frozen(path: Path) -> tuple[str, str]:
    """Overrides of a study whose trials all take seconds: frozen ones are over at once.

    Writes the baselines that are left to path.
    """
    baselines = yaml.safe_load((REPOSITORY / "configs/baselines.yaml").read_text())
    slow = [b for b in baselines["baselines"] if b["name"] != "mobilenet_v2_frozen"]
    (path / "slow.yaml").write_text(yaml.safe_dump(baselines | {"baselines": slow}))
    return f"baselines={path}/slow.yaml", "space.variant=[cnn, mobilenet_v2_finetuned]"


class Folder:
    """A folder to start commands in: photos of coloured noise and a study of 32 px."""

    def __init__(
        self, path: Path, n_photos: int = 24, *overrides: str, config: str = "sample"
    ) -> None:
        self.path = path
        self.config = REPOSITORY / f"configs/{config}.yaml"
        self.in_processes = False  # also what is called
        self.own_env: dict[str, str] = {}  # added to every command's environment
        path.mkdir(parents=True, exist_ok=True)
        if n_photos:
            draw_set(path / "photos", n_photos)
        self.overrides = [
            f"data.annotations=[{path}/photos/Train_poly.json]",
            f"data.photos_dir={path}/photos",
            f"data.work_dir={path}/faces",
            f"baselines={REPOSITORY}/configs/baselines.yaml",
            "train.image_size={cnn: 32, mobilenet_v2: 33}",
            *overrides,
        ]

    def copied(self, path: Path) -> "Folder":
        """Its study at another place, to be changed by commands.

        Each is a process of its own: MLflow remembers where a run's artifacts are by the run's
        id, which both studies have.
        """
        copy_study(self.path, path)
        other = Folder(path, 0)
        other.config, other.own_env = self.config, dict(self.own_env)
        other.overrides = [part.replace(str(self.path), str(path)) for part in self.overrides]
        other.in_processes = True
        return other

    def arguments(self, name: str, *options: str) -> list[str]:
        sets = [part for override in self.overrides for part in ("--set", override)]
        return [name, str(self.config), *sets, *options]

    def command(self, name: str, *options: str) -> list[str]:
        return [sys.executable, "-m", "study", *self.arguments(name, *options)]

    def run(self, name: str, *options: str) -> subprocess.CompletedProcess[str]:
        """In a process of its own, forked from one that has imported everything."""
        return self.start(name, *options).completed(500)

    def run_afresh(self, name: str, *options: str) -> subprocess.CompletedProcess[str]:
        """In an interpreter of its own, as a user's."""
        return subprocess.run(
            self.command(name, *options),
            cwd=self.path,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )

    def call(self, name: str, *options: str) -> subprocess.CompletedProcess[str]:
        """As run, but in this process, which has imported torch and mlflow already.

        Not for run and worker, which take the signals.
        """
        if self.in_processes:
            return self.run(name, *options)
        return self.typed(*self.arguments(name, *options))

    def typed(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A whole command line in this process."""
        out, err, code = io.StringIO(), io.StringIO(), 0
        # run sets variables for what it starts, and the next command here is none of that
        with pytest.MonkeyPatch.context() as patch, mock.patch.dict(os.environ):
            patch.chdir(self.path)
            for key, value in self.own_env.items():
                patch.setenv(key, value)
            patch.setattr(sys, "argv", ["deepfake-study", *arguments])
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    main()
                except SystemExit as ended:
                    code = int(ended.code or 0)
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    def start(self, name: str, *options: str) -> Forked:
        return Forked(self, None, name, *options)

    def start_afresh(self, name: str, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(name, *options),
            cwd=self.path,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def json(self, name: str, *options: str) -> Any:
        done = self.call(name, "--json", *options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def study_config(self) -> StudyConfig:
        """As its commands load it."""
        with contextlib.chdir(self.path):
            storage = self.own_env.get("DEEPFAKE_STUDY_STORAGE")
            return load_config(self.config, self.overrides, storage)

    @property
    def env(self) -> dict[str, str]:
        return {**ENV, "PYTHONPATH": str(REPOSITORY), **self.own_env}
