"""Figures of a run, from its files alone: ROC, reliability, biomarkers against the readers, learning curves.

PNG for slides and SVG for print, equal bytes for equal files. Colours are those of Okabe and Ito, which colour-blind
readers can tell apart; line styles differ too, for print in grey.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lidc_cdam.artifacts import PREDICTIONS, SUMMARY, predicted_keys, read_predictions
from lidc_cdam.drawing import BLUE, FIGURES, GREEN, GREY, ORANGE, PINK, SKY, STYLE, canvas, save
from lidc_cdam.files import read_json
from lidc_cdam.metrics.intervals import draw_weights
from lidc_cdam.progress import track
from lidc_cdam.runs import fold_numbers
from lidc_cdam.vocabulary import MALIGNANCY, TARGETS
from training.baselines import baseline_path
from training.bottleneck import FILE as BOTTLENECK
from training.fit import HISTORY
from training.results import told_interval

COLOURS, MARKERS = (BLUE, ORANGE, GREEN, PINK, SKY, GREY), "osD^vP"
"""Of the folds."""
REPLICATES = 500
GRID = 201
"""Points of the ROC band along the false positive rate."""
LEGENDS = {
    "model": ("model", BLUE, "-"),
    "bottleneck": ("concept bottleneck", PINK, (0, (5, 1))),
    "radiomics": ("radiomics of the mask", ORANGE, (0, (4, 2))),
    "readers_logistic": ("logistic on readers' biomarkers", GREEN, (0, (1, 1))),
    "ruler": ("readers' mean diameter", GREY, (0, (4, 1, 1, 1))),
}
"""Words, colour and line style of each curve of the ROC."""

Column = Float[np.ndarray, " nodule"]
Curve = Float[np.ndarray, "2 point"]


def draw_figures(run: Path, cohort: pd.DataFrame) -> list[Path]:
    """Draw what a run's files allow.

    Args:
        run: folder with `predictions.csv`, `summary.json` and finished folds.
        cohort: the cohort table, for diameters and the readers' spread.

    Returns:
        The files written, `RUN/figures/<name>.png` and `.svg`.
    """
    predictions, summary = read_predictions(run / PREDICTIONS), read_json(run / SUMMARY)
    plans: dict[str, Callable[[], Figure | None]] = {
        "roc": lambda: _roc(run, predictions, cohort, summary),
        "reliability": lambda: _reliability(predictions, summary),
        "biomarkers": lambda: _biomarkers(predictions, cohort, summary),
        "learning_curves": lambda: _learning_curves(run),
    }
    written: list[Path] = []
    for name, plan in track(plans.items(), "Drawing figures", len(plans)):
        with style.context(["default", STYLE]):
            figure = plan()
            if figure is not None:
                written += save(figure, run / FIGURES / name)
    return written


def roc_curve(scores: Column, labels: Column, weights: Float[np.ndarray, " nodule"] | None = None) -> Curve:
    """False and true positive rates over falling thresholds, from (0, 0) to (1, 1); ties make one slanted step.

    Args:
        scores: larger means malignant.
        labels: 0 or 1, both among those of weight above 0.
        weights: how often each nodule counts; once by default.
    """
    order = np.argsort(-scores, kind="stable")
    counted = np.ones(len(scores)) if weights is None else weights
    last = np.append(scores[order][1:] != scores[order][:-1], True)
    rates = [np.cumsum((counted * kind)[order])[last] for kind in (1 - labels, labels)]
    return np.stack([np.concatenate(([0.0], rate / rate[-1])) for rate in rates])


def roc_band(scores: Column, labels: Column, patients: list[str]) -> Float[np.ndarray, "3 point"]:
    """False positive rate, and the 95 % band of the true positive rate at it, from a bootstrap over patients.

    NaN where no replicate has both classes.
    """
    grid = np.linspace(0, 1, GRID)
    curves = [
        np.interp(grid, *roc_curve(scores, labels, row))
        for row in draw_weights(patients, REPLICATES)
        if 0 < row @ labels < row.sum()
    ]
    ends = np.quantile(curves, (0.025, 0.975), axis=0) if curves else np.full((2, GRID), np.nan)
    return np.stack([grid, *ends])


def _roc(run: Path, predictions: pd.DataFrame, cohort: pd.DataFrame, summary: Mapping[str, Any]) -> Figure | None:
    scores = roc_scores(run, predictions, cohort)
    label = cohort["label"].loc[predictions["nodule_id"]].to_numpy(dtype=np.float64)
    known = np.isfinite(label)
    if not scores or len(np.unique(label[known])) < 2:
        return None
    figure, (axes,) = canvas(1, 1, 4.6, 4.7)
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.8)
    for rank, (name, values) in enumerate(scores.items()):
        title, colour, line = LEGENDS[name]
        if not rank:
            patients = predictions["patient_id"][known].tolist()
            grid, low, high = roc_band(values[known], label[known], patients)
            axes.fill_between(grid, low, high, color=colour, alpha=0.18, linewidth=0)
        curve = roc_curve(values[known], label[known])
        words = f"{title}, {told_interval(_auc(summary, name))}"
        axes.plot(*curve, color=colour, linestyle=line, linewidth=1.6 - 0.4 * bool(rank), label=words)
    axes.set(xlabel="False positive rate (1 - specificity)", ylabel="True positive rate (sensitivity)")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    first = LEGENDS[next(iter(scores))][0]
    axes.set_title(f"Malignancy, out of fold: {known.sum()} nodules\nBand: 95 % over patients ({first})", fontsize=9)
    axes.legend(loc="lower right", fontsize=7, title="AUC (95 % interval)", title_fontsize=7)
    return figure


def roc_scores(run: Path, predictions: pd.DataFrame, cohort: pd.DataFrame) -> dict[str, Column]:
    """Scores of malignancy by name, the run's own first; none if it has no answer for malignancy.

    Args:
        run: folder that may hold baselines and a bottleneck.
        predictions: the run's pooled predictions; their order is that of the scores.
        cohort: the cohort table.
    """
    column = f"{MALIGNANCY.key}_predicted"
    tables = {"model": predictions}
    paths = {"bottleneck": run / BOTTLENECK} | {
        name: baseline_path(run, name) for name in ("radiomics", "readers_logistic")
    }
    tables |= {name: read_predictions(path) for name, path in paths.items() if path.exists()}
    nodules = predictions["nodule_id"]
    found = {
        name: table.set_index("nodule_id")[column].reindex(nodules).to_numpy(dtype=np.float64)
        for name, table in tables.items()
        if column in table
    }
    # A table that an earlier, smaller pooling left behind does not cover every nodule.
    found = {name: scores for name, scores in found.items() if np.isfinite(scores).all()}
    if not found.keys() & {"model", "bottleneck"}:
        return {}
    return {**found, "ruler": cohort["diameter"].loc[nodules].to_numpy(dtype=np.float64)}


def _auc(summary: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """The AUC that the summary has for a curve."""
    if name == "bottleneck":
        figures = summary.get("bottleneck", {}).get("metrics", {})
    else:
        targets = summary["metrics"] if name == "model" else summary.get("baselines", {}).get(name, {})
        figures = targets.get(MALIGNANCY.key, {})
    found: Mapping[str, Any] | None = figures.get("auc")
    return found


def _reliability(predictions: pd.DataFrame, summary: Mapping[str, Any]) -> Figure | None:
    bins = summary.get("calibration", {}).get(MALIGNANCY.key)
    if not bins:
        return None
    figure, (axes, below) = canvas(2, 1, 4.4, 5.2, sharex=True, height_ratios=(4, 1))
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.8, label="perfectly calibrated")
    mean = np.array([each["mean"] for each in bins])
    observed = np.array(
        [[each["observed"][end] for end in ("value", "low", "high")] for each in bins], dtype=np.float64
    )
    # An interval of a bin with no answer in any replicate has no ends.
    spans = np.nan_to_num(np.abs(observed[:, 1:].T - observed[:, 0]))
    axes.errorbar(
        mean, observed[:, 0], spans, fmt="o-", color=BLUE, markersize=4, linewidth=1.2, capsize=2, label="model"
    )
    ece = summary["metrics"][MALIGNANCY.key]["ece"]
    axes.set(ylabel="Share of malignant nodules (readers' label)", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_title(
        f"Malignancy, out of fold, bins of equal size\nECE {told_interval(ece)}; bars: 95 % over patients", fontsize=9
    )
    axes.legend(loc="upper left", fontsize=7)
    _histogram(below, predictions)
    return figure


def _histogram(axes: Axes, predictions: pd.DataFrame) -> None:
    label, answers = (predictions[f"{MALIGNANCY.key}_{part}"] for part in ("true", "predicted"))
    edges = np.linspace(0, 1, 21)
    parts = [answers[label == kind].to_numpy() for kind in (0, 1)]
    axes.hist(parts, list(edges), stacked=True, color=[SKY, ORANGE], label=["benign", "malignant"])
    axes.set(xlabel="Predicted probability of malignancy", ylabel="Nodules")
    # Above the bars, in a room of its own.
    axes.set_ylim(0, 1.45 * axes.get_ylim()[1])
    axes.legend(fontsize=7, ncols=2, loc="upper left")


def _biomarkers(predictions: pd.DataFrame, cohort: pd.DataFrame, summary: Mapping[str, Any]) -> Figure | None:
    keys = [key for key in predicted_keys(predictions) if key != MALIGNANCY.key]
    if not keys:
        return None
    columns = min(4, len(keys))
    rows = -(-len(keys) // columns)
    figure, panels = canvas(rows, columns, max(2.75 * columns, 3.4), 3.15 * rows + 0.4)
    spread = cohort.loc[predictions["nodule_id"]]
    for key, axes in zip(keys, panels, strict=False):
        deviation = spread[f"{key}_sd"].fillna(0.0).to_numpy(dtype=np.float64) if f"{key}_sd" in spread else None
        _scatter(axes, key, predictions, deviation, summary["metrics"].get(key, {}))
    for axes in panels[len(keys) :]:
        axes.set_axis_off()
    figure.suptitle("Out of fold: each dot a nodule; grey: the readers' standard deviation", fontsize=9)
    return figure


def _scatter(
    axes: Axes, key: str, predictions: pd.DataFrame, deviation: Column | None, figures: Mapping[str, Any]
) -> None:
    target = TARGETS[key]
    true, predicted = (predictions[f"{key}_{part}"].to_numpy(dtype=np.float64) for part in ("true", "predicted"))
    if deviation is not None:
        axes.hlines(
            predicted, true - deviation, true + deviation, color=GREY, alpha=0.08, linewidth=0.7, rasterized=True
        )
    axes.scatter(true, predicted, s=6, color=BLUE, alpha=0.4, linewidth=0, rasterized=True, zorder=2)
    ends = (min(target.low, true.min(), predicted.min()), max(target.high, true.max(), predicted.max()))
    margin = 0.03 * (ends[1] - ends[0])
    limits = (ends[0] - margin, ends[1] + margin)
    axes.plot(limits, limits, color=ORANGE, linewidth=0.9, zorder=3)
    unit = f", {target.unit}" if target.unit else f", {target.low:g} to {target.high:g}"
    axes.set_box_aspect(1)
    axes.set(xlim=limits, ylim=limits, xlabel=f"Readers' mean{unit}", ylabel=f"Predicted{unit}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True))
    told = [
        f"{title} {figures[name]['value']:.2f}"
        for name, title in (("z_mse", "z-MSE"), ("icc", "ICC"))
        if _has(figures, name)
    ]
    axes.set_title(f"{target.title}\n{', '.join(told)}", fontsize=8.5)


def _has(figures: Mapping[str, Any], name: str) -> bool:
    return figures.get(name, {}).get("value") is not None


def _learning_curves(run: Path) -> Figure | None:
    numbers = fold_numbers(run, HISTORY)
    histories = {fold: pd.read_csv(run / f"fold_{fold}" / HISTORY) for fold in numbers}
    if not histories:
        return None
    names = {"val_auc": "AUC on validation", "val_z_mse": "z-scored MSE on validation"}
    extra = [name for name in names if all(name in history for history in histories.values())]
    figure, panels = canvas(1, 1 + len(extra), 3.9 * (1 + len(extra)), 3.4)
    for fold, history in histories.items():
        colour, marker = COLOURS[fold % len(COLOURS)], MARKERS[fold % len(MARKERS)]
        best = int(history["val_loss"].to_numpy().argmin())
        panels[0].plot(history["epoch"], history["train_loss"], color=colour, linewidth=0.8, linestyle=":")
        for axes, name in zip(panels, ["val_loss", *extra], strict=True):
            (line,) = axes.plot(history["epoch"], history[name], color=colour, linewidth=1.2, label=f"fold {fold}")
            line.set(marker=marker, markersize=5, markevery=[best])
    for axes, words in zip(panels, ["Loss (dotted: training)", *(names[name] for name in extra)], strict=True):
        axes.set(xlabel="Epoch", ylabel=words)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].legend(fontsize=7)
    figure.suptitle("Learning curves; mark: the epoch that validation chose", fontsize=9)
    return figure
