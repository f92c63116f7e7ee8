"""What a user does to a study that is there: a larger budget, a trial of his own, its end."""

import itertools
import json
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from deepfake.errors import ConfigError
from study.config.fingerprint import StudyMismatch, flattened
from study.config.schema import StudyConfig
from study.search.space import suggest
from study.slots.budget import (
    StudyStopped,
    check_stopped,
    check_trials,
    enqueue,
    given_params,
    grow,
    is_stopped,
    lift_stop,
    stop_study,
)
from study.slots.slots import Slots
from study.slots.study import create_or_join, join
from study.storage.rdb import Storage
from tests.e2e.test_study import checkpoints, curve, wait_for
from tests.support.exact import assert_exact
from tests.support.forked import forks
from tests.support.runs import Folder, without_frozen

MakeConfig = Callable[..., StudyConfig]
OWN = "variant=cnn,lr=3e-4,weight_decay=1e-5,dropout=0.3"


def created(config: StudyConfig) -> Slots:
    space = {"space": config.space.model_dump(mode="json")}
    return create_or_join(config, dict(flattened(space)))


def test_a_budget_grown_by_hand_outlives_the_number_of_the_yaml(
    make_config: MakeConfig, storage_url: str
) -> None:
    config = make_config("study.n_trials=4", storage=storage_url)
    assert grow(created(config), "+2") == 6
    assert len(created(config).records()) == 6  # a worker with the YAML as it was
    assert grow(join(config), "+2") == 8
    assert grow(join(config), "8") == 8
    with pytest.raises(StudyMismatch, match=r"--trials 7: study 'sample' has 8 slots already"):
        grow(join(config), "7")
    larger = make_config("study.n_trials=9", storage=storage_url)
    assert len(created(larger).records()) == 9
    with pytest.raises(StudyMismatch, match=r"has 9 slots already, study\.n_trials says 4"):
        created(config)  # beyond what was grown by hand the YAML rules, as ever


@pytest.mark.parametrize("trials", ["", "+", "-3", "2.5", "many", "+2h", "+0", "0"])
def test_a_budget_that_is_no_number_is_refused(trials: str, make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"must be a number of slots, such as 40, or \+20"):
        check_trials(trials, make_config())


def test_a_budget_below_the_yamls_is_refused_before_there_is_a_study(
    make_config: MakeConfig,
) -> None:
    with pytest.raises(ConfigError, match=r"--trials 5: study\.n_trials says 6"):
        check_trials("5", make_config("study.n_trials=6"))
    with pytest.raises(ConfigError, match=r"--trials \+999999: 100,000 are the most"):
        check_trials("+999999", make_config())


def test_an_enqueued_trial_is_an_ordinary_slot_with_its_own_parameters(
    make_config: MakeConfig, storage_url: str
) -> None:
    config = make_config("study.n_trials=4", storage=storage_url)
    slots = created(config)
    params = given_params(OWN, config.space)
    assert enqueue(slots, params) == 4
    assert enqueue(join(config), params) == 5
    again = created(config)  # as a worker with the YAML as it was
    assert [record.params for record in again.records()[3:]] == [None, params, params]
    for _ in range(4):
        other = again.claim("host:1")
        assert other is not None
        suggest(other.trial, config.space)
        again.complete(other, 0.5)
    own = again.claim("host:1")
    assert own is not None
    assert (own.number, own.fixed, own.baseline) == (4, False, None)  # it may be pruned
    assert suggest(own.trial, config.space) == params
    again.free(own)
    own = again.claim("host:2")
    assert own is not None
    assert (own.number, own.attempt) == (4, 1)
    assert suggest(own.trial, config.space) == params


def grow_and_enqueue(config: StudyConfig) -> None:
    """In a process of its own, beside workers that fill what is missing."""
    slots = join(config)
    for _ in range(3):
        enqueue(slots, given_params(OWN, config.space))
        grow(slots, "+1")
        created(config).repair()


@pytest.mark.slow
def test_budgets_grown_at_once_lose_and_double_nothing(make_config: MakeConfig) -> None:
    config = make_config("study.n_trials=4")
    created(config)
    with ProcessPoolExecutor(4, mp_context=forks()) as pool:
        list(pool.map(grow_and_enqueue, [config] * 4))
    records = created(config).records()
    assert [record.number for record in records] == list(range(4 + 4 * 3 * 2))
    own = [record for record in records if record.params and record.baseline is None]
    assert len(own) == 4 * 3


