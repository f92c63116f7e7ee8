"""What a user can do wrong, made in a folder, and what is said of it on the real command line."""

import json
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.photos import face
from tests.support.postgres import PASSWORD
from tests.support.runs import Folder

JSON = "photos/Train_poly.json"
Make = Callable[[Folder, ExitStack], str | None]


@dataclass(frozen=True)
class Mistake:
    """What was typed, behind what was made of the folder, and parts of the line that is said."""

    typed: str  # {made}: what make gives
    said: tuple[str, ...]
    make: Make = lambda folder, stack: None
    leaves: str = (
        "nothing"  # where files may be that were not there: what the next run goes on from
    )


def file(name: str, content: str | bytes) -> Make:
    """With a file of that content."""

    def make(folder: Folder, _: ExitStack) -> None:
        data = content.encode() if isinstance(content, str) else content
        (folder.path / name).write_bytes(data)

    return make


def yaml_of(content: str | bytes) -> Make:
    """With a study's YAML of that content."""

    def make(folder: Folder, stack: ExitStack) -> None:
        file("study.yaml", content)(folder, stack)
        folder.config, folder.overrides = folder.path / "study.yaml", []

    return make


def named(path: str) -> Make:
    """With another path given as the study's YAML."""

    def make(folder: Folder, _: ExitStack) -> None:
        folder.config = folder.path / path

    return make


def annotations(change: Callable[[dict[str, Any]], object]) -> Make:
    """With the photos' JSON changed."""

    def make(folder: Folder, _: ExitStack) -> None:
        document = json.loads((folder.path / JSON).read_text())
        change(document)
        (folder.path / JSON).write_text(json.dumps(document))

    return make


def annotation_7(label: int, bbox: list[float], image: int = 0) -> Make:
    wrong = face(7, image, label, bbox)
    return annotations(lambda document: document["annotations"].__setitem__(7, wrong))


def saved(content: Any) -> Make:
    return lambda folder, _: torch.save(content, folder.path / "w.pth")


def without(*packages: str) -> Make:
    """With packages that are not installed."""

    def make(_: Folder, stack: ExitStack) -> None:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for package in packages:
            patch.setitem(sys.modules, package, None)

    return make


def disk(options: str) -> Make:
    """With a small disk at disk/."""

    def make(folder: Folder, stack: ExitStack) -> None:
        place = folder.path / "disk"
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
        if subprocess.run(mount, capture_output=True).returncode != 0:
            pytest.skip("a disk can't be mounted here")
        stack.callback(subprocess.run, ["umount", "--lazy", str(place)], check=True)

    return make


def taken_port(_: Folder, stack: ExitStack) -> str:
    server = stack.enter_context(socket.socket())
    server.bind(("127.0.0.1", 0))
    return str(server.getsockname()[1])


def contents(folder: Path) -> dict[str, str]:
    """What files hold; without those that SQLite and locks leave, and the study's database."""
    ours = (path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    passing = re.compile(r"-wal$|-shm$|\.lock$|\.db$")
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
        for path in ours
        if not passing.search(path.name)
    }


def check(mistake: Mistake, folder: Folder) -> None:
    """One line with all that it should say, and the folder as it was."""
    with ExitStack() as stack:
        made = mistake.make(folder, stack) or ""
        before = contents(folder.path)
        study = shlex.join(folder.arguments("")[1:])
        fill = {"path": str(folder.path), "made": made, "password": PASSWORD, "study": study}
        name, *options = shlex.split(mistake.typed.format(**fill))
        bare = name.endswith("!")  # takes no YAML
        call = folder.typed if bare else folder.call
        done = call(name.removesuffix("!"), *options)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        after = contents(folder.path)
        assert before.items() <= after.items()
        assert [
            name for name in after.keys() - before if not name.startswith(mistake.leaves)
        ] == []
    plain = [line for line in done.stderr.splitlines() if not re.match(r"\d{4}-\d\d-\d\d ", line)]
    (line,) = plain  # all others are the log's
    assert line.startswith("error: ")
    for part in mistake.said:
        assert part.format(**fill) in line
    assert PASSWORD not in done.stderr
