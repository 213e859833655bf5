"""How figures look and how they are written: one style, colours that colour-blind readers can tell apart, PNG and SVG.

PNG for slides and SVG for print, equal bytes for equal data. Colours are those of Okabe and Ito; line styles differ
too, for print in grey.
"""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from lidc_cdam.files import replacing
from lidc_cdam.vocabulary import RESEARCH

FIGURES = "figures"
"""Folder of a run's figures."""
BLUE, ORANGE, GREEN, PINK, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#555555"
DPI = 200
STYLE: dict[str, Any] = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "legend.frameon": False,
    "svg.hashsalt": "lidc-cdam",
}
DIVERGING = LinearSegmentedColormap.from_list("signed", ["#00466e", BLUE, "#f7f7f7", ORANGE, "#7d3700"])
"""Blue below zero, orange above, zero neutral."""


def canvas(rows: int, columns: int, width: float, height: float, **grid: Any) -> tuple[Figure, list[Axes]]:
    """A figure of `width` x `height` inches with its panels in reading order; a strip below stays free."""
    strip = 0.1 / height
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(rect=(0, strip, 1, 1 - strip), w_pad=0.08))
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False, **grid).flat)


def save(figure: Figure, path: Path) -> list[Path]:
    """Write both forms without dates or versions; `path` has no ending."""
    figure.text(0.995, 0.004, RESEARCH, ha="right", va="bottom", fontsize=6.5, color=GREY)
    written = []
    for ending, options in (
        ("png", {"dpi": DPI, "metadata": {"Software": None}}),
        ("svg", {"metadata": {"Date": None}}),
    ):
        target = path.with_suffix(f".{ending}")
        with replacing(target) as temporary:
            figure.savefig(temporary, format=ending, **options)
        written.append(target)
    return written
