"""The budget as slots: created once, claimed by one worker at a time, finished exactly once."""

import itertools
import logging
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from deepfake.config import UserError
from study.config import StudyConfig, redact
from study.pruner import PeerMedianPruner
from study.records import SlotRecord, record_of
from study.space import sampler
from study.storage import exclusive, open_storage

log = logging.getLogger(__name__)


class StudyMismatch(UserError):
    """This worker's data or settings are not those the study was created with."""


class NoStudy(UserError):
    """There is no such study in the database yet."""


class SlotLost(Exception):
    """The slot was given to another worker, or finished by one: write nothing more for it."""


@dataclass(frozen=True)
class Slot:
    """A slot that this worker has claimed."""

    number: int
    attempt: int  # from 0; a killed, freed or failed attempt adds one
    baseline: str | None  # the name of the report's model whose parameters are fixed here
    trial: Trial

    @property
    def fixed(self) -> bool:
        return self.baseline is not None


class Slots:
    """All slots of one study, through one long-lived Optuna study."""

    def __init__(self, config: StudyConfig, storage: RDBStorage, study: optuna.Study) -> None:
        self.config = config
        self._storage = storage
        self.study = study
        self._study_id = storage.get_study_id_from_name(study.study_name)

    def records(self) -> list[SlotRecord]:
        """Every slot, by number."""
        return [record_of(trials, self._failed_for_good(trials)) for trials in self._by_slot()]

    def attributes(self) -> dict[str, Any]:
        return self.study.user_attrs

    def refuse_other(self, fingerprint: dict[str, Any]) -> None:
        """Raises StudyMismatch if the study was created with other data or settings."""
        _refuse_other(self.config.name, self.attributes()["fingerprint"], fingerprint)

    def set_attribute(self, key: str, value: Any) -> None:
        self.study.set_user_attr(key, value)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with exclusive(self.config.study.storage.get_secret_value()):
            yield

    def claim(self, worker: str) -> Slot | None:
        """The first waiting slot, now this worker's, or None if none waits."""
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        ours = [trial for trial in waiting if "slot" in trial.user_attrs]
        for trial in sorted(ours, key=lambda t: (t.user_attrs["slot"], t.number)):
            # the beat first: a worker killed right behind the claim must be missed too
            self._storage.record_heartbeat(trial._trial_id)
            if not self._set_state(trial._trial_id, TrialState.RUNNING):
                continue
            number, attempt = trial.user_attrs["slot"], trial.user_attrs["attempt"]
            # only ask() and tell() forget the history that TPE reads: without this, each worker
            # would draw at random for ever, from the trials of its first claim
            self.study._thread_local.cached_all_trials = None
            self.study.sampler = sampler(self.config.study.seed, number, attempt)
            claimed = Trial(self.study, trial._trial_id)
            claimed.set_user_attr("worker", worker)
            return Slot(number, attempt, trial.user_attrs["baseline"], claimed)
        return None

    @contextmanager
    def heartbeat(self, slot: Slot) -> Iterator[None]:
        """Keeps the lease of a claimed slot while the block runs."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(self.config.study.heartbeat_s):
                try:
                    self._storage.record_heartbeat(slot.trial._trial_id)
                except (StorageInternalError, SQLAlchemyError) as error:
                    log.warning("slot %d: heartbeat failed: %s", slot.number, error)

        thread = threading.Thread(target=beat, name=f"heartbeat-{slot.number}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def check(self, slot: Slot) -> None:
        """Raises SlotLost if the slot is another worker's by now."""
        trial = self._storage.get_trial(slot.trial._trial_id)
        if trial.state.is_finished():
            raise SlotLost(f"slot {slot.number}: attempt {slot.attempt} was given up")

    def complete(self, slot: Slot, val_loss: float) -> None:
        self._tell(slot, TrialState.COMPLETE, [val_loss])

    def prune(self, slot: Slot, reason: str) -> None:
        self._set_attr(slot, "reason", reason)
        losses = slot.trial.storage.get_trial(slot.trial._trial_id).intermediate_values
        # the last report, as Optuna's own tell has it; None if the first epoch diverged
        self._tell(slot, TrialState.PRUNED, [losses[max(losses)]] if losses else None)

    def fail(self, slot: Slot, reason: str, *, retry: bool) -> None:
        """The attempt raised; with retry the slot has max_attempts of them before it is failed."""
        self._set_attr(slot, "reason", reason)
        self._set_attr(slot, "raised", True)
        self._set_attr(slot, "final", not retry)
        self._tell(slot, TrialState.FAIL)
        self.repair()

    def free(self, slot: Slot) -> None:
        """Give the slot back unfinished: another worker may have it at once."""
        self._set_attr(slot, "reason", "stopped by a signal")
        self._tell(slot, TrialState.FAIL)
        self.repair()

    def repair(self) -> None:
        """Give every slot that no trial stands for a new attempt; idempotent.

        Takes back the slots of workers whose lease ran out, by the database's clock.
        """
        with self.exclusive():
            for trial_id in self._storage._get_stale_trial_ids(self._study_id):
                self._set_state(trial_id, TrialState.FAIL)
            self._fill()

    def free_worker(self, worker: str) -> None:
        """Take back at once what a worker known to be dead has left running."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.user_attrs.get("worker") == worker:
                self._set_state(trial._trial_id, TrialState.FAIL)
        self.repair()

    def _fill(self) -> None:
        """Under exclusive(): add the trials that are missing, for new slots and new attempts."""
        by_slot = self._by_slot()
        baselines = self.config.baselines.baselines
        for number in range(len(by_slot), self.config.study.n_trials):
            baseline = baselines[number] if number < len(baselines) else None
            self._add(
                attrs={"slot": number, "attempt": 0, "baseline": baseline and baseline.name},
                params=baseline.params.model_dump() if baseline else {},
            )
        for trials in by_slot:
            last = trials[-1]
            if last.state == TrialState.FAIL and not self._failed_for_good(trials):
                attrs = {k: last.user_attrs[k] for k in ("slot", "baseline")}
                if "run_id" in last.user_attrs:
                    attrs["run_id"] = last.user_attrs["run_id"]
                fixed = last.system_attrs.get("fixed_params", {}) | last.params
                self._add(
                    attrs={**attrs, "attempt": last.user_attrs["attempt"] + 1},
                    params=fixed,
                    losses=last.intermediate_values,
                )

    def _failed_for_good(self, trials: Sequence[FrozenTrial]) -> bool:
        raised = [trial for trial in trials if trial.user_attrs.get("raised")]
        final = any(trial.user_attrs.get("final") for trial in raised)
        return final or len(raised) >= self.config.study.max_attempts

    def _add(
        self, attrs: dict[str, Any], params: dict[str, Any], losses: dict[int, float] | None = None
    ) -> None:
        waiting = create_trial(
            state=TrialState.WAITING,
            user_attrs=attrs,
            system_attrs={"fixed_params": params} if params else {},
            intermediate_values=losses or {},
        )
        self._storage.create_new_trial(self._study_id, template_trial=waiting)  # one transaction

    def _by_slot(self) -> list[list[FrozenTrial]]:
        slots: dict[int, list[FrozenTrial]] = {}
        for trial in self.study.get_trials(deepcopy=False):
            if "slot" in trial.user_attrs:  # others were added from outside: no slots of ours
                slots.setdefault(trial.user_attrs["slot"], []).append(trial)
        return [sorted(slots[n], key=lambda t: t.user_attrs["attempt"]) for n in sorted(slots)]

    def _set_attr(self, slot: Slot, key: str, value: Any) -> None:
        with _lost_if_finished(slot):
            slot.trial.set_user_attr(key, value)

    def _tell(self, slot: Slot, state: TrialState, values: list[float] | None = None) -> None:
        with _lost_if_finished(slot):
            self._storage.set_trial_state_values(slot.trial._trial_id, state, values)

    def _set_state(self, trial_id: int, state: TrialState) -> bool:
        """False if another process was first."""
        try:
            return self._storage.set_trial_state_values(trial_id, state)
        except UpdateFinishedTrialError:
            return False


def create_or_join(config: StudyConfig, fingerprint: dict[str, Any]) -> Slots:
    """The study of config, created with its slots if it is not there yet.

    Raises StudyMismatch if it was created with other data or settings, naming what differs.
    """
    storage = open_storage(config.study)
    with exclusive(config.study.storage.get_secret_value()):
        study = optuna.create_study(
            study_name=config.name,
            storage=storage,
            direction="minimize",
            pruner=PeerMedianPruner(config.study.prune_min_peers),
            load_if_exists=True,
        )
        slots = Slots(config, storage, study)
        theirs = slots.attributes().get("fingerprint")
        if theirs is None:
            slots.set_attribute("id", uuid.uuid4().hex)
            slots.set_attribute("fingerprint", fingerprint)  # last: without it, not yet created
        else:
            slots.refuse_other(fingerprint)
        existing = len(slots.records())
        if config.study.n_trials < existing:
            raise StudyMismatch(
                f"study '{config.name}' has {existing} slots already, study.n_trials says "
                f"{config.study.n_trials}: a budget can grow but not shrink"
            )
        slots._fill()
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
            f"no study '{config.name}' in {where} yet; start it with: deepfake-study run"
        )
    return Slots(config, storage, study)


def free_name(config: StudyConfig) -> str:
    """config.name, or with the next free number behind it if there is such a study already."""
    storage = open_storage(config.study)
    taken = {study.study_name for study in storage.get_all_studies()}
    names = itertools.chain([config.name], (f"{config.name}-{n}" for n in itertools.count(2)))
    return next(name for name in names if name not in taken)


def _refuse_other(name: str, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    differing = [
        f"{key} was {_short(theirs.get(key))}, is {_short(ours.get(key))}"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key)
    ]
    if differing:
        raise StudyMismatch(
            f"study '{name}' was created with other data or settings ({'; '.join(differing)}); "
            "undo the change, or begin a new study: deepfake-study run CONFIG --new"
        )


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text  # a sha256


@contextmanager
def _lost_if_finished(slot: Slot) -> Iterator[None]:
    try:
        yield
    except UpdateFinishedTrialError as error:
        raise SlotLost(
            f"slot {slot.number}: attempt {slot.attempt} was given up; another worker has it"
        ) from error
