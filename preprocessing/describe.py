"""`cohort --describe`: how a finished cohort came about, as text and as a figure for a paper."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import pandas as pd

from lidc_cdam import artifacts
from lidc_cdam.files import replacing
from lidc_cdam.progress import say
from preprocessing.annotations import load_scans
from preprocessing.flow import Flow, Step, counted, flow_lines, flow_of
from preprocessing.selection import Selection

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURES = ("flow.svg", "flow.png")
DOTS_PER_INCH = 300
WIDTH, MARGIN, GAP, PAD, LINE = 7.2, 0.06, 0.17, 0.09, 0.155
"""Inches: the figure (two columns of a journal), around it, between boxes, inside a box, a line of text."""
TRUNK, TRUNK_WIDTH, SIDE = 1.71, 3.3, 3.75
"""Inches: middle and width of the main boxes, left edge of those beside them."""
SIDE_LETTERS = 52
POINTS = 8.0
INK = 0.8
"""Width of lines, points."""


def describe_cohort(out: Path, preset: str, selection: Selection) -> None:
    """Print the flow of a finished cohort and draw it beside its tables.

    Raises:
        LidcCdamError: a table is missing or damaged.
    """
    table = artifacts.read_cohort(out)
    excluded = artifacts.read_table(out / artifacts.EXCLUDED, artifacts.EXCLUDED_COLUMNS, "cohort")
    flow = flow_of(table, excluded, load_scans(), selection)
    say(f"Flow of {out} (preset {preset}, rules {selection.digest[:12]}):")
    for line in (*flow_lines(flow), *_facts(table)):
        say(f"  {line}")
    draw(flow, out)
    say(f"Drawn in {out}: {', '.join(FIGURES)}.")


def _facts(table: pd.DataFrame) -> list[str]:
    """What else a reader of the cohort asks first."""
    if table.empty:
        return []
    per_patient = table["patient_id"].value_counts()
    diameters = table["diameter"]
    lines = [
        f"patients with several of them: {int((per_patient > 1).sum())}; most in one patient: {per_patient.max()}",
        f"mean diameter {diameters.min():.1f} to {diameters.max():.1f} mm, median {diameters.median():.1f} mm",
    ]
    if {"slice_thickness_mm", "slice_spacing_mm"} <= set(table.columns):
        thick, step = table["slice_thickness_mm"], table["slice_spacing_mm"]
        overlapping = int((thick > step * 1.01).sum())
        lines.append(
            f"slices {thick.min():g} to {thick.max():g} mm thick, {step.min():g} to {step.max():g} mm apart; "
            f"{overlapping} nodules lie on overlapping slices"
        )
    return lines


def draw(flow: Flow, out: Path) -> None:
    """Write the flow as `flow.svg` and `flow.png` (300 dots per inch): black on white, two columns wide."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # A fixed salt and no date give the same bytes each time.
    with mpl.rc_context({"svg.hashsalt": "lidc-cdam", "font.family": "DejaVu Sans", "font.size": POINTS}):
        figure = Figure()
        axes = figure.add_axes((0, 0, 1, 1))
        bottom = _draw_boxes(axes, flow) + MARGIN
        figure.set_size_inches(WIDTH, bottom)
        axes.set(xlim=(0, WIDTH), ylim=(bottom, 0))
        axes.set_axis_off()
        for name in FIGURES:
            with replacing(out / name) as temporary:
                metadata = {"Date": None} if name.endswith("svg") else {"Software": None}
                figure.savefig(temporary, dpi=DOTS_PER_INCH, facecolor="white", metadata=metadata)


def _draw_boxes(axes: "Axes", flow: Flow) -> float:
    """Draw all boxes in inches from the upper left; returns where the last ones end."""
    unread = f"{flow.scans - flow.outlined_scans} scans without a nodule of 3 mm or more"
    scans = f"{counted(flow.scans, 'CT scan')} of {counted(flow.patients, 'patient')}"
    readings = [
        f"{counted(flow.readings, 'reading')} in {counted(flow.outlined_scans, 'scan')}",
        f"grouped by {flow.clustering} into",
        str(flow.outlined),
        *((flow.crowded,) if flow.crowded else ()),
    ]
    y = _box(axes, TRUNK, MARGIN, TRUNK_WIDTH, ["LIDC-IDRI", scans])
    y = _branches(axes, y, [[unread]])
    y = _box(axes, TRUNK, y, TRUNK_WIDTH, readings)
    y = _branches(axes, y, [_side_text(step) for step in flow.steps])
    y = _box(axes, TRUNK, y, TRUNK_WIDTH, ["Chosen", str(flow.chosen)])
    fork, top = y + GAP, y + 2 * GAP
    _line(axes, (TRUNK, y), (TRUNK, fork))
    width = (WIDTH - 2 * MARGIN - 2 * GAP) / 3
    middles = [MARGIN + width / 2 + number * (width + GAP) for number in range(len(flow.labels))]
    _line(axes, (middles[0], fork), (middles[-1], fork))
    for middle, (label, tally) in zip(middles, flow.labels.items(), strict=True):
        _arrow(axes, (middle, fork), (middle, top))
        y = _box(axes, middle, top, width, [label[0].upper() + label[1:], str(tally)])
    return y


def _side_text(step: Step) -> list[str]:
    """The heading of what a rule leaves out, then its reasons, wrapped."""
    if len(step.reasons) == 1:
        return wrap(f"Left out: {counted(step.nodules, 'nodule')} ({next(iter(step.reasons))})", SIDE_LETTERS)
    lines = [f"Left out by {step.title}: {counted(step.nodules, 'nodule')}"]
    for reason, number in step.reasons.items():
        lines += wrap(f"{number}  {reason}", SIDE_LETTERS, initial_indent="  ", subsequent_indent="      ")
    return lines


def _branches(axes: "Axes", y: float, texts: Sequence[Sequence[str]]) -> float:
    """Boxes beside the line from a main box down to the next; returns where that one begins."""
    start, width = y, WIDTH - MARGIN - SIDE
    for lines in texts:
        top = y + GAP
        y = _box(axes, SIDE + width / 2, top, width, lines, left=True)
        _arrow(axes, (TRUNK, (top + y) / 2), (SIDE, (top + y) / 2))
    _arrow(axes, (TRUNK, start), (TRUNK, y + GAP))
    return y + GAP


def _box(axes: "Axes", middle: float, top: float, width: float, lines: Sequence[str], left: bool = False) -> float:
    """A box with its lines, the first in bold where there are more; returns its lower edge."""
    from matplotlib.patches import Rectangle

    height = len(lines) * LINE + 2 * PAD
    axes.add_patch(Rectangle((middle - width / 2, top), width, height, facecolor="white", edgecolor="black", lw=INK))
    for number, line in enumerate(lines):
        axes.text(
            middle - width / 2 + PAD if left else middle,
            top + PAD + (number + 0.5) * LINE,
            line,
            ha="left" if left else "center",
            va="center_baseline",
            weight="bold" if number == 0 and len(lines) > 1 else "normal",
        )
    return top + height


def _line(axes: "Axes", start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.plot(*zip(start, end, strict=True), color="black", lw=INK, solid_capstyle="butt")


def _arrow(axes: "Axes", start: tuple[float, float], end: tuple[float, float]) -> None:
    style = {"arrowstyle": "-|>", "color": "black", "lw": INK, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8}
    axes.annotate("", xy=end, xytext=start, arrowprops=style)
