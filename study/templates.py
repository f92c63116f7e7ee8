"""Jinja templates filled in: the HTML report's, with its number formats, and Markdown's."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: Path, content: Mapping[str, Any]) -> str:
    """An HTML page; every text in content is escaped."""
    environment = _environment(template.parent, autoescape=True)
    environment.filters |= {
        "number": number,
        "share": share,
        "decimal": lambda value, decimals: f"{value:.{decimals}f}",
        "short": lambda sha: sha[:12],
        "clock": clock,
    }
    return environment.get_template(template.name).render(content)


def markdown(template: Path, content: Mapping[str, Any]) -> str:
    """A Markdown text; nothing is escaped."""
    environment = _environment(template.parent, keep_trailing_newline=True)
    return environment.get_template(template.name).render(content)


def _environment(folder: Path, **more: Any) -> Environment:
    return Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **more,
    )


def number(value: float | None) -> str:
    """Four decimals of a loss near 1, four digits of a large or a tiny one."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.4f}" if 0.01 <= abs(value) < 100 else f"{value:.3e}"


def share(value: float | None) -> str:
    """Two decimals, as the report prints its figures."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.2f}"


def clock(seconds: float | None) -> str:
    """1:02:03."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
