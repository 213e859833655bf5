"""Whether a predicted probability of 0.7 is right seven times in ten.

Nodules are sorted by their predicted probability p and cut into bins of equal numbers; ties stay together. With bin b
of n_b nodules out of n, mean prediction p_b and share of positives o_b:

    ECE = sum_b n_b / n |o_b - p_b|        (Naeini et al. 2015; equal-mass bins: Nixon et al. 2019)

The bins are those of all nodules in every bootstrap replicate. Even a perfectly calibrated model has an ECE above 0
(of about 0.8 sqrt(b p (1 - p) / n) for b bins), so it is read beside the reliability curve.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lidc_cdam.metrics.intervals import Statistic, Weights, column_means, ratio

BINS = 10

Column = Float[np.ndarray, " nodule"]


def equal_mass_bins(probability: Column, bins: int = BINS) -> Int[np.ndarray, " nodule"]:
    """Bin of each nodule, ascending from 0; fewer bins where ties (or few nodules) leave some empty."""
    edges = np.quantile(probability, np.linspace(0, 1, bins + 1)[1:-1])
    _, index = np.unique(np.searchsorted(edges, probability, side="right"), return_inverse=True)
    return index


def expected_calibration_error(probability: Column, label: Column, bins: int = BINS) -> Statistic:
    """The ECE.

    Args:
        probability: predicted, 0 to 1.
        label: 0 or 1.
        bins: how many bins of equal mass.
    """
    index = equal_mass_bins(probability, bins)
    gaps = np.eye(index.max() + 1)[index] * (probability - label)[:, None]

    def figure(weights: Weights) -> Float[np.ndarray, " replicate"]:
        return ratio(np.abs(weights @ gaps).sum(1), weights.sum(1))

    return figure


def reliability(probability: Column, label: Column, weights: Weights, bins: int = BINS) -> list[dict[str, Any]]:
    """The reliability curve.

    Args:
        probability: predicted, 0 to 1.
        label: 0 or 1.
        weights: bootstrap replicates of the nodules.
        bins: how many bins of equal mass.

    Returns:
        Per bin: `lowest`, `highest` and `mean` prediction, `nodules`, and `observed`, the share of positives with its
        interval (which has no width in a bin of one class).
    """
    index = equal_mass_bins(probability, bins)
    inside = index[:, None] == np.arange(index.max() + 1)
    observed = column_means(np.where(inside, label[:, None], np.nan), weights)
    parts = [probability[members] for members in inside.T]
    return [
        {
            "lowest": float(part.min()),
            "highest": float(part.max()),
            "mean": float(part.mean()),
            "nodules": len(part),
            "observed": share.as_dict(),
        }
        for part, share in zip(parts, observed, strict=True)
    ]
