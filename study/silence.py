"""Which silent workers are gone, and which could only not reach the database."""

import threading
import time
from collections.abc import Callable, Collection


class Silence:
    """Tells a dead worker's lease from one that ran out while nobody could beat.

    Behind an outage of the database every lease has run out. A live worker beats as soon as the
    database is back, so a lease counts as given up only if it stayed silent for some time in
    which this process was in contact.
    """

    def __init__(self, confirm_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.confirm_s = confirm_s
        self._clock = clock
        self._lock = threading.Lock()  # a worker and the keeper of its lease both look
        self._since: dict[int, float] = {}  # first look that found the lease stale
        self._last_look = clock()
        self._outages = 0

    def confirmed(self, stale: Collection[int], outages: int) -> list[int]:
        """Those of the stale trials that are beyond doubt.

        outages: how many calls have failed so far; a change means that contact was lost.
        """
        with self._lock:
            now = self._clock()
            out_of_contact = outages != self._outages or now - self._last_look > 2 * self.confirm_s
            if out_of_contact:  # the database was away, or this process was frozen
                self._since.clear()
            self._last_look, self._outages = now, outages
            self._since = {trial: self._since.get(trial, now) for trial in stale}
            return [trial for trial, since in self._since.items() if now - since >= self.confirm_s]
