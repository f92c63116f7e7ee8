"""Holds the walls of the design by reading the source, and shows that each one can fall."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from deepfake.variants import VARIANTS

ROOT = Path(__file__).parents[1]

OPENS_STORAGE = {
    "RDBStorage",
    "JournalStorage",
    "JournalFileBackend",
    "JournalRedisBackend",
    "InMemoryStorage",
    "GrpcStorageProxy",
    "run_grpc_proxy_server",
    "get_storage",
    "create_engine",
}
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
IMPORTS_BY_NAME = {"import_module", "__import__", "resolve_name", "run_module"}
ANY = "?"  # what is imported where the source doesn't tell
UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
UNSAFE_YAML = {"yaml." + name for name in ("load", "load_all", "full_load", "unsafe_load")}


class Module:
    """One source file: what it imports and what it calls, by full dotted names."""

    def __init__(self, source, package="study"):
        tree = ast.parse(source)
        self.nodes = list(ast.walk(tree))
        self.imports = set()
        self.names = {}  # local name -> what it stands for
        for node in self.nodes:
            match node:
                case ast.Import():
                    for alias in node.names:
                        self.imports.add(alias.name)
                        root = alias.name.split(".")[0]
                        self.names[alias.asname or root] = alias.name if alias.asname else root
                case ast.ImportFrom():
                    module = node.module or ""
                    if node.level:  # from . and from .x are this package's; from .. is outside it
                        module = ".".join(filter(None, [package * (node.level == 1), module]))
                    for alias in node.names:
                        full = ".".join(filter(None, [module, alias.name]))
                        self.imports.add(full)
                        self.names[alias.asname or alias.name] = full
        self.calls = [
            (self.dotted(node.func), node) for node in self.nodes if isinstance(node, ast.Call)
        ]
        for name, call in self.calls:  # importlib.import_module("x") is an import as well
            if name.split(".")[-1] in IMPORTS_BY_NAME and call.args:
                first = call.args[0]
                known = isinstance(first, ast.Constant)
                self.imports.add(first.value.partition(":")[0] if known else ANY)

    def dotted(self, node):
        """The full name behind an expression, as far as imports tell: 'torch.load'."""
        match node:
            case ast.Name():
                return self.names.get(node.id, node.id)
            case ast.Attribute():
                return f"{self.dotted(node.value)}.{node.attr}"
            case _:
                return ""

    def roots(self):
        return {name.split(".")[0] for name in self.imports}


def imports_any(*packages):
    return lambda module: bool(module.roots() & set(packages))


def opens_a_storage(module):
    """Constructs or subclasses one, or has Optuna open one from a URL."""
    for name, call in module.calls:
        last = name.split(".")[-1]
        if last in OPENS_STORAGE:
            return True
        if last in ("create_study", "load_study", "delete_study", "copy_study"):
            given = [k.value for k in call.keywords if k.arg and k.arg.endswith("storage")]
            if not given or any(isinstance(v, ast.Constant | ast.JoinedStr) for v in given):
                return True
    bases = [b for n in module.nodes if isinstance(n, ast.ClassDef) for b in n.bases]
    return any(module.dotted(base).split(".")[-1] in OPENS_STORAGE for base in bases)


def opens_the_test_split(module):
    return any(name.split(".")[-1] == "Opening" for name, _ in module.calls)


def reads_the_environment(module):
    attributes = {n.attr for n in module.nodes if isinstance(n, ast.Attribute)}
    imported = {name.split(".")[-1] for name in module.imports if name.startswith("os.")}
    return bool((attributes | imported) & ENVIRONMENT)


def runs_code_from_a_file(module):
    """Unpickles, or loads YAML or weights in a way that may."""
    if module.roots() & UNPICKLERS:
        return True
    for name, call in module.calls:
        keywords = {
            k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)
        }
        loads_weights = name in ("torch.load", "torch.hub.load_state_dict_from_url")
        if (loads_weights or name.endswith(".get_state_dict")) and (
            keywords.get("weights_only") is not True
        ):
            return True
        if name in UNSAFE_YAML or name.endswith((".read_pickle", "torch.hub.load")):
            return True
        if keywords.get("allow_pickle"):
            return True
    return False


def files(package):
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return [file.relative_to(ROOT).as_posix() for file in found]


@cache
def module_in(name, package):
    return Module((ROOT / name).read_text(), package)


def offenders(check, *packages):
    return {
        name for package in packages for name in files(package) if check(module_in(name, package))
    }


# the walls


# a room imports only what stands before it here; a module that is no room's is one of its own
ORDER = (
    "deepfake.errors",
    "deepfake.files",
    "deepfake.parallel",
    "deepfake.variants",
    "deepfake.config",
    "deepfake.reproducibility",
    "deepfake.baselines",
    "deepfake.metrics",
    "deepfake.data",
    "deepfake.training",
    "deepfake.transforms",
    "deepfake.models",
    "deepfake.audit",
    "deepfake.sample",
    "deepfake.export",
    "deepfake.predict",
    "deepfake.timing",
    "study.signals",
    "study.templates",
    "study.config",
    "study.search",
    "study.storage",
    "study.slots",
    "study.tracking",
    "study.worker",
    "study.launchers",
    "study.evaluation",
    "study.report",
    "study.maintenance",
    "study.estimate",
    "study.cli",
    "study.__main__",
)
ROOMS = [name for name in ORDER if (ROOT / name.replace(".", "/")).is_dir()]


def room_of(module):
    """The room that a module is in, or the module itself: its dotted name's longest prefix."""
    return max((name for name in ORDER if f"{module}.".startswith(f"{name}.")), key=len)


