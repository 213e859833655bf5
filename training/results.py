"""A run's summary as a short table: each figure with its interval, beside a ruler and the readers' noise floor."""

from collections.abc import Mapping
from typing import Any

from lidc_cdam.vocabulary import MALIGNANCY, TARGETS

GROUP_TITLE = "Mean of the eight"
METRICS = {"accuracy": "Accuracy", "auc": "AUC"}


def told_summary(summary: Mapping[str, Any]) -> list[str]:
    """The lines to print for a `summary.json` (`metrics.prediction.summarise`)."""
    lines = []
    metrics, floors = summary["metrics"], summary["noise_floor"]
    if MALIGNANCY.key in metrics:
        lines += _malignancy(metrics[MALIGNANCY.key], summary["baselines"])
    rated = [key for key in metrics if key != MALIGNANCY.key]
    if rated:
        lines.append(f"{'Biomarker':<20} {'z-scored MSE (95 %)':<24} {'R2':<24} readers' noise floor of the MSE")
    for key in rated:
        title, prefix = (TARGETS[key].title, "") if key in TARGETS else (GROUP_TITLE, "mean_")
        error, explained = metrics[key][f"{prefix}z_mse"], metrics[key][f"{prefix}r2"]
        lines.append(f"  {title:<18} {_interval(error):<24} {_interval(explained):<24} {_figure(floors.get(key))}")
    return lines


def _malignancy(figures: Mapping[str, Any], baselines: Mapping[str, Any]) -> list[str]:
    ruler, frame = baselines["ruler"][MALIGNANCY.key], baselines.get("unread_frame", {}).get(MALIGNANCY.key)
    lines = [f"{MALIGNANCY.title:<20} {'model (95 % interval)':<24} mean reader diameter with one threshold"]
    lines += [f"  {title:<18} {_interval(figures[key]):<24} {_interval(ruler[key])}" for key, title in METRICS.items()]
    if frame:
        lines.append(
            f"  The crops are cut-outs that hug their nodules: the share of a crop that was read alone has the AUC "
            f"{_interval(frame['auc'])}, so size is in the frame, which models see as mirrored tissue."
        )
    return lines


def _interval(figure: Mapping[str, float | None]) -> str:
    return f"{_figure(figure['value'])} ({_figure(figure['low'])} to {_figure(figure['high'])})"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
