"""The budget as slots: claimed by one worker at a time, finished exactly once."""

import functools
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from deepfake.config import Hyperparameters
from deepfake.errors import UserError
from study.config import StudyConfig, StudyMismatch, refuse_other
from study.search import new_sampler
from study.slots.attempts import by_slot, failure, new_slots, next_attempts, waiting
from study.slots.lease import Silence, Slot, lost, lost_if_finished
from study.slots.records import LastEpoch, SlotRecord, Stage, record_of, rerun_of
from study.slots.training import Training
from study.storage import (
    LONGEST_WAIT_S,
    Storage,
    exclusive,
    forget_history,
    trial_id,
    weights_lock,
)

_BUDGET = "n_trials"  # a study attribute: slots, where a user made more than the YAML says
LOOK_S = 0.5  # between two looks at silent workers
_RUN_ID = "run_id:"  # a study attribute a slot: a finished trial takes no more attributes


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
        self, slots: list[list[FrozenTrial]], attributes: dict[str, Any]
    ) -> list[SlotRecord]:
        return [
            record_of(
                trials,
                self.config.study.objective,
                failure=failure(trials, self.config.study),
                run_id=attributes.get(f"{_RUN_ID}{trials[-1].user_attrs['slot']}"),
            )
            for trials in slots
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
    def reading_weights(self) -> Iterator[None]:
        """In the block gc removes none of them; waits for one that does."""
        with self._weights_lock(alone=False):
            yield

    @contextmanager
    def removing_weights(self) -> Iterator[None]:
        """Raises UserError if somebody reads them."""
        with self._weights_lock(alone=True) as held:
            if not held:
                raise UserError(
                    f"study '{self.config.name}': an evaluate or export is reading its weights; "
                    "call gc again when that has ended, or see --dry-run"
                )
            yield

    def _weights_lock(self, *, alone: bool) -> AbstractContextManager[bool]:
        url = self.config.study.storage.get_secret_value()
        return weights_lock(url, self.study_id, alone=alone)

    @contextmanager
    def impatient(self) -> Iterator[None]:
        """In the block a database that is away is said at once: StorageAway."""
        patience = self._storage.patience
        limit_s, patience.limit_s = patience.limit_s, 0.0
        try:
            yield
        finally:
            patience.limit_s = limit_s

    # one slot, for the worker that has it

    def claim(self, worker: str) -> Slot | None:
        """The first waiting slot, now this worker's, or None if none waits."""
        claimed = self._storage.claim(self._study_id, worker, uuid.uuid4().hex)
        if claimed is None:
            return None
        self.study.get_trials(deepcopy=False)  # Optuna must have seen it to take its parameters
        forget_history(self.study)  # or TPE would know the trials of the first claim alone
        attrs = self._storage.get_trial(claimed).user_attrs
        number, attempt = attrs["slot"], attrs["attempt"]
        search = self.config.study
        self.study.sampler = new_sampler(search.seed, number, attempt, search.sampler)
        trial = Trial(self.study, claimed)
        return Slot(number, attempt, attrs["baseline"], trial, rerun_of(attrs))

    def beat(self, slot: Slot) -> None:
        """Prolong the lease of a claimed slot. Raises SlotLost if it is another's by now."""
        if not self._storage.beat(trial_id(slot.trial)):
            raise lost(slot)

    def report(
        self, slot: Slot, epoch: int, val_loss: float, beside: LastEpoch | None = None
    ) -> None:
        """Hand an epoch's loss to the study, once. beside: for those who watch."""
        if epoch not in self.losses(slot):
            with lost_if_finished(slot):
                slot.trial.report(val_loss, epoch)
            if beside is not None:
                self._set_attr(slot, "last_epoch", asdict(beside))

    def note_stage(self, slot: Slot, stage: Stage) -> None:
        """Say how far it is before the first epoch."""
        self._set_attr(slot, "stage", asdict(stage))

    def losses(self, slot: Slot) -> dict[int, float]:
        """What was reported for the slot so far, by epoch."""
        return self._storage.get_trial(trial_id(slot.trial)).intermediate_values

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

    # slots whose workers are gone

    def repair(self) -> list[SlotRecord]:
        """Give every slot that no trial stands for a new attempt; idempotent. Every slot, then.

        Takes back the slots of workers whose lease ran out, by the database's clock.
        """
        stale = self._storage.stale_trials(self._study_id)
        for silent in self._silence.confirmed(stale, self._storage.patience.outages):
            self._storage.give_up(silent, if_silent=True)
        slots, attributes = self._by_slot(), self.attributes()
        # waiting trials are read anew each time, 0.1 s for 1,000: twice only if need be
        if self._fill(slots, attributes):
            return self.records()
        return self._records(slots, attributes)

    def stale(self) -> list[SlotRecord]:
        """Running slots whose lease is over, by the database's clock."""
        stale = set(self._storage.stale_trials(self._study_id))
        slots = [trials for trials in self._by_slot() if trial_id(trials[-1]) in stale]
        return self._records(slots, self.attributes())

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
                        self._storage.set_trial_user_attr(trial_id(trial), "reason", reason)
                self._storage.give_up(trial_id(trial), if_silent=False)
        self.repair()

    # the budget

    def grow(self, wanted: Callable[[int], int]) -> int:
        """Set the budget for good, from how many slots there are; how many there are then."""
        with self.exclusive():
            self.repair()
            slots = self._by_slot()
            n_trials = wanted(len(slots))
            # what is killed in between leaves as many slots as the attribute says
            missing = list(new_slots(slots, n_trials, self.config))
            self._storage.add_slot_trials(self._study_id, missing, _BUDGET)
            self.set_attribute(_BUDGET, n_trials)  # also where none was missing: for good
            return n_trials

    def append(self, params: Hyperparameters) -> int:
        """One more slot, an ordinary one but for its parameters, which are given; its number."""
        given = waiting({"attempt": 0, "baseline": None}, params.model_dump())
        with self.exclusive():  # against grow, which reads and writes
            self.repair()
            return self._storage.append_slot(self._study_id, given, _BUDGET, uuid.uuid4().hex)

    def _budget(self, attributes: dict[str, Any]) -> int:
        by_hand: int = attributes.get(_BUDGET, 0)
        return max(self.config.study.n_trials, by_hand)

    def fill(self) -> None:
        """Add the slots that are missing. Raises StudyMismatch if there are more than planned."""
        slots = self._by_slot()
        attributes = self.attributes()  # behind the slots: it counts all of them
        if self.config.kind == "search" and self._budget(attributes) < len(slots):
            raise StudyMismatch(
                f"study '{self.config.name}' has {len(slots)} slots already, study.n_trials says "
                f"{self.config.study.n_trials}: a budget can grow but not shrink; say more"
            )
        self._fill(slots, attributes)

    def _fill(self, slots: list[list[FrozenTrial]], attributes: dict[str, Any]) -> bool:
        """Add the trials that are missing, for new slots and new attempts; whether any was."""
        planned = self._budget(attributes) if self.config.kind == "search" else 0
        missing = [
            *new_slots(slots, planned, self.config),
            *next_attempts(slots, self.config.study),
        ]
        self._storage.add_slot_trials(self._study_id, missing)
        return bool(missing)

    def follow(self, search: "Slots") -> None:
        """Tie a study of finalists to its search, for good; StudyMismatch if it is another's."""
        theirs = self._storage.set_study_attr_once(self._study_id, "search", search.study_id)
        if theirs != search.study_id:
            raise StudyMismatch(
                f"study '{self.config.name}' holds finalists of an earlier study "
                f"'{search.config.name}'; search under a new name: deepfake-study run CONFIG --new"
            )

    def add_reruns(self, reruns: Sequence[tuple[Training, Hyperparameters]]) -> None:
        """Add a slot for each training that has none yet, with these parameters.

        For studies beside a search: finalists and the two arms of a leak.
        """
        with self.exclusive():
            records = self.records()
            there = {record.rerun for record in records}
            missing = [pair for pair in reruns if pair[0] not in there]
            trials = []
            for number, (rerun, params) in enumerate(missing, start=len(records)):
                baseline = rerun.model if rerun.role == "baseline" else None
                attrs = {"slot": number, "attempt": 0, "baseline": baseline}
                trials.append(waiting({**attrs, "rerun": asdict(rerun)}, params.model_dump()))
            self._storage.add_slot_trials(self._study_id, trials)

    def _by_slot(self) -> list[list[FrozenTrial]]:
        return by_slot(self.study.get_trials(deepcopy=False))

    def _set_attr(self, slot: Slot, key: str, value: Any) -> None:
        with lost_if_finished(slot):
            slot.trial.set_user_attr(key, value)

    def _tell(self, slot: Slot, state: TrialState, values: list[float] | None = None) -> None:
        with lost_if_finished(slot):
            self._storage.set_trial_state_values(trial_id(slot.trial), state, values)