def module_name(file):
    return file[: -len(".py")].removesuffix("/__init__").replace("/", ".")


@cache
def own_imports(file):
    """What a file imports of ours: (the package or module behind `from`, the name)."""
    tree = ast.parse((ROOT / file).read_text())
    return [
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS
        for alias in node.names
    ]


OURS = ("deepfake", "study")


def test_every_module_has_its_place_in_the_order():
    rooms = {room_of(module_name(file)) for package in OURS for file in files(package)[1:]}
    assert rooms == set(ORDER)


def test_no_import_goes_to_the_right():
    back = [
        f"{file} imports {source}"
        for package in OURS
        for file in files(package)[1:]
        for source, _ in own_imports(file)
        if ORDER.index(room_of(source)) > ORDER.index(room_of(module_name(file)))
    ]
    assert back == []


def test_rooms_are_entered_by_their_doors():
    """From another room, names come from the package alone: what its stub exports."""
    past_the_door = [
        f"{file} imports {name} from {source}"
        for package in OURS
        for file in files(package)[1:]
        for source, name in own_imports(file)
        if room_of(source) != room_of(module_name(file)) and source != room_of(source)
    ]
    assert past_the_door == []


def graph():
    """Which modules each imports when it is itself imported, doors followed to the module."""
    doors = {room: exports(room) for room in ROOMS}
    edges = {}
    for package in OURS:
        for file in files(package)[1:]:
            tree = ast.parse((ROOT / file).read_text())
            edges[module_name(file)] = {
                doors.get(node.module, {}).get(alias.name, node.module)
                for node in tree.body
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS
                for alias in node.names
            }
    return edges


def exports(room):
    """What a room's stub re-exports: the module of each name."""
    tree = ast.parse((ROOT / room.replace(".", "/") / "__init__.pyi").read_text())
    return {
        alias.name: f"{room}.{node.module}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_no_circle_of_imports():
    edges, done = graph(), set()
    while free := [m for m in edges if m not in done and edges[m] & edges.keys() <= done]:
        done.update(free)
    assert set(edges) - done == set()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_lists_its_modules_and_exports_what_others_use(room):
    folder = ROOT / room.replace(".", "/")
    listed = re.findall(
        r"^(\w+)  +\S", ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), re.M
    )
    there = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert set(listed) == there - {"__init__", "__pycache__", "templates"}
    assert len(listed) <= 12
    exported = exports(room)
    assert not exported.keys() & there  # of a module and a name in it the door would open either
    used = {
        name
        for top in (*OURS, "scripts")
        for file in files(top)
        for source, name in own_imports(file)
        if source == room
    }
    assert exported.keys() <= used


