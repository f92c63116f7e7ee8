"""The lease of a claimed slot: fencing and the watchdog."""

import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context

import pytest

from study.config.schema import StudyConfig
from study.slots.lease import Lease, SlotLost
from study.slots.slots import Slots
from study.slots.study import create_or_join, join

MakeConfig = Callable[..., StudyConfig]


@pytest.fixture
def slots(make_config: MakeConfig) -> Slots:
    short = ("study.n_trials=3", "study.heartbeat_s=1", "study.lease_s=2", "study.stall_s=2")
    return create_or_join(make_config(*short), {})


def claim(slots: Slots, on_stall: Callable[[], None] = lambda: None) -> Lease:
    slot = slots.claim("host:1")
    assert slot is not None
    return Lease(slots, slot, on_stall)


def make_progress(lease: Lease, seconds: float) -> None:
    for _ in range(int(seconds / 0.1)):
        lease.progress()
        time.sleep(0.1)


def test_within_the_lease_nothing_is_asked(make_config: MakeConfig) -> None:
    slots = create_or_join(make_config("study.n_trials=3", "study.lease_s=600"), {})
    lease = claim(slots)
    join(slots.config).free_worker("host:1")
    lease.confirm()  # the next beat will tell


@pytest.mark.slow
def test_a_worker_frozen_past_its_lease_writes_nothing_more(slots: Slots) -> None:
    lease = claim(slots)  # and no thread runs, as in a frozen process
    time.sleep(2.1)
    join(slots.config).free_worker("host:1")
    with pytest.raises(SlotLost, match="slot 0: attempt 0 was given up"):
        lease.confirm()


@pytest.mark.slow
def test_a_lease_that_ran_out_unnoticed_is_prolonged(slots: Slots) -> None:
    lease = claim(slots)
    time.sleep(2.1)
    lease.confirm()  # nobody took the slot meanwhile
    assert slots.records()[0].state == "running"


@pytest.mark.slow
def test_a_slot_that_was_given_up_is_noticed_at_the_next_beat(slots: Slots) -> None:
    lease = claim(slots)
    with lease.held():
        join(slots.config).free_worker("host:1")
        with pytest.raises(SlotLost):
            make_progress(lease, 30)


@pytest.mark.slow
def test_a_trial_without_progress_is_noticed(slots: Slots) -> None:
    stalled = threading.Event()
    with claim(slots, stalled.set).held():
        assert stalled.wait(30)


@pytest.mark.slow
def test_a_trial_with_progress_is_left_alone(slots: Slots) -> None:
    stalled = threading.Event()
    lease = claim(slots, stalled.set)
    with lease.held():
        make_progress(lease, 4)  # twice study.stall_s
    assert not stalled.is_set()
    assert slots.records()[0].state == "running"


@pytest.mark.slow
def test_time_in_which_the_process_was_frozen_is_no_stall(slots: Slots) -> None:
    process = get_context("spawn").Process(target=hold_for_a_minute, args=(slots.config,))
    process.start()
    while slots.records()[0].state != "running":
        time.sleep(0.1)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(3)  # above study.stall_s
    os.kill(process.pid, signal.SIGCONT)
    time.sleep(1.5)  # a beat looks
    assert process.is_alive()
    process.kill()


def hold_for_a_minute(config: StudyConfig) -> None:
    slots = join(config)
    lease = claim(slots, lambda: os._exit(70))
    with lease.held():
        make_progress(lease, 60)