def grow_and_die(config: StudyConfig, writes: int) -> None:
    """Killed as soon as it has written so often to the database."""
    slots, outlive, written = join(config), Storage._outlive, itertools.count(1)

    def deadly(self: Storage, call: Callable[[], Any]) -> Any:
        found = outlive(self, call)
        if not self.reading.on and next(written) == writes:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    Storage._outlive = deadly  # type: ignore[method-assign,assignment]
    grow(slots, "+600")  # more than are written at once


@pytest.mark.slow
@pytest.mark.parametrize("writes", [1, 2, 3])
def test_whoever_grows_a_study_and_is_killed_leaves_it_whole(
    make_config: MakeConfig, storage_url: str, writes: int
) -> None:
    config = make_config("study.n_trials=4", storage=storage_url)
    created(config)
    process = forks().Process(target=grow_and_die, args=(config, writes))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    left = join(config)  # who looks at it as it is: nobody has mended it yet
    assert len(left.records()) == left.attribute("n_trials")
    n_trials = len(created(config).records())  # nor has a worker anything to add or to refuse
    assert n_trials == len(left.records())
    assert grow(join(config), "+3") == n_trials + 3
    assert [record.number for record in join(config).records()] == list(range(n_trials + 3))


def test_enqueue_refuses_a_space_that_is_not_the_studys(make_config: MakeConfig) -> None:
    created(make_config())
    wider = make_config("space.lr.high=0.5")
    params = given_params("variant=cnn,lr=0.4,weight_decay=1e-5,dropout=0.3", wider.space)
    with pytest.raises(StudyMismatch, match=r"space\.lr\.high was 0\.01, is 0\.5"):
        enqueue(join(wider), params)


WRONG_PARAMS = {
    "variant=cnn,lr=3e-4": "weight_decay, dropout missing; a trial needs all of them",
    "": "variant, lr, weight_decay, dropout missing",
    "variant=cnn,learning_rate=1": "unknown key 'learning_rate'; did you mean 'lr'?",
    "colour=red": "unknown key 'colour'; known here: dropout, lr, variant, weight_decay",
    "augment_p=0.5": "unknown key 'augment_p'",
    "variant=cnn,lr": "--params 'lr': must be key=value, such as lr=3e-4",
    "lr=1e-3,lr=1e-4": "'lr' is named twice",
    f"{OWN},dropout=0.2": "'dropout' is named twice",
    OWN.replace("cnn", "resnet"): "'variant': Input should be 'cnn'",
    OWN.replace("3e-4", "fast"): "'lr': Input should be a number",
    OWN.replace("3e-4", "nan"): "'lr': Input should be a finite number",
    OWN.replace("3e-4", "-1"): "'lr': Input should be greater than 0",
    OWN.replace("3e-4", "5"): r"outside the space: lr 5 is not in [",
    OWN.replace("0.3", "1"): "'dropout': Input should be less than 1",
}


@pytest.mark.parametrize("text", WRONG_PARAMS)
def test_wrong_parameters_are_said_in_one_line(text: str, make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError) as error:
        given_params(text, make_config().space)
    assert str(error.value).startswith("--params")
    assert WRONG_PARAMS[text] in str(error.value)
    assert "\n" not in str(error.value)


def test_what_the_space_fixes_may_be_left_out(make_config: MakeConfig) -> None:
    space = make_config().space.model_copy(update={"dropout": 0.5})
    params = given_params("variant=cnn, lr=3e-4, weight_decay=1e-5", space)
    assert (params.variant, params.lr, params.dropout) == ("cnn", 3e-4, 0.5)


def test_where_augment_p_is_drawn_a_trial_needs_it(make_config: MakeConfig) -> None:
    drawn = ("augment={flip: {p: 0.5}}", "space.augment_p={low: 0.0, high: 1.0}")
    space = make_config(*drawn).space
    with pytest.raises(ConfigError, match="augment_p missing"):
        given_params(OWN, space)
    assert given_params(f"{OWN},augment_p=0.25", space).augment_p == 0.25


def test_a_stop_is_seen_by_who_joined_before_and_lifted_once(
    make_config: MakeConfig, storage_url: str
) -> None:
    slots = created(make_config("study.n_trials=3", storage=storage_url))
    check_stopped(slots)
    other = join(slots.config)
    other.claim("host:1")
    assert stop_study(other) == 1  # slot that runs
    with pytest.raises(StudyStopped, match="study 'sample' was stopped by `stop`"):
        check_stopped(slots)
    assert (lift_stop(slots), lift_stop(slots), is_stopped(other)) == (True, False, False)


def test_a_finished_study_is_not_stopped(make_config: MakeConfig) -> None:
    slots = created(make_config("study.n_trials=3"))
    while (slot := slots.claim("host:1")) is not None:
        suggest(slot.trial, slots.config.space)
        slots.complete(slot, 0.5)
    assert stop_study(slots) is None
    assert not is_stopped(slots)


