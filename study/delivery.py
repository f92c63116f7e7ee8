"""What carries the spool to MLflow while training goes on: one thread a worker, and `sync`."""

import logging
import random
import socket
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from deepfake.errors import UserError
from study.config import StudyConfig, TrackingError
from study.connection import sqlite_path
from study.journal import Journal
from study.replay import Replay
from study.slots import Slots, join
from study.spool import Spool

log = logging.getLogger(__name__)

POLL_S = 1.0  # between two looks at the spool
MAX_PAUSE_S = 30.0  # between two tries while MLflow is away
DRAIN_S = 20.0
HURRIED_DRAIN_S = 5.0  # after a signal or an error, and when MLflow has been away
ANSWER_S = 2.0  # of a server that is well


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


def check_tracking(config: StudyConfig) -> str | None:
    """A warning if the MLflow server does not answer: the study can run without it.

    Raises TrackingError for a plain SQLite store that can't be written: nothing would mend it.
    """
    uri = config.tracking.uri
    if (sqlite := sqlite_path(uri)) is None:
        url = urlsplit(uri)
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            socket.create_connection((url.hostname or "", port), timeout=ANSWER_S).close()
        except OSError as error:
            return f"tracking.uri: {uri} does not answer ({error}); the study goes on, runs wait"
        return None
    artifacts = config.tracking.artifacts_dir
    try:
        artifacts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrackingError(
            f"tracking.artifacts_dir: {artifacts}: {error.strerror}; name a folder that can be "
            "written"
        ) from None
    try:
        sqlite.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(sqlite, timeout=0.1)) as probe:
            probe.execute("BEGIN IMMEDIATE")
    except (OSError, sqlite3.Error) as error:
        if "locked" not in str(error):  # another writes it: it can be written
            reason = error.strerror if isinstance(error, OSError) else error
            raise TrackingError(
                f"tracking.uri: {uri}: {reason}; name another file, or a server's http://host:port"
            ) from None
    return None
