"""The faces of a split, each as often as it was drawn: what every figure is computed from."""

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepfake.config import FAKE
from deepfake.metrics.calibration import Chosen, binned_error
from deepfake.metrics.classification import fake_probability, fake_score, predict

if TYPE_CHECKING:  # as in classification.py
    from torch import Tensor

_CHUNK = 250  # draws at once: as float64 they stay small
_ONE = 2**40  # 1 in fixed point: running sums of integers take a seventh of the time of floats

Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]


class Scored:
    """What one training says of each face of a split; every method gives (N,)."""

    def __init__(
        self, logits: "Tensor", labels: "Tensor", photos: NDArray[np.int64], chosen: Chosen | None
    ) -> None:
        """logits: (N, 2). photos: of each face, numbered from 0."""
        self.logits, self.labels, self.photos = logits, labels, photos
        self.chosen = chosen or Chosen(temperature=1.0, threshold=0.5)
        self.fake = labels.numpy() == FAKE
        self.says_fake = predict(logits).numpy() == FAKE

    def faces(self) -> NDArray[Any]:
        return np.ones(len(self.labels))

    def fakes(self) -> NDArray[Any]:
        return np.asarray(self.fake)

    def hits(self) -> NDArray[Any]:
        return np.asarray(self.fake & self.says_fake)

    def alarms(self) -> NDArray[Any]:
        return np.asarray(~self.fake & self.says_fake)

    def right_at_threshold(self) -> NDArray[Any]:
        said = predict(self.logits, self.chosen.threshold).numpy() == FAKE
        return np.asarray(self.fake == said)

    def losses(self) -> NDArray[Any]:
        return self._losses(1.0)

    def losses_scaled(self) -> NDArray[Any]:
        return self._losses(self.chosen.temperature)

    def squared_errors(self) -> NDArray[Any]:
        return np.asarray((fake_probability(self.logits) - self.labels) ** 2)

    def _losses(self, temperature: float) -> NDArray[Any]:
        from torch.nn import functional

        logits = self.logits.double() / temperature
        return np.asarray(functional.cross_entropy(logits, self.labels, reduction="none"))


OfFace = Callable[[Scored], NDArray[Any]]
_TOGETHER: tuple[OfFace, ...] = (  # what METRICS adds up; one product of matrices gives all
    Scored.faces,
    Scored.fakes,
    Scored.hits,
    Scored.alarms,
    Scored.right_at_threshold,
    Scored.losses,
    Scored.losses_scaled,
    Scored.squared_errors,
)


class Sums:
    """Sums over the faces of each draw, (draws,) each: so are all that a Summed computes."""

    def __init__(self, scored: Scored, draws: NDArray[np.uint16]) -> None:
        """draws: (draws, photos), how often each photo counts."""
        self._scored, self._draws = scored, draws
        self._known: dict[OfFace, Floats] = {}

    def sum(self, of_face: OfFace) -> Floats:
        if of_face not in self._known:
            wanted = _TOGETHER if of_face in _TOGETHER else (of_face,)
            of_photos = [
                np.bincount(
                    self._scored.photos,
                    of(self._scored).astype(np.float64),
                    self._draws.shape[1],
                )
                for of in wanted
            ]
            self._known |= zip(wanted, weighted(self._draws, of_photos), strict=True)
        return self._known[of_face]

    def mean(self, of_face: OfFace) -> Floats:
        return np.asarray(self.sum(of_face) / self.faces)

    @property
    def faces(self) -> Floats:
        return self.sum(Scored.faces)

    @property
    def fakes(self) -> Floats:
        return self.sum(Scored.fakes)

    @property
    def reals(self) -> Floats:
        return self.faces - self.fakes

    @property
    def hits(self) -> Floats:
        """Fakes taken for fake."""
        return self.sum(Scored.hits)

    @property
    def misses(self) -> Floats:
        """Fakes taken for real."""
        return self.fakes - self.hits

    @property
    def alarms(self) -> Floats:
        """Reals taken for fake."""
        return self.sum(Scored.alarms)

    @property
    def passed(self) -> Floats:
        """Reals taken for real."""
        return self.reals - self.alarms


def weighted(draws: NDArray[np.uint16], of_photos: Iterable[NDArray[Any]]) -> Floats:
    """(columns, draws): each column (photos,) added up over the photos of each draw."""
    columns = np.stack(list(of_photos), axis=1)
    parts = [draws[at : at + _CHUNK] @ columns for at in range(0, len(draws), _CHUNK)]
    return np.concatenate(parts).T


class Order:
    """A split's faces in ascending score, to be weighted in many ways."""

    def __init__(self, scored: Scored) -> None:
        scores = fake_score(scored.logits).numpy()
        order = np.argsort(scores, kind="stable")
        self.scores, self.chosen = scores[order], scored.chosen
        self.photos, self.fake = scored.photos[order], scored.fake[order].astype(np.int64)
        self.real = 1 - self.fake
        ends = np.flatnonzero(np.diff(self.scores, append=np.inf))
        self.ends = None if len(ends) == len(order) else ends  # None: no two are equal

    @cached_property
    def excess(self) -> _Ints:
        return self._excess(1.0)

    @cached_property
    def excess_scaled(self) -> _Ints:
        return self._excess(self.chosen.temperature)

    def _excess(self, temperature: float) -> _Ints:
        """P(FAKE) - label, in fixed point."""
        from scipy.special import expit

        of_face = np.rint((expit(self.scores / temperature) - self.fake) * _ONE)
        return np.asarray(of_face.astype(np.int64))


class Ranking:
    """The faces of one draw in groups of one score, ascending: what a Ranked computes from."""

    def __init__(self, order: Order, drawn: NDArray[np.uint16]) -> None:
        """drawn: (photos,), how often each counts."""
        self._order = order
        self._times = drawn.astype(np.int64)[order.photos]

    def upto(self, values: _Ints) -> _Ints:
        """(groups,): values (N,), in ascending score, added up to and with each group."""
        found = np.cumsum(self._times * values)
        ends = self._order.ends
        # take is three times as fast as [...], and sums of each group ten times as slow
        return found if ends is None else found.take(ends, mode="clip")

    @cached_property
    def fakes_upto(self) -> _Ints:
        return self.upto(self._order.fake)

    @cached_property
    def reals_upto(self) -> _Ints:
        return self.upto(self._order.real)

    @cached_property
    def faces_upto(self) -> _Ints:
        return self.fakes_upto + self.reals_upto

    @cached_property
    def fakes(self) -> _Ints:
        """Of each group."""
        return _steps(self.fakes_upto)

    @cached_property
    def reals(self) -> _Ints:
        return _steps(self.reals_upto)

    @cached_property
    def n_fakes(self) -> int:
        return int(self.fakes_upto[-1])

    @cached_property
    def n_reals(self) -> int:
        return int(self.reals_upto[-1])

    def calibration_error(self, *, scaled: bool) -> float:
        """scaled: by the temperature that validation chose."""
        excess = self._order.excess_scaled if scaled else self._order.excess
        return binned_error(self.faces_upto, self.upto(excess)) / _ONE


def _steps(upto: _Ints) -> _Ints:
    """np.diff from 0 on, in a third of its time."""
    found = upto.copy()
    found[1:] -= upto[:-1]
    return found