# with real workers

ENDLESS = ("train.max_epochs=400", "train.stop_patience=399")


def one_line(folder: Folder, name: str, *options: str) -> str:
    done = folder.call(name, *options)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.slow
def test_a_finished_study_takes_two_more_slots_and_an_enqueued_one(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 24, "study.n_trials=3", "train.max_epochs=1")
    assert "no study was started here yet" in one_line(folder, "enqueue", "--params", OWN)
    assert "no study was started here yet" in one_line(folder, "stop")
    assert "--trials 2: study.n_trials says 3" in one_line(folder, "run", "--trials", "2")
    assert folder.run("run").returncode == 0
    assert "there is nothing to stop" in folder.run_afresh("stop").stdout

    more = folder.run("run", "--trials", "+2", "--json")
    assert more.returncode == 0, more.stderr
    assert "study 'sample' has 5 slots now" in more.stderr
    assert "2 of 5 slots to run; continue with: deepfake-study run" in more.stderr
    assert "--trials" not in more.stderr  # continued, it must not grow again
    assert json.loads(more.stdout)["n_trials"] == 5
    assert_exact(folder, 5)

    added = folder.json("enqueue", "--params", OWN)
    assert (added["slot"], added["n_trials"], added["params"]["lr"]) == (5, 6, 3e-4)
    worker = folder.run("worker", "--device", "cpu")  # the YAML says 3
    assert worker.returncode == 0, worker.stderr
    assert_exact(folder, 6)
    assert join(folder.study_config()).records()[5].params == given_params(
        OWN, folder.study_config().space
    )


@pytest.mark.slow
def test_a_run_whose_time_is_over_ends_cleanly_and_goes_on_later(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 24, "study.n_trials=3", *ENDLESS)
    run = folder.run("run", "--timeout", "25s", "--workers", "1")
    assert run.returncode == 0, run.stderr
    assert "stopped by --timeout; continue with: deepfake-study run" in run.stderr
    assert "--timeout 25s" in run.stderr
    slots = folder.json("status")["slots"]
    assert (slots["running"], slots["failed"]) == (0, 0)
    assert slots["waiting"] > 0

    worker = folder.run("worker", "--timeout", "8", "--device", "cpu")
    assert worker.returncode == 0, worker.stderr
    assert "stopped by --timeout" in worker.stderr
    assert folder.json("status")["slots"]["running"] == 0


@pytest.mark.slow
def test_stop_ends_two_workers_behind_their_epochs_and_run_goes_on(tmp_path: Path) -> None:
    whole = ("train.max_epochs=30", "train.stop_patience=29", "study.prune_patience=29")
    slow = ("study.n_trials=3", *whole, *without_frozen(tmp_path))
    undisturbed = Folder(tmp_path / "undisturbed", 24, *slow)
    assert undisturbed.run("run").returncode == 0

    folder = Folder(tmp_path / "stopped", 24, *slow)
    run = folder.start("run", "--workers", "1")
    wait_for(lambda: any(folder.path.glob("mlruns/checkpoints/sample/logs/*.log")))
    lone = folder.start("worker", "--device", "cpu")
    wait_for(lambda: len({path.parent for path in checkpoints(folder)}) > 1)
    assert folder.json("stop")["stopped"]
    _, errors = run.communicate(timeout=100)
    assert run.returncode == 0, errors
    assert "stopped by `stop`; continue with: deepfake-study run" in errors
    assert "another starts" not in errors
    _, errors = lone.communicate(timeout=100)
    assert lone.returncode == 0, errors
    assert "study 'sample' was stopped by `stop`; continue with: deepfake-study run" in errors
    late = folder.run("worker", "--device", "cpu")  # a cluster may start it again
    assert (late.returncode, "was stopped by `stop`" in late.stderr) == (0, True)

    slots = join(folder.study_config())
    left = [record for record in slots.records() if not record.finished]
    assert left
    for record in left:
        kept = [path for path in checkpoints(folder) if f"slot_{record.number:03d}" in str(path)]
        assert record.state == "waiting"
        assert bool(kept) == bool(record.losses)  # what was reported can be resumed
    assert folder.json("enqueue", "--params", OWN)["slot"] == 3

    again = folder.run("run", "--workers", "2")
    assert again.returncode == 0, again.stderr
    assert "study 'sample' was stopped by `stop`; it goes on" in again.stderr
    assert_exact(folder, 4)
    for slot in range(3):
        assert curve(folder, slot) == curve(undisturbed, slot)  # no epoch lost or doubled
