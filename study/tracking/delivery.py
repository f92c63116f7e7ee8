"""What carries the spool to MLflow while training goes on: one thread a worker, and `sync`."""

import logging
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from types import TracebackType
from typing import Self

from deepfake.errors import UserError
from study.config import StudyConfig
from study.slots import Slots, join
from study.tracking.description import describe
from study.tracking.provenance import known
from study.tracking.spool import Entry, Journal, Spool
from study.tracking.store import LoggedRun, TrackingError, differs, final_reason
from study.tracking.tracker import Tracker

log = logging.getLogger(__name__)

BATCH = 50  # entries delivered under one lock: a process frozen meanwhile holds it


class Replay:
    """Delivers the journals of one study's spool to its runs."""

    def __init__(self, config: StudyConfig, slots: Slots, spool: Spool) -> None:
        """Raises TrackingError if MLflow is away."""
        self.slots = slots
        self.spool = spool
        self.tracker = Tracker(config, slots)

    def deliver(self, slot: int) -> int:
        """Deliver up to BATCH entries of a slot's journals; how many.

        Nothing is doubled: the run is looked for before it is created and epochs before they are
        logged, the rest overwrites itself. What an attempt says after a newer one began is
        dropped. Raises TrackingError if MLflow is away.
        """
        with self._alone(slot) as alone, self.tracker.reached():
            journals = self.spool.journals_of(slot) if alone else []
            for journal in journals:
                if count := self._deliver(journal, superseded=journal != journals[-1]):
                    return count
            return 0

    def deliver_all(self) -> int:
        """All that the spool holds; how many entries. Raises TrackingError."""
        total = 0
        for slot in {journal.slot for journal in self.spool.journals()}:
            while count := self.deliver(slot):
                total += count
        return total

    def reconcile(self) -> int:
        """Give each slot's run the state that the study database says; how many had another.

        Slots with undelivered entries are left alone. Raises TrackingError if MLflow is away.
        """
        with self.tracker.reached():
            runs = self.tracker.runs()
            # behind the runs: of each there is a slot, or never was
            records = self.slots.records()
            left = {journal.slot for journal in self.spool.journals()}
            doubtful = {n for n in runs.keys() | left if n < len(records)}
            doubtful = {n for n in doubtful if n in left or differs(runs[n], records[n])}
            mended = sum(self._settle(slot) for slot in sorted(doubtful))
            finished = all(record.finished for record in records)
            self.tracker.end_study(finished)
            self.tracker.describe(describe(self.slots))
            if finished:
                self.spool.tidy()
            return mended

    def _deliver(self, journal: Journal, *, superseded: bool) -> int:
        run = self.tracker.find_run(journal.slot)
        if run is not None and journal.attempt < int(run.tags.get("attempt", 0)):
            log.warning("slot %d: attempt %d speaks too late", journal.slot, journal.attempt)
            journal.remove()
            return 0
        entries = journal.entries()
        since = 0 if run is None else journal.delivered  # all, for a run that somebody deleted
        todo = [entry for entry in entries if entry.end > since]
        batch = todo[:BATCH]
        for epochs, group in groupby(batch, lambda entry: entry.kind == "epoch"):
            said = list(group)
            run = self._log_epochs(journal, run, said) if epochs else self._log(journal, run, said)
            journal.note_delivered(said[-1].end)
        ended = bool(entries) and entries[-1].kind == "end"
        if batch == todo and (ended or superseded):
            journal.remove()
        return len(batch)

    def _log_epochs(
        self, journal: Journal, run: LoggedRun | None, epochs: Sequence[Entry]
    ) -> LoggedRun:
        run = run or self._begin(journal, None, epochs[0])
        self.tracker.log_epochs(
            run.run_id, [(e.content["epoch"], e.at_ms, e.content["metrics"]) for e in epochs]
        )
        return run

    def _log(self, journal: Journal, run: LoggedRun | None, entries: Sequence[Entry]) -> LoggedRun:
        for entry in entries:
            if entry.kind == "start" or run is None:
                run = self._begin(journal, run, entry)
            match entry.kind:
                case "start":
                    pass
                case "metrics":
                    self.tracker.log_metrics(run.run_id, entry.content["metrics"], entry.at_ms)
                case "tags":
                    self.tracker.set_tags(run.run_id, entry.content["tags"])
                case "file":
                    self._log_file(journal, run, entry.content["name"])
                case "end":
                    content = entry.content
                    self.tracker.end_run(run, content["state"], content["reason"], entry.at_ms)
                case other:
                    log.warning("%s: %r is no kind of entry", journal.path, other)
        assert run is not None
        return run

    def _begin(self, journal: Journal, run: LoggedRun | None, entry: Entry) -> LoggedRun:
        """The run of the journal's attempt; entry: its start, or its first if that was lost."""
        name = entry.content.get("name", f"slot {journal.slot}")
        tags = {"attempt": str(journal.attempt), **entry.content.get("tags", {})}
        if run is None:
            run = self.tracker.create_run(journal.slot, entry.at_ms, name, tags)
        else:
            self.tracker.restart_run(run, name, _both_machines(run.tags, tags))
        self.tracker.log_params(run.run_id, entry.content.get("params", {}))
        given = [known(said) for said in entry.content.get("datasets", [])]
        self.tracker.log_datasets(run.run_id, given)
        self.tracker.log_study_datasets(given)
        self.slots.note_run(journal.slot, run.run_id)
        return run

    def _log_file(self, journal: Journal, run: LoggedRun, name: str) -> None:
        path = journal.file(name)
        if path.is_file():
            self.tracker.log_file(run.run_id, name, path)
        else:
            log.warning("run %s: %s is not there any more", run.run_id, path)

    def _settle(self, slot: int) -> bool:
        """True if the slot's run was in another state than the database says now."""
        with self._alone(slot) as alone:
            if not alone or self.spool.pending(slot):
                return False
            record = self.slots.records()[slot]  # now: what is said later waits for the lock
            run = self.tracker.find_run(slot)
            if differed := run is not None and differs(run, record):
                now_ms = int(time.time() * 1000)
                self.tracker.end_run(run, record.state, final_reason(record), now_ms)
            if record.finished:  # its worker was killed before it could say so
                for journal in self.spool.journals_of(slot):
                    journal.remove()
            return differed

    @contextmanager
    def _alone(self, slot: int) -> Iterator[bool]:
        """False if another process delivers the slot; a frozen one for as long as it is frozen."""
        lock = self.spool.lock(f"slot_{slot:03d}")
        try:
            lock.acquire()
        # or the study ended, and another worker removes its spool
        except (TimeoutError, FileNotFoundError, FileExistsError):
            yield False
            return
        try:
            yield True
        finally:
            lock.release()


