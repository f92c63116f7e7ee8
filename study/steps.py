"""The steps of a stage, counted for a bar."""

from dataclasses import dataclass

from deepfake.parallel import Progress


def quiet(stage: str, done: int, total: int) -> None:
    """The Progress of who shows none."""


@dataclass
class Steps:
    """Tells progress from the first step on."""

    progress: Progress
    stage: str
    total: int
    done: int = 0

    def __post_init__(self) -> None:
        self.progress(self.stage, self.done, self.total)

    def advance(self, steps: int = 1) -> None:
        self.done += steps
        self.progress(self.stage, self.done, self.total)
