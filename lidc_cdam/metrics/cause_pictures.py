"""Pictures of `evaluate --phantom` and `evaluate --claims`, from what their tables come to. PNG and SVG.

Zero, or chance, is always the neutral colour; every panel prints its limits on a bar of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lidc_cdam.drawing import DIVERGING, GREY, STYLE, canvas, save
from lidc_cdam.explain.registry import EXPLAINERS
from lidc_cdam.vocabulary import TARGETS

PANELS: tuple[tuple[str, str, float, float, str], ...] = (
    ("cause_mass_gain", "Mass on the cause, less chance", 0.0, 0.5, "{:+.2f}"),
    ("cause_in_nodule", "Level on the cause, in levels of the whole nodule", 1.0, 1.0, "{:.2f}"),
    ("sign_with_cause", "Sign on the cause agrees with its effect", 0.5, 0.5, "{:.2f}"),
    ("change_correlation", "Correlation of map's and output's change", 0.0, 1.0, "{:+.2f}"),
    ("size_correlation", "Correlation with the diameter's map", 0.0, 1.0, "{:+.2f}"),
)
"""Figure, title, neutral value, how far the colours reach on either side, format of a cell."""


def draw_causes(found: Mapping[str, Any], path: Path) -> list[Path]:
    """The methods' figures per biomarker as tables of colours, and what the outputs do.

    Args:
        found: as `causes_table.summarise` gives it.
        path: without its ending.

    Returns:
        The two files.
    """
    targets, methods = list(found["effects"]), list(found["methods"])
    outputs = [target for target in TARGETS if any(target in row for row in found["effects"].values())]
    height = 1.2 + 0.22 * max(len(methods), len(targets))

    def draw() -> Figure:
        figure, axes = canvas(3, 2, 11.0, 3 * height + 1.2)
        for panel, (name, title, middle, reach, form) in zip(axes, PANELS, strict=False):
            _colours(panel, _table(found["methods"], methods, targets, name), middle, reach, form)
            _name(panel, title, [EXPLAINERS[method].title for method in methods], _titles(targets))
        effects = np.array([[_value(found["effects"][key].get(target)) for target in outputs] for key in targets])
        _colours(axes[-1], effects, 0.0, 1.0, "{:+.1f}")
        _name(axes[-1], "No map: what the outputs do (own scale) as a cause grows", _titles(targets), _titles(outputs))
        axes[-1].set_ylabel("cause that grows")
        return figure

    return _styled(draw, path)


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Of methods, those of Okabe and Ito; further ones are drawn in grey."""
CONTROLS = {"random": "#999999", "centre": "#999999"}


def draw_claims(found: Mapping[str, Any], path: Path) -> list[Path]:
    """Mean level of each target's map against the signed distance from the consensus' surface.

    Args:
        found: as `claims_table.summarise` gives it.
        path: without its ending.

    Returns:
        The two files.
    """
    methods = found["methods"]
    targets = [key for key in TARGETS if key in next(iter(methods.values()))["profiles"]]
    edges, core, shell = found["profile_mm"], found["regions_mm"]["core_below"], found["regions_mm"]["shell_to"]
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    others = [name for name in methods if name not in CONTROLS]
    colours = {**CONTROLS, **{name: COLOURS[rank] if rank < len(COLOURS) else GREY for rank, name in enumerate(others)}}

    def draw() -> Figure:
        columns = min(3, len(targets))
        rows = -(-len(targets) // columns)
        figure, axes = canvas(rows, columns, 3.3 * columns + 0.4, 2.2 * rows + 0.7)
        for panel, target in zip(axes, targets, strict=False):
            panel.axvspan(core, shell, color="#eeeeee", zorder=0)
            panel.axhline(0, color="#777777", linewidth=0.7)
            for method, parts in methods.items():
                value, low, high = _curve(parts["profiles"][target])
                line = {"random": ":", "centre": "--"}.get(method, "-")
                label = EXPLAINERS[method].title
                panel.plot(middles, value, color=colours[method], linestyle=line, linewidth=1.4, label=label)
                if method in (*others[:1], *CONTROLS):
                    panel.fill_between(middles, low, high, color=colours[method], alpha=0.2, linewidth=0)
            panel.set_title(TARGETS[target].title, fontsize=9, loc="left")
            panel.set_xticks(range(-10, 11, 5))
        for panel in axes[len(targets) :]:
            panel.axis("off")
        figure.supxlabel("Signed distance from the readers' surface, mm (negative: inside; grey: shell)", fontsize=8.5)
        figure.supylabel("Level (mean signed / mean absolute score)", fontsize=8.5)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 6), fontsize=8)
        return figure

    return _styled(draw, path)


def _curve(entries: Sequence[Mapping[str, Any]]) -> tuple[list[float], ...]:
    """Values and ends of a profile; NaN where a bin has none."""
    return tuple(
        [float("nan") if entry[name] is None else float(entry[name]) for entry in entries]
        for name in ("value", "low", "high")
    )


def _table(
    found: Mapping[str, Any], rows: Sequence[str], columns: Sequence[str], name: str
) -> Float[np.ndarray, "row column"]:
    return np.array([[_value(found[row].get(column, {}).get(name)) for column in columns] for row in rows])


def _value(entry: Mapping[str, Any] | None) -> float:
    return float("nan") if entry is None or entry["value"] is None else float(entry["value"])


def _titles(keys: Sequence[str]) -> list[str]:
    return [TARGETS[key].title for key in keys]


def _colours(axes: Axes, values: Float[np.ndarray, "row column"], middle: float, reach: float, form: str) -> None:
    """A table of colours with its numbers and a bar that prints the limits."""
    image = axes.imshow(values, cmap=DIVERGING, vmin=middle - reach, vmax=middle + reach, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            strong = abs(value - middle) > 0.65 * reach
            axes.text(
                column, row, form.format(value), ha="center", va="center", color="w" if strong else "k", fontsize=7
            )
    assert axes.figure is not None
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01, ticks=[middle - reach, middle, middle + reach])
    bar.outline.set_linewidth(0.5)
    bar.ax.tick_params(labelsize=6.5, length=2)


def _name(axes: Axes, title: str, rows: Sequence[str], columns: Sequence[str]) -> None:
    axes.set_title(title, fontsize=8.5, loc="left")
    axes.set_yticks(range(len(rows)), list(rows), fontsize=7)
    axes.set_xticks(range(len(columns)), list(columns), fontsize=7, rotation=35, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _styled(draw: Callable[[], Figure], path: Path) -> list[Path]:
    """Draw in the house's style, a point smaller, and write both forms."""
    with style.context([STYLE, {"font.size": 8}]):
        return save(draw(), path)
