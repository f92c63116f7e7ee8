"""What a bench gives back: rows of one table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One figure. Its goal holds for the ratio where there is one, else for ours."""

    figure: str  # what was measured, with its unit
    ours: float
    usual: float | None = None  # the same done with the usual parts, in the same run
    ratio: float | None = None  # how many times better ours is, or what the figure says
    low: float | None = None
    high: float | None = None
    note: str = ""  # each repetition, a seed, what the usual parts are

    @property
    def goal(self) -> str:
        match self.low, self.high:
            case None, None:
                return ""
            case low, None:
                return f"at least {low:g}"
            case None, high:
                return f"at most {high:g}"
            case low, high:
                return f"{low:g} to {high:g}"
            case _:
                raise AssertionError(self)

    @property
    def is_met(self) -> bool:
        value = self.ours if self.ratio is None else self.ratio
        return (self.low is None or value >= self.low) and (
            self.high is None or value <= self.high
        )


def figure(value: float | None) -> str:
    """As the table prints it: four significant digits, no exponent."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
