"""A slot that a worker has claimed, and how it is said that it is another's by now."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial

from deepfake.reproducibility import derive_seed
from study.records import Rerun

_FINAL = 2**32 + 1  # no slot's number


class SlotLost(Exception):
    """The slot was given to another worker, or finished by one: write nothing more for it."""


@dataclass(frozen=True)
class Slot:
    """A slot that this worker has claimed."""

    number: int
    attempt: int  # from 0; a killed, freed or failed attempt adds one
    baseline: str | None  # the name of the report's model whose parameters are fixed here
    trial: Trial
    rerun: Rerun | None = None  # in a final study

    @property
    def fixed(self) -> bool:
        """Its parameters were given: it is never pruned."""
        return self.baseline is not None or self.rerun is not None

    def training_seed(self, study_seed: int) -> int:
        """A finalist's differs from its slot's in the search, and from its other seeds'."""
        if self.rerun is None:
            return derive_seed(study_seed, self.number)
        return derive_seed(study_seed, _FINAL, self.rerun.slot, self.rerun.seed)


@contextmanager
def lost_if_finished(slot: Slot) -> Iterator[None]:
    try:
        yield
    except UpdateFinishedTrialError as error:
        raise lost(slot) from error


def lost(slot: Slot) -> SlotLost:
    return SlotLost(
        f"slot {slot.number}: attempt {slot.attempt} was given up; another worker has it"
    )
