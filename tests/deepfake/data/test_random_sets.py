"""Of random photos and annotations no face is cut wrongly, or left out, in silence.

By hand: .venv/bin/pytest -n0 tests/deepfake/data/test_random_sets.py --random-sets 10000 -s
"""

import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.support.random_sets import RandomSet, random_sets, try_set

CHECKS = (HealthCheck.too_slow, HealthCheck.data_too_large)


def test_a_crop_shows_its_face_or_the_face_is_named_or_all_is_refused(
    request: pytest.FixtureRequest,
) -> None:
    n_sets = request.config.getoption("--random-sets")
    counts: Counter[str] = Counter()

    @settings(
        max_examples=n_sets or 150,
        derandomize=n_sets is None,
        database=None,
        deadline=None,
        suppress_health_check=CHECKS,
    )
    @given(random_sets())
    def is_honest(random: RandomSet) -> None:
        with tempfile.TemporaryDirectory() as name:
            outcome = try_set(random, Path(name))
        assert outcome.faults == ()
        counts.update(sets=1, refused=outcome.refused is not None)
        counts.update(cut=outcome.cut, unclear=outcome.said, dropped=sum(outcome.dropped.values()))
        counts.update({f"dropped, {reason}": n for reason, n in outcome.dropped.items()})

    is_honest()
    print(dict(counts))
    assert counts["cut"] > counts["sets"] / 2  # it is not honest by refusing all
    assert counts["refused"] < counts["sets"] / 4
