import itertools
import sys
import threading

import pytest

from study.slots.lease import Silence

CONFIRM_S = 4.0


class Watcher:
    """A Silence whose clock stands still until it is moved."""

    def __init__(self):
        self.now = 100.0
        self.silence = Silence(CONFIRM_S, lambda: self.now)

    def after(self, seconds, stale, outages=0):
        """What is confirmed by a look that many seconds after the last one."""
        self.now += seconds
        return self.silence.confirmed(stale, outages)


@pytest.fixture
def watcher():
    return Watcher()


def test_a_trial_is_given_up_once_it_stayed_silent_for_the_whole_time(watcher):
    assert watcher.after(1, [7]) == []
    assert watcher.after(2, [7]) == []
    assert watcher.after(1.9, [7]) == []
    assert watcher.after(0.1, [7]) == [7]  # 2 + 1.9 + 0.1 behind the look that found it


def test_a_silent_trial_is_named_again_until_somebody_has_taken_it_back(watcher):
    watcher.after(1, [7])
    assert [watcher.after(2, [7]) for _ in range(3)] == [[], [7], [7]]
    assert watcher.after(1, []) == []


def test_nothing_stale_is_nothing_confirmed(watcher):
    assert [watcher.after(1, []) for _ in range(9)] == [[]] * 9


def test_a_trial_that_beat_in_between_starts_from_the_beginning(watcher):
    watcher.after(1, [7])
    watcher.after(3, [7])
    assert watcher.after(0.5, []) == []  # it beat
    assert watcher.after(0.5, [7]) == []  # 4 s behind the first look
    assert watcher.after(3, [7]) == []
    assert watcher.after(1, [7]) == [7]


def test_each_trial_has_a_time_of_its_own(watcher):
    assert watcher.after(1, [3]) == []
    assert watcher.after(2, [3, 5]) == []
    assert watcher.after(2, [3, 5]) == [3]
    assert watcher.after(2, [5, 8]) == [5]
    assert watcher.after(4, [5, 8]) == [5, 8]


def test_a_failed_call_in_between_starts_all_from_the_beginning(watcher):
    watcher.after(1, [3, 5])
    assert watcher.after(3.9, [3, 5], outages=1) == []
    assert watcher.after(3.9, [3, 5], outages=1) == []
    assert watcher.after(0.1, [3, 5], outages=1) == [3, 5]


def test_no_trial_is_given_up_while_calls_go_on_failing(watcher):
    assert [watcher.after(5, [7], outages) for outages in range(1, 9)] == [[]] * 8
    assert watcher.after(5, [7], outages=8) == [7]


def test_behind_an_outage_only_those_that_stay_silent_are_given_up(watcher):
    watcher.after(1, [])
    # the database is back, every lease has run out, and the live workers have yet to beat
    assert watcher.after(60, [1, 2, 3], outages=9) == []
    assert watcher.after(1, [2, 3], outages=9) == []
    assert watcher.after(1, [3], outages=9) == []
    assert watcher.after(2, [3], outages=9) == [3]


def test_failed_calls_before_the_first_look_cost_no_time(watcher):
    assert watcher.after(1, [7], outages=5) == []
    assert watcher.after(4, [7], outages=5) == [7]


def test_a_watcher_that_was_frozen_itself_looks_again_for_the_whole_time(watcher):
    watcher.after(1, [7])
    assert watcher.after(8.1, [7]) == []  # more than twice the time to confirm
    assert watcher.after(3.9, [7]) == []
    assert watcher.after(0.1, [7]) == [7]


def test_looks_twice_the_time_apart_are_contact_still(watcher):
    watcher.after(1, [7])
    assert watcher.after(8, [7]) == [7]


def test_the_wait_for_a_first_look_confirms_nothing(watcher):
    assert watcher.after(3600, [7]) == []
    assert watcher.after(4, [7]) == [7]


@pytest.fixture
def _restless():
    """Threads take turns at nearly every instruction."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_restless")
def test_the_threads_of_a_worker_may_look_at_once():
    silence, failed = Silence(0.0), []
    outages = itertools.count()

    def look(trials):
        try:
            for _ in range(3000):
                # with nothing to confirm, what is asked about is what is answered
                assert silence.confirmed(trials, next(outages) // 2) == trials
        except Exception as error:  # noqa: BLE001  # an assertion in a thread is lost
            failed.append(error)

    own = [list(range(100)), list(range(100, 150)), [200]]
    threads = [threading.Thread(target=look, args=(trials,)) for trials in own]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
