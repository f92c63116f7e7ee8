"""How a process comes to a study: created with its slots, or joined as it is."""

import itertools
import uuid
from collections.abc import Callable
from typing import Any

import optuna

from deepfake.errors import UserError
from study.config import StudyConfig, redact, refuse_other
from study.search import PeerMedianPruner
from study.slots.slots import Slots
from study.storage import open_storage


class NoStudy(UserError):
    """There is no such study in the database yet."""


def create_or_join(
    config: StudyConfig,
    fingerprint: dict[str, Any],
    *,
    patient: bool = False,
    hurried: Callable[[], bool] = lambda: False,
) -> Slots:
    """The study of config, created with its slots if it is not there yet.

    Any number of processes may call it at once. A study beside a search is created without slots:
    add_reruns adds them. patient and hurried: see open_storage. Raises StudyMismatch, which names
    what differs, if it was created with other data or settings.
    """
    storage = open_storage(config.study, patient=patient, hurried=hurried)
    study = optuna.create_study(
        study_name=config.name,
        storage=storage,
        direction="minimize",
        pruner=PeerMedianPruner(config.study.prune_min_peers),
        load_if_exists=True,
    )
    study_id = storage.get_study_id_from_name(config.name)
    storage.set_study_attr_once(study_id, "id", uuid.uuid4().hex)
    # last: without it, not yet created
    theirs = storage.set_study_attr_once(study_id, "fingerprint", fingerprint)
    refuse_other(config.name, theirs, fingerprint)
    slots = Slots(config, storage, study)
    slots.fill()
    return slots


def join(config: StudyConfig) -> Slots:
    """The study of config as it is. Raises NoStudy if it was not created yet."""
    storage = open_storage(config.study, create=False)
    try:
        study = optuna.load_study(study_name=config.name, storage=storage)
    except KeyError:
        study = None
    if study is None or "fingerprint" not in study.user_attrs:
        where = redact(config.study.storage.get_secret_value())
        raise NoStudy(
            f"no study '{config.name}' in {where} yet; start it with: deepfake-study run CONFIG"
        )
    return Slots(config, storage, study)


def free_name(config: StudyConfig) -> str:
    """config.name, or with the next free number behind it if there is such a study already."""
    storage = open_storage(config.study)
    taken = {study.study_name for study in storage.get_all_studies()}
    names = itertools.chain([config.name], (f"{config.name}-{n}" for n in itertools.count(2)))
    return next(name for name in names if name not in taken)
