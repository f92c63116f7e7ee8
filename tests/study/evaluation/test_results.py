"""What the study's database holds of an evaluation, read back."""

import re
from collections.abc import Callable

import pytest

from deepfake.errors import UserError
from study.config.schema import StudyConfig
from study.evaluation.results import Evaluation, evaluation_of
from study.slots.study import create_or_join


def test_an_evaluation_of_another_shape_is_refused_with_the_way_out(
    make_config: Callable[..., StudyConfig],
) -> None:
    slots = create_or_join(make_config(), {"study.seed": 0})
    assert evaluation_of(slots) is None
    whole = {"finalists": [], "diagnostics": [], "opening": None, "openings": 1}
    slots.set_attribute("evaluation", whole)
    assert evaluation_of(slots) == Evaluation([], [], None, 1)
    slots.set_attribute("evaluation", {**whole, "openings": "many"})
    name = re.escape(f"study '{slots.config.name}'")
    with pytest.raises(UserError, match=f"^{name}: .*'openings': .*deepfake-study evaluate") as e:
        evaluation_of(slots)
    assert "\n" not in str(e.value)