def _both_machines(before: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, str]:
    """tags, the hardware of two attempts joined: nobody expects equal bits then."""
    machines = [*before.get("hardware", "").split(" + "), tags.get("hardware", "")]
    return {**tags, "hardware": " + ".join(dict.fromkeys(filter(None, machines)))}


POLL_S = 1.0  # between two looks at the spool
MAX_PAUSE_S = 30.0  # between two tries while MLflow is away
DRAIN_S = 20.0
HURRIED_DRAIN_S = 5.0  # after a signal or an error, and when MLflow has been away


class Delivery:
    """A `with` round a worker's slots: what they say reaches MLflow from a thread beside them.

    Nothing that goes wrong here reaches training; what is left at the end stays in the spool.
    """

    def __init__(
        self, config: StudyConfig, slots: Slots, spool: Spool, drain_s: float = DRAIN_S
    ) -> None:
        """spool: the one whose recorders the worker's slots write to."""
        self.config = config
        self.slots = slots
        self.spool = spool
        self.drain_s = drain_s
        self._replay: Replay | None = None
        self._sizes: dict[Journal, tuple[int, float]] = {}  # and since when, of other workers'
        self._blocked: set[int] = set()  # slots that could not be delivered last time
        self._failures = 0  # in a row
        self._ended = False
        self._closing, self._given_up = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="delivery", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def study_ended(self) -> None:
        """All slots are finished: on exit everything is delivered, each run in its true state."""
        self._ended = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Waits up to drain_s for what is left, and says how much that is."""
        self._closing.set()
        hurry = kind is not None or self._failures
        self._thread.join(min(self.drain_s, HURRIED_DRAIN_S) if hurry else self.drain_s)
        self._given_up.set()
        mine = self.spool.own if not self._ended else self.spool.journals()
        if waiting := sum(journal.pending for journal in mine):
            log.warning(
                "%d entries wait for MLflow in %s; deliver them with: deepfake-study sync CONFIG",
                waiting,
                self.spool.folder,
            )

    def _work(self) -> None:
        while not self._given_up.is_set():
            last = self._closing.is_set()  # before the look: what is said later needs another
            try:
                done = self._deliver()
            except UserError as error:
                self._say_away(error)
                done = False
            except Exception:  # a witness in trouble is no trouble of training's
                log.exception("runs are not delivered")
                self._failures += 1
                done = False
            else:
                self._say_back()
            if done and last:
                return
            if last:
                self._given_up.wait(POLL_S / 2)
            else:
                pause_s = min(POLL_S * 2**self._failures, MAX_PAUSE_S)
                self._closing.wait(pause_s * random.uniform(0.5, 1) if self._failures else POLL_S)

    def _deliver(self) -> bool:
        """One round over the slots; True if nothing is left. Raises the first slot's UserError."""
        slots = self._slots_to_deliver()
        if not slots and not self._ended:
            return True
        if self._replay is None:
            self._replay = Replay(self.config, self.slots, self.spool)
        errors: list[UserError] = []
        for slot in sorted(slots, key=lambda slot: (slot in self._blocked, slot)):
            try:
                while self._replay.deliver(slot) and not self._given_up.is_set():
                    pass
                self._blocked.discard(slot)
            except UserError as error:
                self._blocked.add(slot)
                errors.append(error)
                if len(errors) == 2:  # not this slot's own trouble: MLflow is away
                    break
        if errors:
            raise errors[0]
        if self._ended:
            self._replay.reconcile()
        return not self._slots_to_deliver()

    def _slots_to_deliver(self) -> set[int]:
        """With undelivered entries, by this worker or left over by one that says nothing more."""
        sizes = {j: j.size for j in self.spool.journals()}
        now = time.monotonic()
        self._sizes = {
            journal: (size, since if size == before else now)
            for journal, size in sizes.items()
            for before, since in [self._sizes.get(journal, (size, now))]
        }
        silent = {j for j, (_, t) in self._sizes.items() if now - t >= self.config.study.lease_s}
        mine = sizes.keys() if self._ended else silent | self.spool.own
        return {journal.slot for journal in sizes if journal in mine and journal.pending}

    def _say_away(self, error: UserError) -> None:
        if not self._failures:
            what = "MLflow away" if isinstance(error, TrackingError) else "runs not delivered"
            folder = self.spool.folder
            log.warning("%s: %s; the study goes on, runs wait in %s", what, error, folder)
        self._failures = min(self._failures + 1, 10)

    def _say_back(self) -> None:
        if self._failures:
            log.info("MLflow is back: runs are delivered again")
        self._failures = 0


@dataclass(frozen=True)
class SyncResult:
    """What sync did."""

    delivered: int  # entries
    waiting: int  # entries: another process is delivering them
    reconciled: int  # runs that were in another state than the study database says

    def __add__(self, other: "SyncResult") -> "SyncResult":
        """Of both studies."""
        return SyncResult(
            self.delivered + other.delivered,
            self.waiting + other.waiting,
            self.reconciled + other.reconciled,
        )


def sync(config: StudyConfig) -> SyncResult:
    """Deliver what workers left in the spool, and give every run its true state.

    Raises TrackingError if MLflow is away: nothing is lost.
    """
    slots = join(config)
    spool = Spool.of(config, slots.study_id)
    try:
        replay = Replay(config, slots, spool)
        delivered = replay.deliver_all()
        reconciled = replay.reconcile()
    except TrackingError as error:
        left = f"; {spool.pending()} entries wait in {spool.folder}, nothing is lost"
        raise TrackingError(f"{error}{left}") from None
    return SyncResult(delivered, spool.pending(), reconciled)
