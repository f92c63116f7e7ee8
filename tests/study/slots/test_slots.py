"""Slots on SQLite and on PostgreSQL: one suite, real processes."""

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import Engine, event

from study.config.fingerprint import StudyMismatch
from study.config.schema import StudyConfig
from study.search.space import suggest
from study.slots.lease import Lease, SlotLost
from study.slots.records import LastEpoch, Stage, best_of, summary
from study.slots.slots import Slots
from study.slots.study import NoStudy, create_or_join, free_name, join
from study.storage import rdb as storage
from tests.support.forked import Process, forks, wait_until

FINGERPRINT = {"data crops (sha256)": "c" * 64, "study.seed": 0}
MakeConfig = Callable[..., StudyConfig]


def finish_next(slots: Slots, val_loss: float = 0.5) -> int | None:
    slot = slots.claim("host:1")
    if slot is None:
        return None
    suggest(slot.trial, slots.config.space)
    slot.trial.report(val_loss, 0)
    slots.complete(slot, val_loss)
    return slot.number


def states(slots: Slots) -> list[str]:
    return [record.state for record in slots.records()]


def test_the_baselines_are_the_first_slots_with_their_fixed_parameters(
    make_config: MakeConfig, storage_url: str
) -> None:
    slots = create_or_join(make_config("study.n_trials=5", storage=storage_url), FINGERPRINT)
    drawn = []
    while (slot := slots.claim("host:1")) is not None:
        params = suggest(slot.trial, slots.config.space)
        drawn.append((slot.number, slot.baseline, slot.fixed, params.variant, params.lr))
        slots.complete(slot, 0.5)
    assert drawn[:3] == [
        (0, "cnn", True, "cnn", 1e-3),
        (1, "mobilenet_v2_frozen", True, "mobilenet_v2_frozen", 1e-3),
        (2, "mobilenet_v2_finetuned", True, "mobilenet_v2_finetuned", 1e-3),
    ]
    assert [entry[:3] for entry in drawn[3:]] == [(3, None, False), (4, None, False)]
    assert drawn[3][4] != drawn[4][4]


def test_what_a_worker_notes_is_seen_from_elsewhere_until_another_attempt_begins(
    make_config: MakeConfig, storage_url: str
) -> None:
    slots = create_or_join(make_config("study.n_trials=3", storage=storage_url), FINGERPRINT)
    watching = join(slots.config)
    slot = slots.claim("host:1")
    assert slot is not None
    slots.note_stage(slot, Stage(done=512, total=2048, seconds_left=None))
    assert watching.records()[0].stage == Stage(512, 2048, None)
    slots.report(slot, 0, 0.7, LastEpoch(train_loss=0.8, images_per_s=50.0))
    assert watching.records()[0].last_epoch == LastEpoch(0.8, 50.0)
    slots.report(slot, 0, 0.7, LastEpoch(train_loss=0.1, images_per_s=1.0))  # told already
    assert watching.records()[0].last_epoch == LastEpoch(0.8, 50.0)
    slots.free(slot)
    freed = watching.records()[0]
    assert (freed.attempt, freed.losses) == (1, {0: 0.7})
    assert (freed.last_epoch, freed.stage) == (None, None)


def run_worker(config: StudyConfig) -> list[int]:
    """In a process of its own: join, and finish slots until none waits."""
    slots = create_or_join(config, FINGERPRINT)
    done = []
    while (number := finish_next(slots)) is not None:
        done.append(number)
    return done


@pytest.mark.slow
def test_workers_that_start_together_on_an_empty_database_run_every_slot_once(
    make_config: MakeConfig, storage_url: str
) -> None:
    config = make_config("study.n_trials=20", storage=storage_url)
    with ProcessPoolExecutor(6, mp_context=forks()) as pool:
        done = [n for numbers in pool.map(run_worker, [config] * 6) for n in numbers]
    assert sorted(done) == list(range(20))
    assert states(join(config)) == ["complete"] * 20


def test_a_freed_slot_is_claimed_again_with_the_same_parameters(
    make_config: MakeConfig, storage_url: str
) -> None:
    slots = create_or_join(make_config("study.n_trials=4", storage=storage_url), FINGERPRINT)
    for _ in range(3):
        finish_next(slots)
    first = slots.claim("host:1")
    assert first is not None
    params = suggest(first.trial, slots.config.space)
    first.trial.report(0.7, 0)
    slots.free(first)
    assert states(slots)[3] == "waiting"

    second = slots.claim("host:2")
    assert second is not None
    assert (second.number, second.attempt) == (3, 1)
    assert suggest(second.trial, slots.config.space) == params
    slots.complete(second, 0.6)
    record = slots.records()[3]
    assert (record.state, record.losses) == ("complete", {0: 0.7})


