"""What was typed, said again; how times are read."""

import shlex
import sys
from pathlib import Path

import pytest
import typer

from study.cli.options import command_line, load, pasteable, same_command, seconds, study_words
from study.slots.study import create_or_join
from tests.support.runs import Folder

SECRET = "study.storage=postgresql+psycopg://me:secret@host/db"


@pytest.mark.parametrize(
    ("typed", "again"),
    [
        ("run s.yaml --workers 2", "run s.yaml --workers 2"),
        ("run --trials +5 s.yaml", "run s.yaml"),
        ("run s.yaml --trials=40 --json", "run s.yaml --json"),
        ("run s.yaml --set a=1 --slurm time=60", "run s.yaml --set a=1 --slurm time=60"),
        (f"run s.yaml --set {SECRET} --detach", "run s.yaml --detach"),
        (f"run --set={SECRET} --set=a.b=2 s.yaml", "run --set=a.b=2 s.yaml"),
        (f"run s.yaml --set ' {SECRET}'", "run s.yaml"),
        ("evaluate s.yaml --seeds 5 --no-corruptions", "evaluate s.yaml --seeds 5 --no-corr"),
        ("run s.yaml --set 'a={b: 1}'", "run s.yaml --set 'a={b: 1}'"),
        ("run s.yaml --sampler random", "run s.yaml --sampler random"),
    ],
)
def test_the_same_command_is_what_was_typed_without_what_is_done_or_secret(
    typed: str, again: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["deepfake-study", *shlex.split(typed)])
    assert same_command().startswith(f"deepfake-study {again}")
    assert "secret" not in same_command()
    assert "--trials" not in same_command()


@pytest.mark.parametrize("typed", ["--sampler random --new", "--new --sampler=random"])
def test_a_new_study_is_continued_by_its_name(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["deepfake-study", "run", "s.yaml", *typed.split(), "--set", "name=a"]
    monkeypatch.setattr(sys, "argv", argv)
    sets = ["study.sampler=random", 'name="a-random-2"']
    assert same_command("--new", "--sampler", sets=sets) == (
        "deepfake-study run s.yaml --set name=a --set study.sampler=random "
        "--set 'name=\"a-random-2\"'"  # the last name counts
    )


def test_a_worker_gets_the_study_and_never_its_password() -> None:
    words = study_words(Path("s.yaml"), ["a=1", SECRET, " study.storage =x", "b=[1, 2]"])
    assert words == ("s.yaml", "--set", "a=1", "--set", "b=[1, 2]")
    assert command_line("run", *words) == "deepfake-study run s.yaml --set a=1 --set 'b=[1, 2]'"
    assert study_words(Path("s.yaml"), None) == ("s.yaml",)


@pytest.mark.parametrize(("text", "value"), [("25", 25), ("25s", 25), ("1.5m", 90), ("2h", 7200)])
def test_a_time_has_a_unit_or_is_in_seconds(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["5x", "", "-1", "1 h", "2hh"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no time; write 25, 25s, 2m or 2h"):
        seconds(text)


def test_a_command_is_printed_as_it_must_be_typed(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 12)
    create_or_join(folder.study_config(), {"study.seed": 0})
    done = folder.call("stop")  # into a pipe
    assert done.returncode == 0, done.stderr
    assert f"--set 'data.annotations=[{folder.path}/photos/Train_poly.json]'" in done.stdout
    assert "--set 'train.image_size={cnn: 32, mobilenet_v2: 33}'" in done.stdout


def test_a_command_of_another_room_gets_the_study_that_was_typed(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "my study", 0)
    load(folder.config, folder.overrides)
    said = pasteable("gone; deepfake-study sync CONFIG, or deepfake-study doctor CONFIG --fix")
    sync, doctor = said.removeprefix("gone; ").split(", or ")
    assert shlex.split(sync) == ["deepfake-study", *folder.arguments("sync")]
    assert shlex.split(doctor) == ["deepfake-study", *folder.arguments("doctor", "--fix")]


def test_doctor_says_commands_that_can_be_pasted(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 12)
    done = folder.call("doctor")
    prepare = shlex.join(["deepfake-study", *folder.arguments("prepare")])
    assert f"not prepared yet; mend it: {prepare}\n" in done.stdout
    finding = next(f for f in folder.json("doctor")["findings"] if f["area"] == "data")
    assert finding["remedy"] == prepare