def test_stubs_and_templates_travel_with_their_packages():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["*"]
    for package in OURS:
        inits = (ROOT / package).rglob("__init__.py")
        packed = {path for i in inits for glob in patterns for path in i.parent.glob(glob)}
        there = [*(ROOT / package).rglob("*.pyi"), *(ROOT / package).rglob("*.j2")]
        assert set(there) <= packed


def test_deepfake_knows_nothing_of_the_search_nor_of_the_terminal():
    forbidden = imports_any("study", "optuna", "mlflow", "rich", "typer", "click", "sqlalchemy")
    assert offenders(forbidden, "deepfake") == set()


# build: a variant's network; fork_server: every variant's. VARIANTS names them
NAMED_AT_RUN_TIME = {"deepfake/models/build.py"}


def test_only_networks_are_imported_by_a_name_that_the_source_does_not_tell():
    assert offenders(imports_any(ANY), *OURS) <= NAMED_AT_RUN_TIME
    assert all(entry.network.startswith("deepfake.models.") for entry in VARIANTS.values())


# each outside system, and the room that may use it
WALLS = {
    "mlflow": (imports_any("mlflow"), "study.tracking"),
    "an Optuna storage": (opens_a_storage, "study.storage"),
    "the test split": (opens_the_test_split, "study.evaluation"),
    "typer and rich": (imports_any("typer", "click", "rich"), "study.cli"),
    "the environment": (reads_the_environment, "study.cli"),
}


@pytest.mark.parametrize("wall", WALLS)
def test_each_outside_system_has_its_one_owner(wall):
    check, owner = WALLS[wall]
    assert {room_of(module_name(file)) for file in offenders(check, *OURS)} == {owner}


def test_nothing_unpickles_or_runs_code_from_a_file():
    assert offenders(runs_code_from_a_file, "deepfake", "study") == set()