def test_each_attempt_of_a_slot_draws_from_a_generator_of_its_own(
    make_config: MakeConfig, storage_url: str
) -> None:
    slots = create_or_join(make_config("study.n_trials=4", storage=storage_url), FINGERPRINT)
    for _ in range(3):
        finish_next(slots)
    lost_before_it_drew = slots.claim("host:1")
    assert lost_before_it_drew is not None
    slots.free(lost_before_it_drew)
    again = slots.claim("host:1")
    assert again is not None
    second = suggest(again.trial, slots.config.space)

    other = make_config("study.n_trials=4", "name=other", storage=storage_url)
    fresh = create_or_join(other, FINGERPRINT)
    for _ in range(3):
        finish_next(fresh)
    slot = fresh.claim("host:1")
    assert slot is not None
    assert suggest(slot.trial, fresh.config.space) != second


def test_a_slot_that_raises_has_max_attempts_and_then_failed_with_its_reason(
    make_config: MakeConfig, storage_url: str
) -> None:
    slots = create_or_join(make_config("study.n_trials=3", storage=storage_url), FINGERPRINT)
    for attempt in range(2):
        slot = slots.claim("host:1")
        assert slot is not None
        assert (slot.number, slot.attempt) == (0, attempt)
        slots.fail(slot, "OutOfMemoryError: CUDA out of memory", retry=True)
    record = slots.records()[0]
    assert (record.state, record.reason) == ("failed", "OutOfMemoryError: CUDA out of memory")
    following = slots.claim("host:1")
    assert following is not None
    assert following.number == 1


def test_a_slot_failed_for_good_is_not_retried(make_config: MakeConfig, storage_url: str) -> None:
    slots = create_or_join(make_config("study.n_trials=3", storage=storage_url), FINGERPRINT)
    slot = slots.claim("host:1")
    assert slot is not None
    slots.fail(slot, "the loss was not finite in epoch 0", retry=False)
    assert states(slots) == ["failed", "waiting", "waiting"]


def test_being_stopped_does_not_count_as_a_failed_attempt(
    make_config: MakeConfig, storage_url: str
) -> None:
    slots = create_or_join(make_config("study.n_trials=3", storage=storage_url), FINGERPRINT)
    for _ in range(5):
        slot = slots.claim("host:1")
        assert slot is not None
        slots.free(slot)
    assert slots.records()[0].state == "waiting"
    assert slots.records()[0].attempt == 5


def test_a_slot_that_kills_its_workers_has_failed_in_the_end(
    make_config: MakeConfig, storage_url: str
) -> None:
    slots = create_or_join(make_config("study.n_trials=3", storage=storage_url), FINGERPRINT)
    for attempt in range(6):
        slot = slots.claim("host:1")
        assert slot is not None
        assert (slot.number, slot.attempt) == (0, attempt)
        if attempt == 2:  # brings an epoch: no loss counts that came before
            slots.report(slot, 0, 0.7)
        slots.free_worker("host:1")
    # of the six, that with the epoch and the three behind it count
    assert states(slots)[0] == "waiting"
    assert slots.claim("host:1") is not None
    slots.free_worker("host:1")
    record = slots.records()[0]
    assert record.state == "failed"
    assert record.reason == "its worker died 5 times in a row without one more epoch"


def test_being_stopped_kills_no_slot_however_often(
    make_config: MakeConfig, storage_url: str
) -> None:
    slots = create_or_join(make_config("study.n_trials=3", storage=storage_url), FINGERPRINT)
    for _ in range(slots.config.study.max_lost + 1):
        slots.claim("host:1")
        slots.free_worker("host:1", "its worker ended with exit code 130")
    assert states(slots)[0] == "waiting"


