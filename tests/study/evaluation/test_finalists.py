"""Finalists trained again: which, with which seeds, once, in a study of their own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from deepfake.errors import UserError
from deepfake.reproducibility import derive_seed
from study.config.fingerprint import StudyMismatch
from study.config.schema import StudyConfig
from study.config.siblings import final_of
from study.evaluation.finalists import (
    begin_final,
    contenders_of_final,
    contenders_of_search,
    diagnostics_of,
)
from study.search.space import suggest
from study.slots.slots import Slots
from study.slots.study import NoStudy, create_or_join, join
from study.slots.training import Training

FINGERPRINT = {"data crops (sha256)": "c" * 64, "study.seed": 0}
MakeConfig = Callable[..., StudyConfig]
# of slots 0 to 6; the first three are the baselines
LOSSES = (0.50, 0.69, 0.45, 0.60, 0.44, 0.48, 0.41)


def train(slots: Slots, losses: tuple[float, ...] | None = None) -> list[tuple[int, int]]:
    """Ends every slot; (number, training seed) of each."""
    seeds = []
    while (slot := slots.claim("host:1")) is not None:
        suggest(slot.trial, slots.config.space)
        loss = 0.5 if losses is None else losses[slot.number]
        slots.report(slot, 0, loss)
        slots.complete(slot, loss)
        seeds.append((slot.number, slot.training_seed(0)))
    return seeds


@pytest.fixture
def search(make_config: MakeConfig, storage_url: str) -> Slots:
    """Seven complete slots."""
    config = make_config(f"study.n_trials={len(LOSSES)}", storage=storage_url)
    slots = create_or_join(config, FINGERPRINT)
    train(slots, LOSSES)
    return slots


def test_the_best_drawn_trials_and_the_baselines_are_trained_once_with_each_seed(
    search: Slots,
) -> None:
    final = begin_final(search, top=2, seeds=2)
    reruns = [record.rerun for record in final.records()]
    one_round = ["slot 6", "slot 4", "cnn", "mobilenet_v2_frozen", "mobilenet_v2_finetuned"]
    assert [rerun.model for rerun in reruns if rerun] == one_round * 2
    assert [rerun.seed for rerun in reruns if rerun] == [0] * 5 + [1] * 5
    assert [rerun.slot for rerun in reruns if rerun][:5] == [6, 4, 0, 1, 2]
    params = {record.number: record.params for record in search.records()}
    for record in final.records():
        assert record.rerun is not None
        assert record.params == params[record.rerun.slot]


def test_a_final_study_neither_feeds_the_search_nor_counts_in_its_budget(search: Slots) -> None:
    train(begin_final(search, top=1, seeds=3))
    assert len(search.records()) == len(LOSSES)
    assert len(search.study.get_trials()) == len(LOSSES)
    join(search.config)  # the search's budget is still its own


def test_each_training_has_a_seed_that_no_other_has(search: Slots) -> None:
    numbers = range(len(LOSSES))
    seeds = [seed for _, seed in train(begin_final(search, top=3, seeds=5))]
    assert len(seeds) == (3 + 3) * 5
    of_search = {derive_seed(0, number) for number in numbers}
    assert len({*seeds, *of_search}) == len(seeds) + len(numbers)


def test_asked_again_the_study_is_the_same_and_with_more_it_grows(search: Slots) -> None:
    train(begin_final(search, top=1, seeds=2))
    again = begin_final(search, top=1, seeds=2)
    assert [record.state for record in again.records()] == ["complete"] * 8
    grown = begin_final(search, top=2, seeds=3)
    assert [record.state for record in grown.records()] == ["complete"] * 8 + ["waiting"] * 7
    assert {r.rerun for r in again.records()} <= {r.rerun for r in grown.records()}


def test_a_finalist_is_never_pruned_and_keeps_its_seed_when_its_worker_dies(
    search: Slots,
) -> None:
    final = begin_final(search, top=1, seeds=1)
    first = final.claim("host:1")
    assert first is not None
    assert first.fixed
    final.free_worker("host:1")
    second = final.claim("host:2")
    assert second is not None
    assert (second.number, second.attempt, second.rerun) == (first.number, 1, first.rerun)
    assert second.training_seed(0) == first.training_seed(0)


def test_those_who_failed_are_left_out_and_named(search: Slots) -> None:
    final = begin_final(search, top=1, seeds=2)
    slot = final.claim("host:1")
    assert slot is not None
    final.fail(slot, "the loss was not finite behind 0 finite epochs", retry=False)
    train(final)
    found, left_out = contenders_of_final(final, 1, 2, search)
    assert left_out == [
        "slot 6 seed 0 is left out (failed: the loss was not finite behind 0 finite epochs)"
    ]
    assert Training("slot 6", "candidate", 6, 0) not in [c.training for c in found]
    assert Training("slot 6", "candidate", 6, 1) in [c.training for c in found]
    assert len(found) == 7


def test_fewer_finalists_than_were_trained_are_those_that_were_asked_for(search: Slots) -> None:
    train(begin_final(search, top=3, seeds=3))
    final = join(final_of(search.config))
    found, left_out = contenders_of_final(final, 1, 2, search)
    assert {(c.training.model, c.training.seed) for c in found} == {
        (model, seed)
        for model in ("slot 6", "cnn", "mobilenet_v2_frozen", "mobilenet_v2_finetuned")
        for seed in (0, 1)
    }
    assert left_out == []


def test_without_seeds_the_searchs_own_trainings_stand(search: Slots) -> None:
    found = contenders_of_search(search, top=2)
    assert [contender.training for contender in found] == [
        Training("slot 6", "candidate", 6, 0),
        Training("slot 4", "candidate", 4, 0),
        Training("cnn", "baseline", 0, 0),
        Training("mobilenet_v2_frozen", "baseline", 1, 0),
        Training("mobilenet_v2_finetuned", "baseline", 2, 0),
    ]


def test_incumbents_are_those_that_were_the_best_when_their_number_came(search: Slots) -> None:
    found = diagnostics_of(search)
    assert [contender.training for contender in found] == [
        Training(f"incumbent {number}", "diagnostic", number, 0) for number in (0, 2, 4, 6)
    ]


def test_an_unfinished_search_has_no_finalists(make_config: MakeConfig, tmp_path: Path) -> None:
    slots = create_or_join(make_config("study.n_trials=4"), FINGERPRINT)
    with pytest.raises(UserError, match="has 4 unfinished slots; finish it first"):
        begin_final(slots, top=1, seeds=1)
    with pytest.raises(NoStudy):
        join(final_of(slots.config))


def test_finalists_of_a_search_that_is_gone_stand_for_no_trial_of_another(
    search: Slots,
) -> None:
    train(begin_final(search, top=1, seeds=1))
    name, storage = search.config.name, search._storage
    storage.delete_study(storage.get_study_id_from_name(name))
    again = create_or_join(search.config, FINGERPRINT)
    train(again, LOSSES)
    with pytest.raises(StudyMismatch, match=f"holds finalists of an earlier study '{name}'"):
        begin_final(again, top=1, seeds=1)
