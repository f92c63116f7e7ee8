"""LAUNCHERS: where workers can run, by the name that --launcher takes."""

from deepfake.errors import UserError
from study.launchers.base import Launcher, Placement
from study.launchers.local import Local
from study.launchers.ray import Ray
from study.launchers.slurm import Slurm

# a new one is a module with its class, and its entry here
LAUNCHERS: dict[str, type[Launcher]] = {"local": Local, "slurm": Slurm, "ray": Ray}


def launcher_named(name: str) -> type[Launcher]:
    """Raises UserError for a name that is none."""
    if name not in LAUNCHERS:
        *others, last = LAUNCHERS
        raise UserError(f"--launcher {name}: must be {', '.join(others)} or {last}")
    return LAUNCHERS[name]


def launcher_of(placement: Placement) -> Launcher:
    """Raises UserError for a name that is none, and for an option of another launcher."""
    kind, given = launcher_named(placement.launcher), placement.given()
    for name, other in LAUNCHERS.items():
        for option in other.takes:
            if option in given and option not in kind.takes:
                said = option.replace("_", "-")
                raise UserError(f"--{said} is for --launcher {name}, not {placement.launcher}")
    return kind(placement)