def test_one_worker_learns_from_all_slots_finished_so_far(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned_from = []
    sample = optuna.samplers.TPESampler._sample

    def spy(self, study, trial, space, **more):
        finished = study._get_trials(states=(TrialState.COMPLETE,), use_cache=True)
        learned_from.append(len(finished))
        return sample(self, study, trial, space, **more)

    monkeypatch.setattr(optuna.samplers.TPESampler, "_sample", spy)
    slots = create_or_join(make_config("study.n_trials=14"), FINGERPRINT)
    while finish_next(slots) is not None:
        pass
    assert sorted(set(learned_from)) == [10, 11, 12, 13]  # random draws for the first ten


def test_a_trial_added_from_outside_is_no_slot(make_config: MakeConfig, storage_url: str) -> None:
    slots = create_or_join(make_config("study.n_trials=3", storage=storage_url), FINGERPRINT)
    slots.study.enqueue_trial({"lr": 0.1})
    done = []
    while (number := finish_next(slots)) is not None:
        done.append(number)
    assert done == [0, 1, 2]
    assert len(slots.records()) == 3


def claim_and_hang(config: StudyConfig) -> None:
    slots = join(config)
    slot = slots.claim("dying:1")
    assert slot is not None
    with Lease(slots, slot, lambda: None).held():
        print(slot.number, flush=True)
        time.sleep(60)


@pytest.mark.slow
def test_the_slot_of_a_killed_worker_comes_back_when_its_lease_runs_out(
    make_config: MakeConfig, storage_url: str
) -> None:
    short = ["study.n_trials=3", "study.heartbeat_s=1", "study.lease_s=3"]
    config = make_config(*short, storage=storage_url)
    slots = create_or_join(config, FINGERPRINT)
    worker = Process(None, claim_and_hang, config)
    wait_until(lambda: worker.said() == "0\n", "it has a slot")
    time.sleep(4)
    slots.repair()
    assert states(slots)[0] == "running"  # it beats, so it keeps its slot past the lease
    worker.kill()
    deadline = time.monotonic() + 20
    while states(slots)[0] == "running" and time.monotonic() < deadline:
        time.sleep(0.5)
        slots.repair()
    slot = slots.claim("host:2")
    assert slot is not None
    assert (slot.number, slot.attempt) == (0, 1)


@pytest.mark.slow
def test_three_silent_workers_are_found_in_as_many_statements_as_one(
    make_config: MakeConfig, storage_url: str
) -> None:
    short = ("study.heartbeat_s=1", "study.lease_s=2")
    slots = create_or_join(make_config(*short, storage=storage_url), FINGERPRINT)
    statements: list[str] = []

    def look(silent: int) -> int:
        wait_until(lambda: len(slots.stale()) == silent, "their leases are over")
        statements.clear()
        assert [record.number for record in slots.stale()] == list(range(silent))
        return len(statements)

    def note(_: object, __: object, statement: str, *___: object) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        slots.claim("host:0")
        of_one = look(1)
        slots.claim("host:1")
        slots.claim("host:2")
        assert look(3) == of_one
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def test_the_slots_of_a_worker_known_to_be_dead_come_back_at_once(
    make_config: MakeConfig, storage_url: str
) -> None:
    slots = create_or_join(make_config("study.n_trials=3", storage=storage_url), FINGERPRINT)
    slots.claim("host:1")
    slots.claim("host:2")
    slots.free_worker("host:1")
    assert states(slots) == ["waiting", "running", "waiting"]


def test_a_worker_that_was_given_up_can_write_nothing_more(
    make_config: MakeConfig, storage_url: str
) -> None:
    slots = create_or_join(make_config("study.n_trials=3", storage=storage_url), FINGERPRINT)
    zombie = slots.claim("host:1")
    assert zombie is not None
    suggest(zombie.trial, slots.config.space)
    slots.free_worker("host:1")
    successor = slots.claim("host:2")
    assert successor is not None
    suggest(successor.trial, slots.config.space)
    slots.complete(successor, 0.4)

    for write in (
        lambda: slots.complete(zombie, 0.1),
        lambda: slots.prune(zombie, "late"),
        lambda: slots.fail(zombie, "late", retry=True),
        lambda: slots.free(zombie),
        lambda: slots.beat(zombie),
        lambda: slots.report(zombie, 0, 0.1),
    ):
        with pytest.raises(SlotLost, match="slot 0: attempt 0 was given up"):
            write()
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        zombie.trial.report(0.1, 0)
    record = slots.records()[0]
    assert (record.state, record.reason) == ("complete", None)
    assert Counter(t.state for t in slots.study.get_trials()) == {
        TrialState.FAIL: 1,
        TrialState.COMPLETE: 1,
        TrialState.WAITING: 2,
    }


def test_an_epoch_is_reported_once(make_config: MakeConfig, storage_url: str) -> None:
    slots = create_or_join(make_config("study.n_trials=3", storage=storage_url), FINGERPRINT)
    slot = slots.claim("host:1")
    assert slot is not None
    for val_loss in (0.7, 0.2):  # the second is a replay: the first stands
        slots.report(slot, 0, val_loss)
    assert slots.losses(slot) == {0: 0.7}


def test_the_run_of_a_slot_is_known_after_its_end(
    make_config: MakeConfig, storage_url: str
) -> None:
    slots = create_or_join(make_config("study.n_trials=3", storage=storage_url), FINGERPRINT)
    finish_next(slots)
    slots.note_run(0, "a" * 32)
    assert [record.run_id for record in slots.records()] == ["a" * 32, None, None]


def join_at_once(config: StudyConfig) -> str:
    return create_or_join(config, FINGERPRINT).study_id


@pytest.mark.slow
def test_processes_that_create_a_study_together_agree_on_it(
    make_config: MakeConfig, storage_url: str
) -> None:
    config = make_config("study.n_trials=20", storage=storage_url)
    with ProcessPoolExecutor(8, mp_context=forks()) as pool:
        assert len(set(pool.map(join_at_once, [config] * 8))) == 1
    slots = join(config)
    assert [t.user_attrs["slot"] for t in slots.study.get_trials()] == list(range(20))


def test_a_creator_killed_between_two_slots_leaves_nothing_to_mend_by_hand(
    make_config: MakeConfig, storage_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("study.n_trials=6", storage=storage_url)
    add, added = storage.add_waiting, []

    def die_behind_the_first_two(*arguments) -> None:
        if added:
            raise KeyboardInterrupt
        added.append(add(*arguments))

    monkeypatch.setattr(storage, "AT_ONCE", 2)
    monkeypatch.setattr(storage, "add_waiting", die_behind_the_first_two)
    with pytest.raises(KeyboardInterrupt):
        create_or_join(config, FINGERPRINT)
    monkeypatch.undo()
    assert len(join(config).records()) == 2
    slots = create_or_join(config, FINGERPRINT)
    assert [record.number for record in slots.records()] == list(range(6))
    assert [r.baseline for r in slots.records()].count(None) == 3


def test_other_data_or_settings_are_refused_by_name(
    make_config: MakeConfig, storage_url: str
) -> None:
    config = make_config(storage=storage_url)
    create_or_join(config, FINGERPRINT)
    with pytest.raises(StudyMismatch, match=r"data crops \(sha256\) was cccccccccccc, is dddd"):
        create_or_join(config, {**FINGERPRINT, "data crops (sha256)": "d" * 64})


def test_a_budget_grows_and_never_shrinks(make_config: MakeConfig, storage_url: str) -> None:
    create_or_join(make_config("study.n_trials=4", storage=storage_url), FINGERPRINT)
    slots = create_or_join(make_config("study.n_trials=6", storage=storage_url), FINGERPRINT)
    assert len(slots.records()) == 6
    with pytest.raises(StudyMismatch, match=r"has 6 slots already, study\.n_trials says 4"):
        create_or_join(make_config("study.n_trials=4", storage=storage_url), FINGERPRINT)


def test_a_new_study_takes_the_next_free_name(make_config: MakeConfig, storage_url: str) -> None:
    config = make_config(storage=storage_url)
    assert free_name(config) == "sample"
    create_or_join(config, FINGERPRINT)
    create_or_join(config.model_copy(update={"name": "sample-2"}), FINGERPRINT)
    assert free_name(config) == "sample-3"


def test_a_study_that_is_not_there_is_said(make_config: MakeConfig, storage_url: str) -> None:
    create_or_join(make_config(storage=storage_url), FINGERPRINT)
    with pytest.raises(NoStudy, match="no study 'other'"):
        join(make_config("name=other", storage=storage_url))


def test_the_summary_counts_slots_not_attempts(make_config: MakeConfig, storage_url: str) -> None:
    slots = create_or_join(make_config("study.n_trials=5", storage=storage_url), FINGERPRINT)
    freed = slots.claim("host:1")
    assert freed is not None
    slots.free(freed)
    for loss in (0.5, 0.3, 0.4):
        finish_next(slots, loss)
    pruned = slots.claim("host:1")
    assert pruned is not None
    suggest(pruned.trial, slots.config.space)
    for epoch, loss in enumerate((0.9, 0.2, 0.8)):
        pruned.trial.report(loss, epoch)
    slots.prune(pruned, "behind its peers")

    document = summary("sample", slots.records())
    assert document["n_trials"] == 5
    assert document["slots"] == {
        "waiting": 1,
        "running": 0,
        "complete": 3,
        "pruned": 1,
        "failed": 0,
    }
    assert (document["best"]["slot"], document["best"]["value"]) == (1, 0.3)
    assert document["best"]["params"]["variant"] == "mobilenet_v2_frozen"
    assert document["baselines"][0] == {
        "name": "cnn",
        "slot": 0,
        "state": "complete",
        "value": 0.5,
    }
    record = slots.records()[3]
    assert (record.best_loss, record.best_epoch, record.reason) == (0.2, 1, "behind its peers")
    best = best_of(slots.records())
    assert best is not None
    assert best.number == 1
