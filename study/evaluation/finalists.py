"""The finalists: the best trials and the baselines, trained again with fresh seeds."""

from collections.abc import Collection
from dataclasses import dataclass

from deepfake.errors import UserError
from study.config import final_of
from study.slots import SlotRecord, Slots, Training, create_or_join, incumbents, ranked


@dataclass(frozen=True)
class Contender:
    """One trained model that is put before the test split."""

    training: Training
    record: SlotRecord
    slots: Slots  # the study that has the record


def begin_final(slots: Slots, top: int, seeds: int) -> Slots:
    """The study `<name>-final` with a slot for each finalist and seed: the best `top` trials of
    the search by its objective, and the baselines.

    Its slots neither feed the search nor count in its budget. Called again it is the same; with
    more of either it grows. Raises UserError if the search is not finished.
    """
    chosen = _chosen(slots, top)
    final = create_or_join(final_of(slots.config), slots.attributes()["fingerprint"])
    final.follow(slots)
    wanted = []
    for seed in range(seeds):  # a whole round of seeds before the next: what is done is even
        for record in chosen:
            assert record.params is not None
            wanted.append((_training_of(record, seed), record.params))
    final.add_reruns(wanted)
    return final


def contenders_of_final(
    final: Slots, top: int, seeds: int, search: Slots
) -> tuple[list[Contender], list[str]]:
    """Of the final study, those that begin_final wanted with these numbers; and a line for each
    of them that has no weights to show."""
    chosen = {record.number for record in _chosen(search, top)}
    found, left_out = contenders_of_reruns(final, chosen, seeds)
    return sorted(found, key=lambda c: (c.training.role != "candidate", c.record.number)), left_out


def contenders_of_reruns(
    reruns: Slots, chosen: Collection[int], seeds: int
) -> tuple[list[Contender], list[str]]:
    """Complete slots of the chosen ones of the search, by number, of the first seeds; and a line
    for each that is not complete. Raises UserError if none is."""
    found, left_out = [], []
    for record in reruns.records():
        rerun = record.rerun
        assert rerun is not None
        if rerun.slot not in chosen or rerun.seed >= seeds:
            continue
        if record.state == "complete":
            found.append(Contender(rerun, record, reruns))
        else:
            why = f"{record.state}: {record.reason}"
            left_out.append(f"{rerun.model} seed {rerun.seed} is left out ({why})")
    if not found:
        raise UserError(f"study '{reruns.config.name}': nothing is complete: {left_out[0]}")
    return found, left_out


def contenders_of_search(slots: Slots, top: int) -> list[Contender]:
    """The best trials and the baselines as the search trained them: one seed each."""
    return [of_search(slots, record) for record in _chosen(slots, top)]


def of_search(slots: Slots, record: SlotRecord) -> Contender:
    """A slot as the search trained it."""
    return Contender(_training_of(record, seed=0), record, slots)


def _training_of(record: SlotRecord, seed: int) -> Training:
    return Training(
        model=record.baseline or f"slot {record.number}",
        role="baseline" if record.baseline else "candidate",
        slot=record.number,
        seed=seed,
    )


def diagnostics_of(slots: Slots) -> list[Contender]:
    """The incumbents of a search, to show how far the choice by the objective carries on test."""
    found = incumbents(slots.records()) if slots.config.kind == "search" else []
    return [
        Contender(Training(f"incumbent {r.number}", "diagnostic", r.number, 0), r, slots)
        for r in found
    ]


def _chosen(slots: Slots, top: int) -> list[SlotRecord]:
    """The best that were drawn, by the objective, then the baselines; complete ones alone."""
    records = slots.records()
    unfinished = sum(not record.finished for record in records)
    if unfinished:
        raise UserError(
            f"study '{slots.config.name}' has {unfinished} unfinished slots; finish it first with:"
            " deepfake-study run CONFIG"
        )
    complete = [record for record in records if record.state == "complete"]
    if not complete:
        raise UserError(f"study '{slots.config.name}' has no complete slot to evaluate")
    drawn = ranked(record for record in complete if record.baseline is None)
    return [*drawn[:top], *(record for record in complete if record.baseline is not None)]
