"""From the spool to MLflow: in order and once, whatever dies in between."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby

from study.config import StudyConfig
from study.connection import LoggedRun
from study.datasets import known
from study.description import describe
from study.journal import Entry, Journal
from study.slots import SlotRecord, Slots
from study.spool import Spool
from study.tracking import STATUS, Tracker

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
            records = (
                self.slots.records()
            )  # behind the runs: of each there is a slot, or never was
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
                self.tracker.end_run(run, record.state, _reason(record), now_ms)
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


def differs(run: LoggedRun, record: SlotRecord) -> bool:
    """Whether the run is in another state than the study database says."""
    said = (run.status, run.tags.get("state"), run.tags.get("reason", ""))
    return said != (STATUS[record.state], record.state, _reason(record))


def _reason(record: SlotRecord) -> str:
    return (record.reason or "") if record.finished else ""


def _both_machines(before: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, str]:
    """tags, the hardware of two attempts joined: nobody expects equal bits then."""
    machines = [*before.get("hardware", "").split(" + "), tags.get("hardware", "")]
    return {**tags, "hardware": " + ".join(dict.fromkeys(filter(None, machines)))}