@pytest.mark.slow
def test_importing_deepfake_loads_nothing_of_the_search():
    # what the source can't show: an import behind an import
    names = [module_name(file) for file in files("deepfake")]
    code = f"""
import importlib, sys
for name in {names}:
    importlib.import_module(name)
print(sorted({{"study", "optuna", "mlflow", "typer", "sqlalchemy"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


# each wall can fall


@pytest.mark.parametrize(
    "snippet",
    [
        "import mlflow",
        "import mlflow.pytorch as anything",
        "from mlflow import MlflowClient",
        "from mlflow.entities import Metric",
        "def later():\n    import mlflow",
        "if TYPE_CHECKING:\n    from mlflow import MlflowClient",
        "import importlib\nimportlib.import_module('mlflow.tracking')",
        "__import__('mlflow')",
        "from importlib import import_module as load\nload('mlflow')",
        "import pkgutil\npkgutil.resolve_name('mlflow:MlflowClient')",
        "import runpy\nrunpy.run_module('mlflow')",
    ],
)
def test_an_import_is_seen_however_it_is_written(snippet):
    assert imports_any("mlflow")(Module(snippet))


@pytest.mark.parametrize(
    "snippet",
    [
        "import importlib\nimportlib.import_module(name)",
        "import pkgutil\npkgutil.resolve_name(VARIANTS[variant].network)",
        "__import__(f'{package}.client')",
    ],
)
def test_an_import_whose_name_is_not_told_is_seen(snippet):
    assert imports_any(ANY)(Module(snippet))


@pytest.mark.parametrize(
    "snippet",
    ["from study.config.schema import Space", "from ..study import config", "import study"],
)
def test_deepfake_importing_study_is_seen(snippet):
    assert imports_any("study")(Module(snippet, "deepfake"))


@pytest.mark.parametrize(
    "snippet",
    [
        "import mlflow_like",
        "from study.mlflow import x",
        "mlflow = 3",
        "# import mlflow",
        "'mlflow'",
    ],
)
def test_a_name_that_only_looks_like_the_package_is_no_import(snippet):
    assert not imports_any("mlflow")(Module(snippet))


def test_a_relative_import_within_a_package_stays_within_it():
    assert Module("from .config import Space\nfrom . import slots", "study").roots() == {"study"}


@pytest.mark.parametrize(
    "snippet",
    [
        "from optuna.storages import RDBStorage\nRDBStorage(url)",
        "from optuna.storages import RDBStorage as Quiet\nQuiet(url)",
        "import optuna\noptuna.storages.RDBStorage(url, heartbeat_interval=60)",
        "import sqlalchemy as sa\nsa.create_engine(url)",
        "from sqlalchemy import create_engine\ncreate_engine(url)",
        "import optuna\nJ = optuna.storages.JournalStorage(backend)",
        "from optuna.storages import RDBStorage\nclass Safe(RDBStorage): pass",
        "import optuna\noptuna.create_study(storage='sqlite:///x.db')",
        "import optuna\noptuna.load_study(study_name=n, storage=f'sqlite:///{path}')",
        "import optuna\noptuna.create_study()",  # in memory
    ],
)
def test_opening_an_optuna_storage_is_seen(snippet):
    assert opens_a_storage(Module(snippet))


@pytest.mark.parametrize(
    "snippet",
    [
        "from optuna.storages import RDBStorage\ndef join(storage: RDBStorage) -> None: ...",
        "import optuna\noptuna.load_study(study_name=n, storage=storage)",
        "from study.storage.rdb import open_storage\nopen_storage(config.study)",
    ],
)
def test_using_a_storage_that_was_handed_in_is_allowed(snippet):
    assert not opens_a_storage(Module(snippet))


@pytest.mark.parametrize(
    "snippet",
    [
        "from deepfake.data.splits import Opening\nOpening(('a',), 'b')",
        "from deepfake.data.splits import Opening as Key\nfaces('test', Key((), ''))",
        "from deepfake import splits\nsplits.Opening((), '')",
        "import deepfake.splits\ndeepfake.splits.Opening((), '')",
    ],
)
def test_making_an_opening_is_seen(snippet):
    assert opens_the_test_split(Module(snippet))


def test_passing_an_opening_on_is_allowed():
    snippet = (
        "from deepfake.data.splits import Opening\n"
        "def load(opening: Opening | None): read(opening)"
    )
    assert not opens_the_test_split(Module(snippet))


@pytest.mark.parametrize(
    "snippet",
    [
        "import os\nos.environ['X']",
        "import os\nos.getenv('X')",
        "import os as system\nsystem.environ.get('X')",
        "from os import environ",
        "from os import getenv as get",
        "import os\nos.putenv('X', '1')",
    ],
)
def test_reading_the_environment_is_seen(snippet):
    assert reads_the_environment(Module(snippet))


@pytest.mark.parametrize("snippet", ["import os\nos.replace(a, b)", "from os import fsync"])
def test_other_uses_of_os_are_allowed(snippet):
    assert not reads_the_environment(Module(snippet))


@pytest.mark.parametrize(
    "snippet",
    [
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch as t\nt.load(path, weights_only=flag)",
        "from torch import load\nload(path)",
        "import torch\ntorch.hub.load('owner/name', 'model')",
        "weights.get_state_dict(progress=False)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "from yaml import load as read\nread(text)",
        "import yaml\nyaml.full_load(text)",
        "import pickle",
        "from joblib import load",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import pandas as pd\npd.read_pickle(path)",
    ],
)
def test_running_code_from_a_file_is_seen(snippet):
    assert runs_code_from_a_file(Module(snippet))


@pytest.mark.parametrize(
    "snippet",
    [
        "import torch\ntorch.load(path, map_location='cpu', weights_only=True)",
        "weights.get_state_dict(progress=False, weights_only=True)",
        "import yaml\nyaml.safe_load(text)",
        "import json\njson.load(file)",
        "import numpy as np\nnp.load(path, mmap_mode='r')",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
    ],
)
def test_reading_plain_data_is_allowed(snippet):
    assert not runs_code_from_a_file(Module(snippet))
