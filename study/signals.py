"""Signals that ask for a clean end; imports nothing heavy, so that a command hears them early."""

import logging
import os
import signal
import threading
import time
from types import FrameType

log = logging.getLogger(__name__)

POLL_S = 1.0  # between two looks at the parent


class Stopped(Exception):
    """A signal asked for the end; the partial epoch is dropped."""


class StopSignal:
    """SIGINT and SIGTERM: the first asks for a clean end, the second ends a worker at once."""

    def __init__(self, *, second_exits: bool) -> None:
        self.number: int | None = None  # the first signal
        self.count = 0
        self.timed_out = False  # no signal came: the time that was given was over
        self._second_exits = second_exits

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def unlisten(self) -> None:
        """There is nothing left to end cleanly: a signal ends this process."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)

    def follow_parent(self, parent: int) -> None:
        """Ask for a clean end when the process that started this one is gone."""

        def watch() -> None:
            while os.getppid() == parent:
                time.sleep(POLL_S)
            self.number = self.number or signal.SIGTERM

        threading.Thread(target=watch, name="parent-watch", daemon=True).start()

    def end_after(self, timeout_s: float) -> None:
        """Ask for a clean end then, as a first signal does."""
        until = time.monotonic() + timeout_s

        def watch() -> None:
            while (left := until - time.monotonic()) > 0:
                time.sleep(min(left, POLL_S))
            if self.number is None:
                self.timed_out, self.number = True, signal.SIGTERM

        threading.Thread(target=watch, name="timeout", daemon=True).start()

    def end_within(self, grace_s: float) -> None:
        """End the process when a clean end takes longer: a batch that hangs, a store away."""

        def watch() -> None:
            while self.number is None:
                time.sleep(POLL_S / 4)
            time.sleep(grace_s)
            exit_within(1.0, 128 + self.number)
            log.error("no clean end within %g s: the slot comes back with its lease", grace_s)
            os._exit(128 + self.number)

        threading.Thread(target=watch, name="grace", daemon=True).start()

    def asked(self) -> bool:
        return self.number is not None

    def check(self) -> None:
        if self.asked():
            raise Stopped("its time was over" if self.timed_out else "stopped by a signal")

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.count += 1
        if self.count > 1 and self._second_exits:
            os._exit(128 + number)  # the launcher, or the lease, frees the slot
        self.number = self.number or number


def exit_within(seconds: float, code: int) -> None:
    """End the process then, whatever its threads wait for: a log that nobody reads, a disk."""
    last = threading.Timer(seconds, os._exit, (code,))
    last.daemon = True
    last.start()
