"""The Markdown that a study's parent run shows."""

from collections.abc import Callable

import pytest

from study.config.schema import StudyConfig
from study.config.siblings import final_of
from study.search.space import suggest
from study.slots.slots import Slots
from study.slots.study import create_or_join
from study.tracking.description import MOST_CHARACTERS, describe

MakeConfig = Callable[..., StudyConfig]


def figure(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def model(name: str, role: str, nll: float) -> dict[str, object]:
    figures = {"nll": figure(nll), "accuracy": figure(0.7), "auc": figure(0.8), "ece": None}
    return {"model": name, "role": role, "seeds": [0, 1, 2], "figures": figures}


@pytest.fixture
def slots(make_config: MakeConfig) -> Slots:
    """Three baselines, complete, and one slot of two that is better than each of them."""
    made = create_or_join(make_config("study.n_trials=5"), {})
    for loss in (0.5, 0.6, 0.7, 0.4):
        slot = made.claim("host:1")
        assert slot is not None
        suggest(slot.trial, made.config.space)
        made.report(slot, 0, loss)
        made.complete(slot, loss)
    return made


def test_before_test_is_opened_it_has_the_validation_losses_alone(slots: Slots) -> None:
    text = describe(slots)
    assert text.startswith("**Best trial: slot 3**")
    assert "validation loss 0.4000." in text.splitlines()[0]
    assert "| baseline cnn | 0 | 0.5000 | 0 | complete |" in text
    assert "| **best trial** | 3 | 0.4000 | 0 | complete |" in text
    assert "4 of 5 slots are finished: 4 complete, 0 pruned, 0 failed. The test split is" in text
    assert "on test" not in text


def test_behind_an_evaluation_the_verdicts_come_first(slots: Slots) -> None:
    analysis = {
        "faces": 89,
        "photos": 30,
        "best": "slot 3",
        "models": [
            model("cnn", "baseline", 0.45),
            model("slot 3", "candidate", 0.41),
            model("incumbent 0", "diagnostic", 0.45),
        ],
        "comparisons": [{"sentence": "slot 3 is better than cnn"}],
    }
    slots.set_attribute("evaluation", {"analysis": analysis})
    text = describe(slots)
    assert text.index("- slot 3 is better than cnn") < text.index("| on test |")
    cnn = "| cnn | 3 | 0.450 (0.350 to 0.550) | 0.700 (0.600 to 0.800) | 0.98 |"
    assert f"{cnn} 0.800 (0.700 to 0.900) | - |" in text  # the report's accuracy beside ours
    assert "| **slot 3** | 3 | 0.410 (0.310 to 0.510) |" in text
    assert "incumbent" not in text
    assert "89 test faces of 30 photos" in text


def test_a_study_without_a_result_says_how_far_it_is(make_config: MakeConfig) -> None:
    slots = create_or_join(make_config("study.n_trials=4"), {})
    text = describe(slots)
    assert "Best trial" not in text
    assert "| baseline cnn | 0 | - | - | waiting |" in text


def test_a_study_of_reruns_names_the_one_that_has_the_verdicts(make_config: MakeConfig) -> None:
    slots = create_or_join(final_of(make_config("study.n_trials=4")), {})  # without a slot yet
    assert "of study sample, whose run has the figures" in describe(slots)
    assert "Best trial" not in describe(slots)


def test_it_fits_into_a_tag_of_mlflow(slots: Slots) -> None:
    said = [{"sentence": "x" * 500}] * 30
    analysis = {"faces": 1, "photos": 1, "best": None, "models": [], "comparisons": said}
    slots.set_attribute("evaluation", {"analysis": analysis})
    assert len(describe(slots)) == MOST_CHARACTERS
