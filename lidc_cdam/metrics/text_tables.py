"""Figures with their intervals as text, and tables of text for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

Entry = Mapping[str, Any]
"""A figure with its interval, as JSON has it (`intervals.Interval.as_dict`)."""


def cell(entry: Entry | None, form: str) -> str:
    """A figure with its interval, `12.2 [11.8, 12.7]`; a dash where there is none."""
    if entry is None or entry["value"] is None:
        return "-"
    ends = (entry["low"], entry["high"])
    told = "" if None in ends else f" [{', '.join(format(end, form) for end in ends)}]"
    return f"{entry['value']:{form}}{told}"


def aligned(rows: Sequence[Sequence[str]], head: Sequence[str]) -> list[str]:
    """Rows of cells under their heads, in columns."""
    cells = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
