"""System metrics of this machine, as MLflow's own monitors have them."""

import threading

import psutil
import pytest

from study.tracking.system_metrics import Machine
from tests.support.exact import wait_for

ALWAYS = {
    "system/cpu_utilization_percentage",
    "system/system_memory_usage_megabytes",
    "system/system_memory_usage_percentage",
    "system/disk_usage_percentage",
    "system/disk_available_megabytes",
}


def test_an_attempts_first_epoch_has_a_sample_and_the_next_waits_for_one() -> None:
    with Machine(every_s=3600) as machine:
        machine.begin()
        first = machine.since_last()
        assert first.keys() >= ALWAYS
        assert 0 <= first["system/cpu_utilization_percentage"] <= 100
        used = psutil.virtual_memory().used / 1e6
        assert first["system/system_memory_usage_megabytes"] == pytest.approx(used, rel=0.5)
        assert machine.since_last() == {}
        machine.begin()
        assert machine.since_last().keys() >= ALWAYS


def test_samples_come_beside_training_and_end_with_the_block() -> None:
    with Machine(every_s=0.02) as machine:
        machine.begin()
        machine.since_last()
        assert wait_for(machine.since_last, 20).keys() >= ALWAYS
    assert "machine" not in {thread.name for thread in threading.enumerate()}


def test_the_mean_of_the_samples_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = iter([0.0, 20.0, 60.0])  # the first is before the attempt
    monkeypatch.setattr(psutil, "cpu_percent", lambda: next(busy))
    machine = Machine(every_s=3600)
    machine.begin()
    machine._sample()
    assert machine.since_last()["system/cpu_utilization_percentage"] == 40.0


def test_the_network_counts_from_the_beginning_of_each_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    received = iter([5e9, 5e9, 6e9, 6e9, 6e9, 6.2e9])  # of two attempts: new, primed, sampled
    one = psutil.net_io_counters()
    monkeypatch.setattr(
        psutil, "net_io_counters", lambda: one._replace(bytes_recv=int(next(received)))
    )
    machine = Machine(every_s=3600)
    for megabytes in (1000, 200):
        machine.begin()
        found = machine.since_last()["system/network_receive_megabytes"]
        assert found == pytest.approx(megabytes)


def test_no_interval_no_samples() -> None:
    with Machine(every_s=0) as machine:
        machine.begin()
        assert machine.since_last() == {}


def test_a_machine_that_can_not_be_read_costs_the_metrics_not_the_trial(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreadable() -> None:
        raise PermissionError("/proc/meminfo")

    monkeypatch.setattr(psutil, "virtual_memory", unreadable)
    with Machine(every_s=3600) as machine:
        machine.begin()
        assert machine.since_last() == {}
    assert "system metrics end here" in caplog.text


def test_a_part_that_can_not_even_begin_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreadable() -> None:
        raise FileNotFoundError("/proc/net/dev")

    monkeypatch.setattr(psutil, "net_io_counters", unreadable)
    machine = Machine(every_s=3600)
    machine.begin()
    found = machine.since_last()
    assert found.keys() >= ALWAYS
    assert "system/network_receive_megabytes" not in found
    assert "no NetworkMonitor: FileNotFoundError('/proc/net/dev')" in caplog.text
