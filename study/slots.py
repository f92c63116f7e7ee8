"""The budget as slots: created once, claimed by one worker at a time, finished exactly once."""

import itertools
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from deepfake.config import UserError
from study.config import StudyConfig, redact
from study.database import exclusive
from study.mismatch import StudyMismatch, refuse_other
from study.outage import LONGEST_WAIT_S
from study.pruner import PeerMedianPruner
from study.records import SlotRecord, lost_in_a_row, record_of
from study.silence import Silence
from study.space import sampler
from study.storage import Storage, open_storage

_RUN_ID = "run_id:"  # a study attribute a slot: a finished trial takes no more attributes


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

    def __init__(self, config: StudyConfig, storage: Storage, study: optuna.Study) -> None:
        self.config = config
        self._storage = storage
        self.study = study
        self._study_id = storage.get_study_id_from_name(study.study_name)
        # a live worker beats within this when the database is back
        self._silence = Silence(2 * config.study.heartbeat_s + LONGEST_WAIT_S)

    def records(self) -> list[SlotRecord]:
        """Every slot, by number."""
        attributes = self.attributes()
        return [
            record_of(
                trials,
                failure=self._failure(trials),
                run_id=attributes.get(f"{_RUN_ID}{trials[-1].user_attrs['slot']}"),
            )
            for trials in self._by_slot()
        ]

    def attributes(self) -> dict[str, Any]:
        return self.study.user_attrs

    @property
    def study_id(self) -> str:
        """Of this study alone: another of the same name in another database has another."""
        return str(self.attributes()["id"])

    def refuse_other(self, fingerprint: dict[str, Any]) -> None:
        """Raises StudyMismatch if the study was created with other data or settings."""
        refuse_other(self.config.name, self.attributes()["fingerprint"], fingerprint)

    def set_attribute(self, key: str, value: Any) -> None:
        self.study.set_user_attr(key, value)

    def note_run(self, number: int, run_id: str) -> None:
        """Remember the MLflow run of a slot."""
        key = f"{_RUN_ID}{number}"
        if self.attributes().get(key) != run_id:
            self.set_attribute(key, run_id)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with exclusive(self.config.study.storage.get_secret_value()):
            yield

    @contextmanager
    def impatient(self) -> Iterator[None]:
        """In the block a database that is away is said at once: StorageAway."""
        patience = self._storage.patience
        limit_s, patience.limit_s = patience.limit_s, 0.0
        try:
            yield
        finally:
            patience.limit_s = limit_s

    def claim(self, worker: str) -> Slot | None:
        """The first waiting slot, now this worker's, or None if none waits."""
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        ours = [trial for trial in waiting if "slot" in trial.user_attrs]
        for trial in sorted(ours, key=lambda t: (t.user_attrs["slot"], t.number)):
            if not self._storage.claim(trial._trial_id, worker, uuid.uuid4().hex):
                continue
            number, attempt = trial.user_attrs["slot"], trial.user_attrs["attempt"]
            # only ask() and tell() forget the history that TPE reads: without this, each worker
            # would draw at random for ever, from the trials of its first claim
            self.study._thread_local.cached_all_trials = None
            self.study.sampler = sampler(self.config.study.seed, number, attempt)
            return Slot(
                number,
                attempt,
                trial.user_attrs["baseline"],
                Trial(self.study, trial._trial_id),
            )
        return None

    def beat(self, slot: Slot) -> None:
        """Prolong the lease of a claimed slot. Raises SlotLost if it is another's by now."""
        if not self._storage.beat(slot.trial._trial_id):
            raise _lost(slot)

    def report(self, slot: Slot, epoch: int, val_loss: float) -> None:
        """Hand an epoch's loss to the study, once."""
        if epoch not in self.losses(slot):
            with _lost_if_finished(slot):
                slot.trial.report(val_loss, epoch)

    def losses(self, slot: Slot) -> dict[int, float]:
        """What was reported for the slot so far, by epoch."""
        return self._storage.get_trial(slot.trial._trial_id).intermediate_values

    def complete(self, slot: Slot, val_loss: float) -> None:
        self._tell(slot, TrialState.COMPLETE, [val_loss])

    def prune(self, slot: Slot, reason: str) -> None:
        self._set_attr(slot, "reason", reason)
        losses = self.losses(slot)
        # the last report, as Optuna's own tell has it; None if the first epoch diverged
        self._tell(slot, TrialState.PRUNED, [losses[max(losses)]] if losses else None)

    def fail(self, slot: Slot, reason: str, *, retry: bool) -> None:
        """The attempt raised; with retry the slot has max_attempts of them before it is failed."""
        self._set_attr(slot, "reason", reason)
        self._set_attr(slot, "raised", True)
        self._set_attr(slot, "final", not retry)
        self._tell(slot, TrialState.FAIL)
        self.repair()

    def free(self, slot: Slot, reason: str = "stopped by a signal") -> None:
        """Give the slot back unfinished: another worker may have it at once."""
        self._set_attr(slot, "reason", reason)
        self._tell(slot, TrialState.FAIL)
        self.repair()

    def repair(self) -> None:
        """Give every slot that no trial stands for a new attempt; idempotent.

        Takes back the slots of workers whose lease ran out, by the database's clock.
        """
        stale = self._storage._get_stale_trial_ids(self._study_id)
        for trial_id in self._silence.confirmed(stale, self._storage.patience.outages):
            self._storage.give_up(trial_id, if_silent=True)
        self._fill()

    def free_worker(self, worker: str, reason: str | None = None) -> None:
        """Take back at once what a worker known to have ended has left running.

        reason: without it the worker died, which study.max_lost counts.
        """
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.user_attrs.get("worker") == worker:
                if reason is not None:
                    with suppress(UpdateFinishedTrialError):
                        self._storage.set_trial_user_attr(trial._trial_id, "reason", reason)
                self._storage.give_up(trial._trial_id, if_silent=False)
        self.repair()

    def _fill(self) -> None:
        """Add the trials that are missing, for new slots and new attempts; idempotent."""
        by_slot = self._by_slot()
        known = {trials[-1].user_attrs["slot"] for trials in by_slot}
        baselines = self.config.baselines.baselines
        for number in sorted(set(range(self.config.study.n_trials)) - known):
            baseline = baselines[number] if number < len(baselines) else None
            self._add(
                attrs={"slot": number, "attempt": 0, "baseline": baseline and baseline.name},
                params=baseline.params.model_dump() if baseline else {},
            )
        for trials in by_slot:
            last = trials[-1]
            if last.state == TrialState.FAIL and self._failure(trials) is None:
                attrs = {key: last.user_attrs[key] for key in ("slot", "baseline")}
                self._add(
                    attrs={**attrs, "attempt": last.user_attrs["attempt"] + 1},
                    params=last.system_attrs.get("fixed_params", {}) | last.params,
                    losses=last.intermediate_values,
                )

    def _failure(self, trials: Sequence[FrozenTrial]) -> str | None:
        """Why a slot has failed for good; None if it may be tried again, or has not failed."""
        raised = [trial for trial in trials if trial.user_attrs.get("raised")]
        final = any(trial.user_attrs.get("final") for trial in raised)
        if final or len(raised) >= self.config.study.max_attempts:
            return str(raised[-1].user_attrs["reason"])
        if lost_in_a_row(trials) >= (lost := self.config.study.max_lost):
            return f"its worker died {lost} times in a row without one more epoch"
        return None

    def _add(
        self, attrs: dict[str, Any], params: dict[str, Any], losses: dict[int, float] | None = None
    ) -> None:
        waiting = create_trial(
            state=TrialState.WAITING,
            user_attrs=attrs,
            system_attrs={"fixed_params": params} if params else {},
            intermediate_values=losses or {},
        )
        self._storage.add_slot_trial(self._study_id, waiting)

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


