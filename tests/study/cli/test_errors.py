"""Every mistake a user can make: one line, exit code 2, nothing half-written, nothing lost.

The rows run through the real command line. Fields of the YAML: test_errors_of_settings.py;
with a study there already: test_errors_of_studies.py.
"""

import errno
import os
import pickle
import re
from pathlib import Path

import pytest
import torch

from deepfake.errors import of_machine
from tests.support.mistakes import (
    JSON,
    Mistake,
    annotation_7,
    annotations,
    check,
    disk,
    file,
    named,
    saved,
    without,
    yaml_of,
)
from tests.support.runs import REPOSITORY, Folder

SAMPLE = (REPOSITORY / "configs/sample.yaml").read_text()
BASELINES = (REPOSITORY / "configs/baselines.yaml").read_text()


SETTINGS = {
    "no file": Mistake("prepare", ("none.yaml: No such file", "such as"), named("none.yaml")),
    "a folder": Mistake("prepare", ("photos: Is a directory", "such as"), named("photos")),
    "an empty file": Mistake("prepare", ("study.yaml: must be a mapping",), yaml_of("")),
    "a list": Mistake("prepare", ("study.yaml: must be a mapping",), yaml_of("- a\n")),
    "no section": Mistake("prepare", ("study.yaml: 'data' is missing",), yaml_of("name: x\n")),
    "a tab": Mistake(
        "prepare",
        ("study.yaml: not YAML: line 10, column 1", "indent with spaces"),
        yaml_of(SAMPLE.replace("  margin", "\tmargin")),
    ),
    "a key twice": Mistake(
        "prepare",
        ("study.yaml: not YAML: line 25, column 3: 'threads' is there twice", "keep one"),
        yaml_of(SAMPLE.replace("threads: 1", "threads: 1\n  threads: 2")),
    ),
    "an open bracket": Mistake("prepare", ("not YAML: line 1, column 8",), yaml_of("name: [")),
    "no date": Mistake("prepare", ("not YAML: month must be in 1..12",), yaml_of("a: 2024-13-01")),
    "too deep": Mistake("prepare", ("not YAML: nested too deeply",), yaml_of("[" * 9999)),
    "UTF-16": Mistake(
        "prepare", ("byte 0 is not UTF-8: save it as UTF-8",), yaml_of("é".encode("utf-16"))
    ),
    "--set without =": Mistake("prepare --set train", ("--set 'train': must be key=value",)),
    "--set without a key": Mistake("prepare --set train.=3", ("must be key=value, such as",)),
    "--set of no YAML": Mistake("prepare --set name=[", ("--set name: the value is not YAML",)),
    "no baselines": Mistake(
        "prepare --set baselines=none.yaml", ("baselines: {path}/none.yaml: No such file", "such")
    ),
    "other baselines": Mistake(
        f"prepare --set baselines={JSON}", ("baselines: {path}/photos", "unknown key 'categories'")
    ),
    "a baseline misspelt": Mistake(
        "prepare --set baselines=b.yaml",
        ("b.yaml: unknown key 'baselines.0.params.dropot'", "'baselines.0.params.dropout'?"),
        file("b.yaml", BASELINES.replace("dropout", "dropot")),
    ),
    "a baseline out of range": Mistake(
        "prepare --set baselines=b.yaml",
        ("b.yaml: 'baselines.0.params.lr'", "greater than 0, not -0.001"),
        file("b.yaml", re.sub(r"lr: [\d.e-]+", "lr: -0.001", BASELINES)),
    ),
}
DATA = {
    "no JSON": Mistake(
        "prepare --set data.annotations=[a.json]", ("a.json: No such file", "check data.annotat")
    ),
    "a folder": Mistake(
        "prepare --set data.annotations=[photos]", ("photos: Is a directory", "check data.annot")
    ),
    "not JSON": Mistake("prepare", (f"{JSON}: not JSON", "check"), file(JSON, "{")),
    "a list": Mistake("prepare", (f"{JSON}: holds a list, not an object", "ch"), file(JSON, "[]")),
    "no categories": Mistake(
        "prepare",
        (f"{JSON}: missing key 'categories'", "is this an OpenForensics JSON?"),
        annotations(lambda document: document.pop("categories")),
    ),
    "no annotations": Mistake(
        "prepare",
        (f"{JSON}: missing key 'annotations'", "is this an OpenForensics JSON?"),
        annotations(lambda document: document.pop("annotations")),
    ),
    "an unknown image": Mistake(
        "prepare",
        (f"{JSON}: annotation 7: image_id 99 has no entry", "correct or remove"),
        annotation_7(0, [1, 2, 3, 4], image=99),
    ),
    "a box of three": Mistake(
        "prepare",
        (f"{JSON}: annotation 7: bbox [1, 2, 3] is not four",),
        annotation_7(0, [1, 2, 3]),
    ),
    "a box of NaN": Mistake(
        "prepare",
        (f"{JSON}: annotation 7: bbox [1, 2, 3, nan] is not four finite", "correct or remove"),
        annotation_7(0, [1, 2, 3, float("nan")]),
    ),
    "a third category": Mistake(
        "prepare",
        (f"{JSON}: annotation 7: category_id 2 is in no category", "correct or remove"),
        annotation_7(2, [1, 2, 3, 4]),
    ),
    "a photo outside": Mistake(
        "prepare",
        (f"{JSON}: annotation 0, image 0: file_name '../../passwd' points out", "without '..'"),
        annotations(lambda document: document["images"][0].update(file_name="../../passwd")),
    ),
    "a path that can not be": Mistake(
        """prepare --set 'data.work_dir="a\\0b"'""", ("'data.work_dir'", "a path has no null byte")
    ),
    "no photos' folder": Mistake(
        "prepare --set data.photos_dir=none",
        ("{path}/none: no such folder", "set data.photos_dir"),
    ),
    "no photos": Mistake(
        "prepare --set data.photos_dir=.git",
        (".git: none of 12 photos found ('Images/Train/Train_poly0.jpg' is absent)", "set data."),
        lambda folder, _: (folder.path / ".git").mkdir(),
    ),
    "a work_dir below a file": Mistake(
        f"prepare --set data.work_dir={JSON}/x",
        (f"{JSON}/x: Not a directory", "set data.work_dir"),
    ),
    "a work_dir that may not be written": Mistake(
        "prepare --set data.work_dir=disk/x", ("disk/x: Read-only file system", "set"), disk("ro")
    ),
    "no room for the stores": Mistake(
        "prepare --set data.work_dir=disk/x",
        ("disk/x: the stores need 0.2 MB", "0.1 MB are free", "make room, or set data.work_dir"),
        disk("size=64k"),
    ),
    "no room while it writes": Mistake(
        "prepare --set data.work_dir=disk/x",
        ("disk/x", "No space left on device", "set data.work_dir to another", "it continues"),
        disk("size=1m,nr_inodes=8"),
        leaves="disk/x/",
    ),
    "a sample on no disk": Mistake(
        "sample! disk/x", ("disk/x: Read-only file system", "name another folder"), disk("ro")
    ),
}
WEIGHTS = "run --set train.weights=w.pth"
PLACES = {
    "no weights": Mistake(WEIGHTS, ("'train.weights': {path}/w.pth is not a file", "give imag")),
    "weights that are none": Mistake(
        WEIGHTS, ("train.weights: {path}/w.pth can't be read", "; give a"), file("w.pth", "no")
    ),
    "weights of another model": Mistake(
        WEIGHTS, ("w.pth is no mobilenet_v2 state dict", "; give a"), saved({"a": torch.zeros(1)})
    ),
    "a list for weights": Mistake(WEIGHTS, ("w.pth holds no state dict", "; give"), saved([1])),
    "a pickle for weights": Mistake(
        WEIGHTS, ("w.pth can't be read", "; give"), file("w.pth", pickle.dumps(Path()))
    ),
    "checkpoints below a file": Mistake(
        f"run --set study.checkpoints_dir={JSON}/x",
        (f"study.checkpoints_dir: {{path}}/{JSON}/x/sample can't be written", "name another"),
    ),
    "artifacts below a file": Mistake(
        f"run --set tracking.artifacts_dir={JSON}/x",
        (f"tracking.artifacts_dir: {{path}}/{JSON}/x: Not a directory", "name a folder"),
    ),
    "tracking below a file": Mistake(
        f"run --set tracking.uri=sqlite:///{JSON}/x", ("tracking.uri: sqlite", "name another file")
    ),
    "a store of another kind": Mistake(
        "run --set tracking.uri=mysql://me:{password}@host/db",
        ("'tracking.uri': 'mysql://***@host/db' is neither sqlite:///path nor http",),
    ),
    "a database of another kind": Mistake(
        "run --set study.storage=mysql://me:{password}@host/db",
        ("study.storage: mysql://***@host/db", "neither sqlite nor postgresql+psycopg", "is sql"),
    ),
    "a database that is no URL": Mistake(
        "run --set study.storage=study.db", ("study.storage: study.db", "is sqlite:///path or")
    ),
    "a database in memory": Mistake(
        "run --set study.storage=sqlite://", ("can't be shared", "give sqlite:///path of a file")
    ),
    "a database that is none": Mistake(
        f"run --set study.storage=sqlite:///{JSON}", ("not a database", "give sqlite:///path of")
    ),
    "a database below a file": Mistake(
        f"run --set study.storage=sqlite:///{JSON}/x", ("study.storage: sqlite", "give sqlite://")
    ),
    "a database on no disk": Mistake(
        "run --set study.storage=sqlite:///disk/x", ("Read-only file", "give sqli"), disk("ro")
    ),
    "an unreachable database": Mistake(
        "run --set study.storage=postgresql+psycopg://me:{password}@127.0.0.1:1/db",
        ("study.storage: postgresql+psycopg://***@127.0.0.1:1/db", "refused", "server runs"),
    ),
    "no driver": Mistake(
        "run --set study.storage=postgresql+psycopg://me:{password}@127.0.0.1:1/db",
        ("its driver is missing", "pip install 'deepfake-study[postgres]'"),
        without("psycopg"),
    ),
    "no submitit": Mistake(
        "run --launcher slurm",
        ("--launcher slurm needs submitit", "pip install 'deepfake-study[slurm]'"),
        without("submitit"),
    ),
    "no ray": Mistake(
        "run --launcher ray", ("pip install 'deepfake-study[ray]'",), without("ray")
    ),
    "no study": Mistake("status", ("no study was started here yet", "deepfake-study run {study}")),
    "no device": Mistake("worker --device cuda:63", ("--device cuda:63: this machine has",)),
    "a device of no kind": Mistake("worker --device tpu", ("--device tpu: must be cpu, cuda or",)),
}
OPTIONS = {
    "unknown": Mistake(
        "run --wrokers 2", ("No such option: --wrokers", "--workers", "run --help")
    ),
    "unknown command": Mistake("stauts", ("No such command 'stauts'", "'status'", "--help")),
    "no argument": Mistake("run!", ("Missing argument 'config'", "run --help")),
    "no value": Mistake("run --trials", ("Option '--trials' requires an argument",)),
    "no option": Mistake("export", ("Missing option '--out'", "export --help")),
    "below range": Mistake("run --workers 0", ("'--workers'", "equal to 1, not 0", "--help")),
    "above range": Mistake("ui --port 99999", ("'--port'", "equal to 65535, not 99999", "--help")),
    "no number": Mistake("evaluate --trial x", ("'--trial'", "integer", "not x", "--help")),
    "no time": Mistake("run --timeout 5x", ("'--timeout': '5x' is no time; write 25, 25s, 2m",)),
    "no launcher": Mistake("run --launcher pbs", ("--launcher pbs: must be local, slurm or ray",)),
    "another's": Mistake("run --slurm time=5", ("--slurm is for --launcher slurm, not local",)),
    "no sampler": Mistake("run --sampler grid", ("'study.sampler'", "'tpe' or 'random'", "grid")),
    "no budget": Mistake("run --trials abc", ("--trials abc: must be a number of slots",)),
    "a split alone": Mistake("compare --split val", ("--split needs --predictions FILE",)),
    "no predictions": Mistake("compare --predictions x.csv", ("x.csv: can't be read: No such",)),
    "more kept than there can be": Mistake(
        f"gc --keep best:{'9' * 5000}", ("must be best:N", "example best:5")
    ),
    "seeds of one slot": Mistake(
        "evaluate --trial 3 --seeds 5", ("--trial checks one slot as it is; leave out --seeds",)
    ),
    "workers of no seeds": Mistake(
        "evaluate --workers 2",
        ("--workers, --workers-per-gpu: without --seeds nothing is trained; add it",),
    ),
    "a baseline for no leak": Mistake(
        "audit --baseline cnn", ("--baseline, --workers and --device go with --leak",)
    ),
    "nothing kept": Mistake("gc --keep best", ("--keep best: must be best:N", "example best:5")),
    "no slot": Mistake("export --out m --trial last", ("--trial last: must be best or the num",)),
    "no parameter": Mistake("enqueue --params cnn", ("--params 'cnn': must be key=value",)),
    "a parameter misspelt": Mistake("enqueue --params varant=cnn", ("'varant'", "'variant'?")),
    "a parameter's value": Mistake(
        "enqueue --params variant=cnn,lr=-1,weight_decay=0,dropout=0",
        ("--params: 'lr': Input should be greater than 0, not \"-1\"",),
    ),
    "a parameter outside": Mistake(
        "enqueue --params variant=cnn,lr=1,weight_decay=1e-5,dropout=0",
        ("--params: outside the space: lr 1 is not in [1e-05, 0.01]",),
    ),
}
FRESH = {"settings": SETTINGS, "data": DATA, "places": PLACES, "options": OPTIONS}
FRESH_ROWS = [
    pytest.param(mistake, id=f"{kind}: {name}")
    for kind, mistakes in FRESH.items()
    for name, mistake in mistakes.items()
]


@pytest.mark.parametrize("mistake", FRESH_ROWS)
def test_a_mistake_before_a_study_is_one_line(mistake: Mistake, tmp_path: Path) -> None:
    check(mistake, Folder(tmp_path, 12))


@pytest.mark.parametrize(
    ("number", "way_out"),
    [(errno.ENOSPC, "make room"), (errno.EROFS, "name a place"), (errno.EACCES, "allow it")],
)
def test_a_machine_that_refuses_a_file_is_one_line(number: int, way_out: str) -> None:
    line = of_machine(OSError(number, os.strerror(number), "/data/file"))
    assert line is not None
    assert line.startswith(f"/data/file: {os.strerror(number)}; {way_out}")
    assert of_machine(OSError(errno.EBADF, "Bad file descriptor")) is None  # our fault
