"""The budget as slots: created once, claimed by one worker at a time, finished exactly once."""

import functools
import itertools
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from deepfake.config import Hyperparameters, UserError
from deepfake.seeds import derive_seed
from study.config import StudyConfig, has_reruns_alone, redact
from study.database import exclusive
from study.mismatch import StudyMismatch, refuse_other
from study.outage import LONGEST_WAIT_S
from study.pruner import PeerMedianPruner
from study.records import (
    LastEpoch,
    Rerun,
    SlotRecord,
    Stage,
    lost_in_a_row,
    record_of,
    rerun_of,
)
from study.silence import Silence
from study.space import sampler
from study.storage import Storage, open_storage

_FINAL = 2**32 + 1  # no slot's number
_BUDGET = "n_trials"  # a study attribute: slots, where a user made more than the YAML says
LOOK_S = 0.5  # between two looks at silent workers
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
    rerun: Rerun | None = None  # in a final study

    @property
    def fixed(self) -> bool:
        """Its parameters were given: it is never pruned."""
        return self.baseline is not None or self.rerun is not None

    def training_seed(self, study_seed: int) -> int:
        """A finalist's differs from its slot's in the search, and from its other seeds'."""
        if self.rerun is None:
            return derive_seed(study_seed, self.number)
        return derive_seed(study_seed, _FINAL, self.rerun.slot, self.rerun.seed)


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
        return self._records(self._by_slot(), self.attributes())

    def _records(
        self, by_slot: list[list[FrozenTrial]], attributes: dict[str, Any]
    ) -> list[SlotRecord]:
        return [
            record_of(
                trials,
                self.config.study.objective,
                failure=self._failure(trials),
                run_id=attributes.get(f"{_RUN_ID}{trials[-1].user_attrs['slot']}"),
            )
            for trials in by_slot
        ]

    def attributes(self) -> dict[str, Any]:
        return self._storage.get_study_user_attrs(self._study_id)

    @functools.cached_property
    def study_id(self) -> str:
        """Of this study alone: another of the same name in another database has another."""
        return str(self.attributes()["id"])

    def refuse_other(self, fingerprint: dict[str, Any]) -> None:
        """Raises StudyMismatch if the study was created with other data or settings."""
        refuse_other(self.config.name, self.attributes()["fingerprint"], fingerprint)

    def attribute(self, key: str) -> Any:
        """One of them, cheaply; None if it is not there."""
        return self._storage.study_attr(self._study_id, key)

    def set_attribute(self, key: str, value: Any) -> None:
        self.study.set_user_attr(key, value)

    def note_run(self, number: int, run_id: str) -> None:
        """Remember the MLflow run of a slot."""
        self.set_attribute(f"{_RUN_ID}{number}", run_id)

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
        trial_id = self._storage.claim(self._study_id, worker, uuid.uuid4().hex)
        if trial_id is None:
            return None
        self.study.get_trials(deepcopy=False)  # Optuna must have seen it to take its parameters
        # only ask() and tell() forget the history that TPE reads: without this, each worker would
        # draw at random for ever, from the trials of its first claim
        self.study._thread_local.cached_all_trials = None
        attrs = self._storage.get_trial(trial_id).user_attrs
        number, attempt = attrs["slot"], attrs["attempt"]
        search = self.config.study
        self.study.sampler = sampler(search.seed, number, attempt, search.sampler)
        trial = Trial(self.study, trial_id)
        return Slot(number, attempt, attrs["baseline"], trial, rerun_of(attrs))

    def beat(self, slot: Slot) -> None:
        """Prolong the lease of a claimed slot. Raises SlotLost if it is another's by now."""
        if not self._storage.beat(slot.trial._trial_id):
            raise _lost(slot)

    def report(
        self, slot: Slot, epoch: int, val_loss: float, beside: LastEpoch | None = None
    ) -> None:
        """Hand an epoch's loss to the study, once. beside: for those who watch."""
        if epoch not in self.losses(slot):
            with _lost_if_finished(slot):
                slot.trial.report(val_loss, epoch)
            if beside is not None:
                self._set_attr(slot, "last_epoch", asdict(beside))

    def note_stage(self, slot: Slot, stage: Stage) -> None:
        """Say how far it is before the first epoch."""
        self._set_attr(slot, "stage", asdict(stage))

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

    def repair(self) -> list[SlotRecord]:
        """Give every slot that no trial stands for a new attempt; idempotent. Every slot, then.

        Takes back the slots of workers whose lease ran out, by the database's clock.
        """
        stale = self._storage._get_stale_trial_ids(self._study_id)
        for trial_id in self._silence.confirmed(stale, self._storage.patience.outages):
            self._storage.give_up(trial_id, if_silent=True)
        by_slot, attributes = self._by_slot(), self.attributes()
        # waiting trials are read anew each time, 0.1 s for 1,000: twice only if need be
        if self._fill(by_slot, attributes):
            return self.records()
        return self._records(by_slot, attributes)

    def stale(self) -> list[SlotRecord]:
        """Running slots whose lease is over, by the database's clock."""
        ids = set(self._storage._get_stale_trial_ids(self._study_id))
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        numbers = {t.user_attrs.get("slot") for t in running if t._trial_id in ids}
        return [record for record in self.records() if record.number in numbers]

    def free_stale(self) -> list[SlotRecord]:
        """Take those back whose workers stay silent while this looks on; as they were."""
        before = self.stale()
        until = time.monotonic() + self._silence.confirm_s + 2 * LOOK_S
        while self.stale() and time.monotonic() < until:
            self.repair()
            time.sleep(LOOK_S)
        now = self.records()
        return [r for r in before if now[r.number].attempt > r.attempt or now[r.number].finished]

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

    def grow(self, wanted: Callable[[int], int]) -> int:
        """Set the budget for good, from how many slots there are; how many there are then."""
        with self.exclusive():
            n_trials = wanted(len(self._by_slot()))
            self.set_attribute(_BUDGET, n_trials)
            return len(self.repair())

    def append(self, params: Hyperparameters) -> int:
        """One more slot, an ordinary one but for its parameters, which are given; its number."""
        given = _waiting({"attempt": 0, "baseline": None}, params.model_dump())
        with self.exclusive():  # against grow, which reads and writes
            self.repair()
            return self._storage.append_slot(self._study_id, given, _BUDGET, uuid.uuid4().hex)

    def _budget(self, attributes: dict[str, Any]) -> int:
        by_hand: int = attributes.get(_BUDGET, 0)
        return max(self.config.study.n_trials, by_hand)

    def _fill(self, by_slot: list[list[FrozenTrial]], attributes: dict[str, Any]) -> bool:
        """Add the trials that are missing, for new slots and new attempts; whether any was."""
        missing = []
        known = {trials[-1].user_attrs["slot"] for trials in by_slot}
        baselines = self.config.baselines.baselines
        planned = 0 if has_reruns_alone(self.config) else self._budget(attributes)
        for number in sorted(set(range(planned)) - known):
            baseline = baselines[number] if number < len(baselines) else None
            attrs = {"slot": number, "attempt": 0, "baseline": baseline and baseline.name}
            params = self.config.baseline_params(baseline).model_dump() if baseline else {}
            missing.append(_waiting(attrs, params))
        for trials in by_slot:
            last = trials[-1]
            if last.state == TrialState.FAIL and self._failure(trials) is None:
                kept = ("slot", "baseline", "rerun")
                attrs = {key: last.user_attrs[key] for key in kept if key in last.user_attrs}
                attrs["attempt"] = last.user_attrs["attempt"] + 1
                params = last.system_attrs.get("fixed_params", {}) | last.params
                missing.append(_waiting(attrs, params, last.intermediate_values))
        self._storage.add_slot_trials(self._study_id, missing)
        return bool(missing)

    def follow(self, search: "Slots") -> None:
        """Tie a final study to its search, for good. Raises StudyMismatch if it is another's."""
        theirs = self._storage.set_study_attr_once(self._study_id, "search", search.study_id)
        if theirs != search.study_id:
            raise StudyMismatch(
                f"study '{self.config.name}' holds finalists of an earlier study "
                f"'{search.config.name}'; search under a new name: deepfake-study run CONFIG --new"
            )

    def add_reruns(self, reruns: Sequence[tuple[Rerun, Hyperparameters]]) -> None:
        """A slot for each that has none yet, its parameters fixed; of a final study."""
        with self.exclusive():
            records = self.records()
            there = {record.rerun for record in records}
            missing = [pair for pair in reruns if pair[0] not in there]
            trials = []
            for number, (rerun, params) in enumerate(missing, start=len(records)):
                baseline = rerun.model if rerun.role == "baseline" else None
                attrs = {"slot": number, "attempt": 0, "baseline": baseline}
                trials.append(_waiting({**attrs, "rerun": asdict(rerun)}, params.model_dump()))
            self._storage.add_slot_trials(self._study_id, trials)

    def _failure(self, trials: Sequence[FrozenTrial]) -> str | None:
        """Why a slot has failed for good; None if it may be tried again, or has not failed."""
        raised = [trial for trial in trials if trial.user_attrs.get("raised")]
        final = any(trial.user_attrs.get("final") for trial in raised)
        if final or len(raised) >= self.config.study.max_attempts:
            return str(raised[-1].user_attrs["reason"])
        if lost_in_a_row(trials) >= (lost := self.config.study.max_lost):
            return f"its worker died {lost} times in a row without one more epoch"
        return None

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


def _waiting(
    attrs: dict[str, Any], params: dict[str, Any], losses: dict[int, float] | None = None
) -> FrozenTrial:
    return create_trial(
        state=TrialState.WAITING,
        user_attrs=attrs,
        system_attrs={"fixed_params": params} if params else {},
        intermediate_values=losses or {},
    )


def create_or_join(
    config: StudyConfig,
    fingerprint: dict[str, Any],
    *,
    patient: bool = False,
    hurried: Callable[[], bool] = lambda: False,
) -> Slots:
    """The study of config, created with its slots if it is not there yet.

    Any number of processes may call it at once. A final study has the slots that
    add_reruns gave it. patient and hurried: see open_storage. Raises StudyMismatch if it was
    created with other data or settings, naming what differs.
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
    by_slot = slots._by_slot()
    attributes = slots.attributes()  # behind the slots: it counts all of them
    if not has_reruns_alone(config) and slots._budget(attributes) < len(by_slot):
        raise StudyMismatch(
            f"study '{config.name}' has {len(by_slot)} slots already, study.n_trials says "
            f"{config.study.n_trials}: a budget can grow but not shrink; say more"
        )
    slots._fill(by_slot, attributes)
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
