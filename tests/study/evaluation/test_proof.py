"""The proof of a logged objective: how far apart two numbers may be, and what is said of them."""

import pytest

from deepfake.config import ImageSize, TrainConfig, VariantName
from study.evaluation.evaluator import ProofFailed, prove
from tests.study.report.test_report import record


def settings(variant: VariantName = "cnn") -> TrainConfig:
    size = ImageSize(cnn=32, mobilenet_v2=33)
    return TrainConfig(variant=variant, lr=1e-3, weight_decay=0, dropout=0.2, image_size=size)


def test_on_the_same_hardware_every_bit_counts_elsewhere_a_ten_thousandth_is_let_pass() -> None:
    logged = record(0, 0.7, 0.5)
    assert prove(logged, 0.5, settings(), same_hardware=True).recomputed == 0.5
    assert prove(logged, 0.50009, settings(), same_hardware=False).logged == 0.5
    with pytest.raises(ProofFailed):
        prove(logged, 0.5000001, settings(), same_hardware=True)
    with pytest.raises(ProofFailed):
        prove(logged, 0.5002, settings(), same_hardware=False)


def test_a_frozen_backbones_head_learned_in_other_batches_and_is_never_held_to_the_bit() -> None:
    frozen = settings("mobilenet_v2_frozen")
    assert prove(record(1, 0.5), 0.50001, frozen, same_hardware=True).same_hardware


def test_a_loss_that_is_not_a_number_proves_nothing() -> None:
    with pytest.raises(ProofFailed):
        prove(record(0, 0.5), float("nan"), settings(), same_hardware=False)


@pytest.mark.parametrize(
    ("objective", "named"),
    [
        ("val_loss", "slot 0: its validation loss is 0.9 when"),
        ("robust_val_loss", "slot 0: its validation loss under corruptions is 0.9 when"),
    ],
)
def test_a_proof_and_its_failure_name_the_loss(objective: str, named: str) -> None:
    logged = record(0, 0.5, objective=objective)
    assert prove(logged, 0.5, settings(), same_hardware=True).objective == objective
    with pytest.raises(ProofFailed, match=named):
        prove(logged, 0.9, settings(), same_hardware=True)
