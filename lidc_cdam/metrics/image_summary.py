"""From one row per image, method, class and metric to means and differences with intervals over images."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from lidc_cdam.metrics.differences import enough, paired_differences
from lidc_cdam.metrics.intervals import LEVEL, column_means, draw_weights
from lidc_cdam.metrics.text_tables import aligned, cell

SHOWN = {
    "fidelity": ("fidelity", ".1f"),
    "box": ("box", ".2f"),
    "fidelity_delta": ("Delta fidelity", ".1f"),
    "box_delta": ("Delta box", ".2f"),
    "compactness": ("compactness", ".2f"),
}
"""Metrics of the printed table: title and number format."""


def summarised(table: pd.DataFrame, methods: Sequence[str], replicates: int, seed: int) -> dict[str, Any]:
    """Means over images, and paired differences between methods.

    Args:
        table: columns `image, method, target, metric, value`; a value that is not defined is NaN.
        methods: in the order of the summary.
        replicates: bootstrap replicates; images are drawn.
        seed: of the draw.

    Returns:
        `methods` {method: {metric: interval}} with `images`, how many the mean is of; an image of two classes counts
        once, by the mean of both. `differences` {metric: {first: {second: interval}}} of first minus second on the
        images that have both, for each pair, with `p` and, corrected over the metric's pairs, `p_holm`.
    """
    wide = table.groupby(["image", "method", "metric"])["value"].mean().unstack(["method", "metric"])
    weights = draw_weights(list(map(str, wide.index)), replicates, seed)
    metrics = list(dict.fromkeys(table["metric"]))
    single = [(method, metric) for method in methods for metric in metrics if (method, metric) in wide]
    values = wide[single].to_numpy()
    found: dict[str, Any] = {
        "bootstrap": {"unit": "image", "replicates": replicates, "level": LEVEL, "seed": seed},
        "images": len(wide),
        "methods": {},
        "differences": {},
    }
    for (method, metric), interval, column in zip(single, column_means(values, weights), values.T, strict=True):
        entry = {**interval.as_dict(), "images": int((column == column).sum())}
        found["methods"].setdefault(method, {})[metric] = entry
    found["bootstrap"]["difference_replicates"] = enough(len(methods), replicates)
    for record in paired_differences(wide[single], list(map(str, wide.index)), replicates, seed):
        metric, first, second, images = (record.pop(name) for name in ("metric", "first", "second", "nodules"))
        found["differences"].setdefault(metric, {}).setdefault(first, {})[second] = {**record, "images": images}
    return found


def lines_of(summary: dict[str, Any]) -> list[str]:
    """The summary as a small text table, methods as rows."""
    shown = [metric for metric in SHOWN if any(metric in row for row in summary["methods"].values())]
    cells = [
        [method, *(cell(row.get(metric), SHOWN[metric][1]) for metric in shown)]
        for method, row in summary["methods"].items()
    ]
    return aligned(cells, [f"mean of {summary['images']} images", *(SHOWN[metric][0] for metric in shown)])
