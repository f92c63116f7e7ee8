from pathlib import Path

from study.slots import Slots


def write_report(slots: Slots, out: Path) -> Path: ...
