"""A small finished and evaluated study, made through the command line."""

from pathlib import Path

from tests.support.runs import Folder

SLOTS = 5
EVALUATED = "evaluated.json"  # what its `evaluate --json` said


def make_small_study(path: Path) -> Folder:
    """Prepared, run and evaluated in path: under a minute on two cores."""
    folder = Folder(path, 30, "name=small", "train.max_epochs=2", f"study.n_trials={SLOTS}")
    done = folder.run("run")  # prepares too
    assert done.returncode == 0, done.stderr
    done = folder.call("evaluate", "--json")
    assert done.returncode == 0, done.stderr
    (path / EVALUATED).write_text(done.stdout)
    return folder
