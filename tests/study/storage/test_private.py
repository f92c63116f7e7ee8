"""Optuna's private names that this project takes: an upgrade that moves one fails here."""

import ast
import inspect
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.storages._rdb import models, storage as optuna_rdb
from sqlalchemy.orm import configure_mappers

from study.storage.private import forget_history, trial_id

STUDY = Path(__file__).parents[3] / "study"

# what each must have; of tables: columns, and the ways that Optuna finds a row
TABLES = {
    "StudyModel": {"find_or_raise_by_id"},
    "StudyUserAttributeModel": {"study_id", "key", "value_json", "find_by_study_and_key"},
    "TrialModel": {
        "trial_id",
        "number",
        "study_id",
        "state",
        "datetime_start",
        "datetime_complete",
        "user_attributes",
        "find_or_raise_by_id",
    },
    "TrialUserAttributeModel": {"trial_id", "key", "value_json"},
    "TrialSystemAttributeModel": {"trial_id", "key", "value_json"},
    "TrialParamModel": {"param_id", "param_name", "param_value", "distribution_json"},
    "TrialValueModel": {"trial_id", "objective", "stored_repr_to_value"},
    "TrialIntermediateValueModel": {
        "trial_id",
        "step",
        "intermediate_value",
        "intermediate_value_type",
        "intermediate_value_to_stored_repr",
        "stored_repr_to_intermediate_value",
    },
    "TrialHeartbeatModel": {"trial_id", "heartbeat", "where_trial_id"},
}
PARAMETERS = {
    optuna_rdb._create_scoped_session: ["scoped_session", "ignore_integrity_error"],
    RDBStorage._get_trials: [
        "self",
        "study_id",
        "states",
        "included_trial_ids",
        "trial_id_greater_than",
    ],
    RDBStorage._set_trial_param: [
        "self",
        "trial_id",
        "param_name",
        "param_value_internal",
        "distribution",
        "previous_distribution",
    ],
    optuna.Trial.__init__: ["self", "study", "trial_id"],
}


@pytest.mark.parametrize(
    "name", [f"{table}.{name}" for table, names in TABLES.items() for name in sorted(names)]
)
def test_optunas_tables_have(name: str) -> None:
    configure_mappers()  # makes those of a table that another declares
    table, attribute = name.split(".")
    assert hasattr(getattr(models, table), attribute)


@pytest.mark.parametrize("function", PARAMETERS, ids=lambda function: function.__qualname__)
def test_optunas_functions_take(function: object) -> None:
    assert list(inspect.signature(function).parameters) == PARAMETERS[function]  # type: ignore[arg-type, index]


def test_optunas_storage_has_an_engine_and_sessions(tmp_path: Path) -> None:
    storage = RDBStorage(f"sqlite:///{tmp_path}/a.db")
    assert {"engine", "scoped_session"} <= vars(storage).keys()


def test_a_trial_knows_its_id_and_a_study_its_history() -> None:
    study = optuna.create_study()
    trial = study.ask()
    assert trial_id(trial) == trial_id(study.trials[0]) == 0
    assert "cached_all_trials" in vars(study._thread_local)  # as ask() left it
    forget_history(study)
    assert study._thread_local.cached_all_trials is None


def test_no_other_module_takes_a_private_name_of_optuna() -> None:
    taken = set()
    for path in STUDY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.ImportFrom(module=str(module)) if "optuna" in module:
                    names = [*module.split("."), *(alias.name for alias in node.names)]
                case ast.Attribute(attr="_trial_id" | "_study_id" | "_storage" | "_thread_local"):
                    own = isinstance(node.value, ast.Name) and node.value.id == "self"
                    names = [] if own else [node.attr]
                case _:
                    continue
            if any(name.startswith("_") for name in names):
                taken.add(path.relative_to(STUDY).as_posix())
    assert taken == {"storage/private.py"}


def test_every_table_that_is_used_is_named_here() -> None:
    used = {
        node.attr
        for path in (STUDY / "storage").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "models"
    }
    assert used == TABLES.keys()
