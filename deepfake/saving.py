"""An epoch's checkpoint written beside the next epoch; its report waits until it is whole."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch

Stats = TypeVar("Stats")


class Unwanted(Exception):
    """The report of the epoch before was answered with False: nothing more is to be trained."""


class Saving(Generic[Stats]):
    """Checkpoint, then report, for one epoch at a time: the first in a thread of its own."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        save: Callable[[int, dict[str, Any]], None],
        report: Callable[[Stats], bool],
    ) -> None:
        """save is called in the pool's thread, report in the caller's."""
        self.seconds = 0.0  # that the caller spent here
        self._pool, self._save, self._report = pool, save, report
        self._pending: tuple[Future[None], Stats] | None = None

    @classmethod
    @contextmanager
    def of(
        cls, save: Callable[[int, dict[str, Any]], None], report: Callable[[Stats], bool]
    ) -> Iterator["Saving[Stats]"]:
        """For a `with`; what is being written when it is left is written to its end."""
        with ThreadPoolExecutor(1, "checkpoint") as pool:
            yield cls(pool, save, report)

    def begin(self, epoch: int, stats: Stats, state: dict[str, Any]) -> None:
        """Save a state that nobody changes any more, and report stats once that is done."""
        assert self._pending is None
        self._pending = (self._pool.submit(self._save, epoch, state), stats)

    def settle(self, *, wait: bool = False) -> None:
        """Report the epoch if it is saved. Raises Unwanted, and what save or report raises."""
        if self._pending is None:
            return
        (saved, stats), started = self._pending, time.perf_counter()
        if wait or saved.done():
            self._pending = None
            saved.result()
            # amid an epoch: what a report draws must not change the dropout that follows
            with torch.random.fork_rng(devices=[]):
                go_on = self._report(stats)
            self.seconds += time.perf_counter() - started
            if not go_on:
                raise Unwanted
