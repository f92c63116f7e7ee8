"""How a study is made again: its two files and the commands, for the HTML report."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml

from study.config import StudyConfig, public_yaml
from study.evaluation import Evaluated

STORAGE = "export DEEPFAKE_STUDY_STORAGE=sqlite:///mlruns/study.db"  # study.yaml names none


def reproducible(config: StudyConfig, folder: Path) -> tuple[str, str]:
    """study.yaml and baselines.yaml that give this configuration again, overrides included.

    Paths under folder become relative to it. The storage is left out: it may hold a password.
    """
    document = yaml.safe_load(public_yaml(config))
    baselines = yaml.safe_dump(document["baselines"], sort_keys=False)
    document["baselines"] = "baselines.yaml"
    text = yaml.safe_dump(document, sort_keys=False)
    return _relative(text, folder), baselines


def commands(
    config: StudyConfig,
    folder: Path,
    finalists: Sequence[Evaluated],
    *,
    sample: str | None,
    corruptions: bool,
    commit: str | None,
) -> list[str]:
    """From the photos to this page. finalists: of an evaluation, empty without one.

    commit: that the slots ran at.
    sample: how `deepfake-study sample` was asked for the photos; None if they are not its own.
    """
    found = [] if commit is None else [_checkout(commit)]
    found += ["scripts/install.sh && source .venv/bin/activate", STORAGE]
    if sample is None:
        found.append("# the JSONs and photos come first, to the places that study.yaml names")
    else:
        out_dir = _relative(str(config.data.jsons[0].parent), folder)
        found.append(f"deepfake-study sample {shlex.quote(out_dir)} {sample}")
    found.append("deepfake-study prepare study.yaml")
    found.append("deepfake-study run study.yaml")
    if finalists:
        top = len({f.slot for f in finalists if f.role == "candidate"})
        seeds = len({f.seed for f in finalists})
        options = [*([f"--top {top}"] if top > 1 else [])]
        options += [f"--seeds {seeds}"] if seeds > 1 else []
        options += [] if corruptions else ["--no-corruptions"]
        found.append(" ".join(["deepfake-study evaluate study.yaml", *options]))
    found.append("deepfake-study report study.yaml")
    return found


def _checkout(commit: str) -> str:
    clean = commit.removesuffix("-dirty")
    return f"git checkout {clean}" + ("  # its files were changed" if commit != clean else "")


def _relative(text: str, folder: Path) -> str:
    return text if folder == Path(folder.anchor) else text.replace(f"{folder}/", "")
