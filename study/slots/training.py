"""What a slot, a row of predictions and a figure are of; read without Optuna, so apart."""

from dataclasses import dataclass
from typing import Literal, get_args

Role = Literal["baseline", "candidate", "diagnostic"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Training:
    """One training of what a slot of the search drew, or was given: the search's own, or again."""

    model: str  # the baseline's name, "slot N", or "incumbent N"
    role: Role
    slot: int  # of the search
    seed: int  # from 0
