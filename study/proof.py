"""The proof of a logged objective: the same, computed again from the logged weights."""

from dataclasses import dataclass

from deepfake.config import TrainConfig
from deepfake.errors import UserError
from study.config import OBJECTIVES
from study.slots import SlotRecord

TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}  # of the objective, where bits may differ


class ProofFailed(UserError):
    """An objective recomputed from logged weights is not the logged one."""


@dataclass(frozen=True)
class Proof:
    """A logged objective, and the same computed again from the logged weights."""

    logged: float
    recomputed: float
    same_hardware: bool  # then the two are equal, bit for bit
    objective: str  # which loss: that of the study


def prove(
    record: SlotRecord, recomputed: float, train: TrainConfig, *, same_hardware: bool
) -> Proof:
    """Raises ProofFailed if the two are further apart than the hardware allows."""
    assert record.best_loss is not None
    proof = Proof(record.best_loss, recomputed, same_hardware, record.objective)
    # a frozen backbone's head was trained on stored features, in other batches than here
    exact = same_hardware and train.variant != "mobilenet_v2_frozen"
    tolerance = 0.0 if exact else TOLERANCE[train.precision]
    if not abs(proof.recomputed - proof.logged) <= tolerance:
        raise ProofFailed(
            f"slot {record.number}: its {OBJECTIVES[record.objective]} is {recomputed!r} when "
            f"computed again from the logged weights, {proof.logged!r} was logged; the weights "
            f"of run {record.run_id} or the crops have changed"
        )
    return proof
