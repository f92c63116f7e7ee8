"""Names of other packages that they may drop without a word: which one broke, and who uses it."""

import importlib
from functools import reduce
from importlib.metadata import version

import pytest

# module -> (name in it, who uses it); Optuna's are study.storage's
PRIVATE = {
    "submitit": [("SlurmExecutor._valid_parameters", "study.launchers.slurm: keys of --slurm")],
    "ray._private.ray_constants": [
        ("ENABLE_RAY_CLUSTERS_ENV_VAR", "study.launchers.ray: a cluster of this machine alone")
    ],
    "mlflow.data.dataset": [
        ("Dataset._to_mlflow_entity", "study.tracking.tracker: what was read")
    ],
}


@pytest.mark.parametrize(
    ("module", "name", "user"),
    [(module, name, user) for module, names in PRIVATE.items() for name, user in names],
)
def test_a_private_name_that_is_used_is_there(module: str, name: str, user: str) -> None:
    package = module.partition(".")[0]
    pytest.importorskip(package)
    try:
        reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError):
        pytest.fail(f"{package} {version(package)} has no {module}.{name}; mend {user}")


def test_what_keeps_a_ray_cluster_on_one_machine_has_its_name() -> None:
    constants = pytest.importorskip("ray._private.ray_constants")
    from study.launchers.ray import ONE_MACHINE

    assert list(ONE_MACHINE) == [constants.ENABLE_RAY_CLUSTERS_ENV_VAR]
