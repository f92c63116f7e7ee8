"""Work spread over processes that end with this one."""

import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import TypeVar

from deepfake.errors import DataError

Progress = Callable[[str, int, int], None]  # stage, done, total

_Chunk = TypeVar("_Chunk")
_Result = TypeVar("_Result")


def available_cores() -> int:
    """Cores this process may use: a cluster's job owns fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_parallel(
    function: Callable[[_Chunk], _Result], chunks: Sequence[_Chunk], processes: int | None
) -> Generator[_Result]:
    """function of each chunk, in order, over several processes; one process is this one."""
    processes = min(processes or available_cores(), len(chunks))
    if processes <= 1:
        yield from map(function, chunks)
        return
    # spawn: a forked child of a process with torch's threads can hang
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_follow_parent)
    try:
        # a worker is born with Ctrl-C blocked: its imports come before _follow_parent
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            results = pool.map(function, chunks)  # starts them all
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        yield from results
    except BrokenProcessPool:
        raise DataError(
            f"one of {processes} worker processes was killed, perhaps for want of memory; run the"
            " same command again"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent and end with it: a killed parent can't stop its pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
