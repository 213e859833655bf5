"""Pictures of an evaluation, from its means and curves: curves with bands, matrices, and the methods side by side."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from lidc_cdam.drawing import BLUE, DIVERGING, FIGURES, GREEN, GREY, ORANGE, PINK, SKY, STYLE, canvas, save
from lidc_cdam.explain import EXPLAINERS
from lidc_cdam.metrics.comparison import ALL, CHANCES, TITLES
from lidc_cdam.vocabulary import TARGETS

PICTURES = f"{FIGURES}/explainers"
COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, "#E69F00", "#000000")
LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)))
CHANCE_OF = {
    "relevance_mass": "relevance_mass_chance",
    "relevance_rank": "relevance_mass_chance",
    "pointing_game": "relevance_mass_chance",
    "auprc": "auprc_chance",
    "relevance_mass_soft": "relevance_mass_soft_chance",
    "relevance_rank_soft": "relevance_rank_soft_chance",
}
AT_ZERO = ("fidelity", "fidelity_delta", "box", "box_delta")
"""Metrics whose chance level is 0."""
Look = dict[str, Any]


def draw_pictures(run: Path, comparison: Mapping[str, Any], curves: pd.DataFrame) -> list[Path]:
    """Draw what was measured.

    Args:
        run: the run's folder; pictures go to `RUN/figures/explainers`.
        comparison: what `comparison.compare` returns.
        curves: rows of `explainers_curves.csv`.

    Returns:
        The files written, PNG and SVG.
    """
    methods = comparison["methods"]
    plans: dict[str, Callable[[], Figure | None]] = {
        "perturbation_curves": lambda: _perturbation(curves[curves["curve"] != "r"]),
        "box_sensitivity": lambda: _boxes(curves[curves["curve"] == "r"]),
        "discrimination_fidelity": lambda: _matrices(methods, "fidelity", "A(LIF-MIF), output x percent"),
        "discrimination_box": lambda: _matrices(methods, "box", "A_box, correlation x percent"),
        "methods": lambda: _methods(methods),
        "sanity": lambda: _sanity(methods),
    }
    written: list[Path] = []
    for name, plan in plans.items():
        with style.context(["default", STYLE]):
            figure = plan()
            if figure is not None:
                written += save(figure, run / PICTURES / name)
    return written


def title_of(method: str) -> str:
    """A method's name for people."""
    return EXPLAINERS[method].title if method in EXPLAINERS else method


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """Colour and line of each method, the same in every picture."""
    known = [name for name in EXPLAINERS if name in methods]
    ordered = known + [name for name in methods if name not in known]
    places = {name: list(EXPLAINERS).index(name) if name in EXPLAINERS else len(EXPLAINERS) for name in ordered}
    return {
        name: {"color": COLOURS[place % len(COLOURS)], "linestyle": LINES[place // len(COLOURS) % len(LINES)]}
        for name, place in places.items()
    }


def _target_title(key: str) -> str:
    return "mean over targets" if key == ALL else TARGETS[key].title


def _perturbation(curves: pd.DataFrame) -> Figure | None:
    """Output along the order of each method's maps: a row a method, a column a target."""
    if curves.empty:
        return None
    methods = in_order(curves["method"].unique())
    targets = [target for target in curves["target"].unique() if target != ALL]
    figure, panels = canvas(
        len(methods), len(targets), 1.2 + 1.75 * len(targets), 0.8 + 1.45 * len(methods), sharex=True, sharey="col"
    )
    for place, (method, target) in enumerate((m, t) for m in methods for t in targets):
        axes, shown = panels[place], curves[(curves["method"] == method) & (curves["target"] == target)]
        for name, colour, words in (("lif", BLUE, "least important first"), ("mif", ORANGE, "most important first")):
            _band(axes, shown[shown["curve"] == name], {"color": colour, "label": words, "linestyle": "-"})
        axes.axhline(0, color=GREY, linewidth=0.5, zorder=0)
        if place < len(targets):
            axes.set_title(_target_title(target), fontsize=9)
        if place % len(targets) == 0:
            axes.set_ylabel(title_of(method), fontsize=8)
        axes.tick_params(labelsize=7)
    counts = curves["nodules"].unique()
    figure.supxlabel("Pixels replaced, %", fontsize=9)
    figure.suptitle(
        f"Change of the output (logit or z-score) as pixels are replaced; the area between the curves is the fidelity. "
        f"Bands: 95 % over patients, {_range(counts)} nodules",
        fontsize=9,
    )
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize=8)
    return figure


def _boxes(curves: pd.DataFrame) -> Figure | None:
    """r(b) of all methods, a panel a target."""
    if curves.empty:
        return None
    methods, look = in_order(curves["method"].unique()), looks(list(curves["method"].unique()))
    targets = [ALL, *(target for target in curves["target"].unique() if target != ALL)]
    figure, panels = _panels(len(targets), 2.6, 2.1, sharex=True, sharey=True)
    for axes, target in zip(panels, targets, strict=False):
        axes.axhline(0, color=GREY, linewidth=0.6)
        for method in methods:
            shown = curves[(curves["method"] == method) & (curves["target"] == target)]
            _band(axes, shown, {**look[method], "label": title_of(method)})
        axes.set_title(_target_title(target), fontsize=9)
    figure.supxlabel("Side of the box, % of the image's", fontsize=9)
    figure.supylabel("Correlation r(b) of score and drop of the output", fontsize=9)
    figure.suptitle(
        f"Box sensitivity; bands: 95 % over patients, {_range(curves['nodules'].unique())} nodules", fontsize=9
    )
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure


def _band(axes: Axes, rows: pd.DataFrame, look: Look) -> None:
    percent = rows["percent"].to_numpy()
    axes.plot(percent, rows["value"], linewidth=1.3, **look)
    axes.fill_between(percent, rows["low"], rows["high"], color=look["color"], alpha=0.15, linewidth=0)


def _matrices(methods: Mapping[str, Any], name: str, unit: str) -> Figure | None:
    """Each output under each target's map, a panel a method, all on one scale around zero."""
    found = {method: _matrix(targets, name) for method, targets in methods.items()}
    tables = {method: table for method, table in found.items() if table is not None and len(table) > 1}
    if not tables:
        return None
    limit = max(float(np.nanmax(np.abs(table.to_numpy()))) for table in tables.values()) or 1.0
    keys = list(next(iter(tables.values())).index)
    side = 1.3 + 0.28 * len(keys)
    figure, panels = _panels(len(tables), side + 0.5, side + 0.6)
    for axes, method in zip(panels, in_order(tables), strict=False):
        image = axes.imshow(tables[method].to_numpy(), cmap=DIVERGING, vmin=-limit, vmax=limit)
        axes.spines[:].set_visible(False)
        titles = [_target_title(key) for key in keys]
        axes.set_xticks(range(len(keys)), titles, rotation=90, fontsize=7)
        axes.set_yticks(range(len(keys)), titles, fontsize=7)
        delta = methods[method].get(ALL, {}).get(f"{name}_delta", {})
        axes.set_title(f"{title_of(method)}\n{_delta_words(method, delta)}", fontsize=8)
        axes.set_xlabel("map of", fontsize=7)
        axes.set_ylabel("output of", fontsize=7)
        for index in range(len(keys)):
            axes.add_patch(_frame(index))
    bar = figure.colorbar(image, ax=panels[: len(tables)], shrink=0.7, ticks=[-limit, 0, limit], format="%.3g")
    bar.set_label(unit, fontsize=8)
    figure.suptitle("Outputs under their own map (framed) and under those of other targets", fontsize=9)
    return figure


def _delta_words(method: str, delta: Mapping[str, Any]) -> str:
    if method in EXPLAINERS and not EXPLAINERS[method].targeted:
        return "one map for all: Delta = 0 by construction"
    if delta.get("low") is None:
        return ""
    return f"Delta {delta['value']:.2f} [{delta['low']:.2f}, {delta['high']:.2f}]"


def _frame(index: int) -> Rectangle:
    return Rectangle((index - 0.5, index - 0.5), 1, 1, fill=False, edgecolor="#000000", linewidth=1)


def _matrix(targets: Mapping[str, Any], name: str) -> pd.DataFrame | None:
    keys = [key for key in targets if key != ALL and f"{name}_by_{key}" in targets[key]]
    if not keys:
        return None
    values = [[targets[read][f"{name}_by_{own}"]["value"] for own in keys] for read in keys]
    return pd.DataFrame(np.array(values, dtype=np.float64), index=keys, columns=keys)


def _methods(methods: Mapping[str, Any]) -> Figure | None:
    """Every metric's mean over targets with its interval, a panel a metric, a row a method."""
    shown = [
        metric
        for metric in TITLES
        if metric not in CHANCES and any(metric in targets[ALL] for targets in methods.values())
    ]
    ordered = in_order(methods)[::-1]
    look = looks(ordered)
    figure, panels = _panels(len(shown), 2.2, 0.75 + 0.2 * len(ordered), sharey=True)
    for axes, metric in zip(panels, shown, strict=False):
        for row, method in enumerate(ordered):
            entry = methods[method][ALL].get(metric, {})
            if entry.get("value") is not None:
                axes.plot(entry["value"], row, "o", color=look[method]["color"], markersize=4)
                if entry["low"] is not None:
                    axes.hlines(row, entry["low"], entry["high"], color=look[method]["color"], linewidth=1.5)
            chance = methods[method][ALL].get(CHANCE_OF.get(metric, ""), {}).get("value")
            if chance is not None:
                axes.plot(chance, row, "|", color=GREY, markersize=7)
        if metric in AT_ZERO:
            axes.axvline(0, color=GREY, linewidth=0.7, zorder=0)
        axes.set_title(TITLES[metric][0], fontsize=9)
        axes.set_yticks(range(len(ordered)), [title_of(method) for method in ordered], fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_ylim(-0.6, len(ordered) - 0.4)
    figure.suptitle("Mean over targets with 95 % interval over patients; grey: chance", fontsize=9)
    return figure


def _sanity(methods: Mapping[str, Any]) -> Figure | None:
    """Rank correlation with the original map as weights are made random from the head down."""
    stages = list(
        dict.fromkeys(
            metric
            for targets in methods.values()
            for metric in targets[ALL]
            if metric.startswith("randomised_") and targets[ALL][metric]["value"] is not None
        )
    )
    stages.sort(key=_depth)
    if not stages:
        return None
    figure, (axes,) = canvas(1, 1, 5.6, 3.6)
    look = looks(list(methods))
    for method in in_order(methods):
        entries = [methods[method][ALL].get(stage, {}) for stage in stages]
        values, low, high = (
            np.array([np.nan if each.get(end) is None else each[end] for each in entries], dtype=np.float64)
            for end in ("value", "low", "high")
        )
        if not np.isnan(values).all():
            axes.plot(values, linewidth=1.3, label=title_of(method), **look[method])
            axes.fill_between(range(len(stages)), low, high, color=look[method]["color"], alpha=0.15, linewidth=0)
    axes.axhline(0, color=GREY, linewidth=0.6)
    words = [stage.removeprefix("randomised_").replace("_", " ") for stage in stages]
    axes.set_xticks(range(len(stages)), words, rotation=60, ha="right", fontsize=8)
    axes.set(ylabel="Rank correlation with the original map", ylim=(-0.35, 1.03))
    axes.set_title("Weights made random from the head down to ...", fontsize=9)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _depth(metric: str) -> int:
    """Order of the stages, from the head down."""
    stage = metric.removeprefix("randomised_")
    if stage == "head":
        return -(10**6)
    return 0 if stage == "embedding" else -int(stage.removeprefix("block_"))


def _panels(count: int, width: float, height: float, **grid: Any) -> tuple[Figure, list[Axes]]:
    """A grid of at least `count` panels of one size; those left over are blank."""
    columns = min(count, max(2, round(count**0.5 + 0.49)), 5)
    rows = -(-count // columns)
    figure, panels = canvas(rows, columns, 1.6 + width * columns, 0.9 + height * rows, **grid)
    for axes in panels[count:]:
        axes.set_visible(False)
    for axes in panels[max(0, count - columns) : count]:
        axes.tick_params(labelbottom=True)
    return figure, panels


def in_order(methods: Iterable[str]) -> list[str]:
    """Methods in the registry's order; what is unknown comes last."""
    given = list(methods)
    return [name for name in EXPLAINERS if name in given] + [name for name in given if name not in EXPLAINERS]


def _range(counts: Any) -> str:
    smallest, largest = int(min(counts)), int(max(counts))
    return f"{smallest}" if smallest == largest else f"{smallest} to {largest}"