def create_or_join(
    config: StudyConfig,
    fingerprint: dict[str, Any],
    *,
    patient: bool = False,
    hurried: Callable[[], bool] = lambda: False,
) -> Slots:
    """The study of config, created with its slots if it is not there yet.

    Any number of processes may call it at once. patient and hurried: see open_storage. Raises
    StudyMismatch if it was created with other data or settings, naming what differs.
    """
    storage = open_storage(config.study, patient=patient, hurried=hurried)
    study = optuna.create_study(
        study_name=config.name,
        storage=storage,
        direction="minimize",
        pruner=PeerMedianPruner(config.study.prune_min_peers),
        load_if_exists=True,
    )
    slots = Slots(config, storage, study)
    storage.set_study_attr_once(slots._study_id, "id", uuid.uuid4().hex)
    # last: without it, not yet created
    theirs = storage.set_study_attr_once(slots._study_id, "fingerprint", fingerprint)
    refuse_other(config.name, theirs, fingerprint)
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


@contextmanager
def _lost_if_finished(slot: Slot) -> Iterator[None]:
    try:
        yield
    except UpdateFinishedTrialError as error:
        raise _lost(slot) from error


def _lost(slot: Slot) -> SlotLost:
    return SlotLost(
        f"slot {slot.number}: attempt {slot.attempt} was given up; another worker has it"
    )
