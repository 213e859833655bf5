"""Maps against known causes: does the relevance lie on the cause, and does its sign say what the cause does.

For phantoms (`lidc-cdam causes`), where it is known which voxels make a biomarker what it is and what the crop looks
like with more or less of it. Functions take arrays and return figures; undefined ones are NaN.

* **Mass and AUPRC**: of the map's absolute scores, against the mask; chance of both is the mask's share. Causes lie on
  the nodule and nodules in the image's middle, so a map that only finds the nodule gains too; `cause_in_nodule` asks
  within the nodule alone, where such a map has 1.
* **Signs**: one pair of crops per phantom and biomarker, with the least and with the most of its cause. The output
  changes by f(most) - f(least); the map's sum over the voxels that differ should have that sign where the cause is
  present, and should change with the output.
* **Size**: a map may be no more than a map of the nodule's size. Two figures ask: the correlation of a biomarker's map
  with the diameter's, token by token; and the partial correlation of a map's total with the biomarker given diameter.
"""

import numpy as np
from jaxtyping import Bool, Float, Shaped

from lidc_cdam.metrics.intervals import Statistic, Weights, ratio
from lidc_cdam.metrics.localisation import chance, relevance_mass
from lidc_cdam.metrics.weighted import average_precision

REACTS = 0.05
"""Least change of an output, on the model's own scale, that has a sign worth asking for."""
CHANGED_HU = 25.0
"""Difference of two crops from which on a voxel counts as changed: about a scanner's noise."""
LESS_IS_MORE = frozenset({"calcification"})
"""Biomarkers of whose cause there is more where the value is lower: a calcification of 6 is an absent one."""
Map = Float[np.ndarray, "row column"]
Mask = Bool[np.ndarray, "row column"]
Column = Float[np.ndarray, " nodule"]


def least_and_most(key: str, values: Shaped[np.ndarray, " value"]) -> tuple[int, int]:
    """Indices of the values with the least and with the most of a biomarker's cause."""
    low, high = int(values.argmin()), int(values.argmax())
    return (high, low) if key in LESS_IS_MORE else (low, high)


def expected_sign(key: str) -> int:
    """Sign of the output's change from the least to the most of the cause, if the model is right."""
    return -1 if key in LESS_IS_MORE else 1


def spread(scores: Float[np.ndarray, "*kind row column"], size: tuple[int, int]) -> Float[np.ndarray, "*kind h w"]:
    """Maps on a grid of pixels, each score shared out over its token's pixels, so that a map keeps its total.

    Args:
        scores: maps of tokens, or already of pixels.
        size: height and width, multiples of the maps'.
    """
    rows, columns = (side // own for side, own in zip(size, scores.shape[-2:], strict=True))
    if scores.shape[-2] * rows != size[0] or scores.shape[-1] * columns != size[1]:
        raise ValueError(f"a map of {scores.shape[-2:]} does not divide a grid of {size}")
    pixels: np.ndarray = scores.repeat(rows, -2).repeat(columns, -1) / (rows * columns)
    return pixels


def on_cause(
    pixels: Float[np.ndarray, "view h w"], mask: Bool[np.ndarray, "view h w"], nodule: Bool[np.ndarray, "view h w"]
) -> dict[str, float]:
    """How much of a phantom's map lies on a cause; means over the views that show it.

    Args:
        pixels: signed maps.
        mask: the cause.
        nodule: all causes together, this one among them.

    Returns:
        `cause_mass` and `cause_auprc` of the absolute scores, `cause_mass_positive` of the positive ones, and
        `cause_share`, the chance level of all three; `cause_in_nodule`, how many times as high the mean absolute score
        is on the cause as on the nodule.
    """
    shown = [parts for parts in zip(pixels, mask, nodule, strict=True) if parts[1].any()]
    found = {
        "cause_share": [float(chance(inside)) for _, inside, _ in shown],
        "cause_mass": [float(relevance_mass(scores, inside, "absolute")) for scores, inside, _ in shown],
        "cause_mass_positive": [float(relevance_mass(scores, inside)) for scores, inside, _ in shown],
        "cause_auprc": [area_under_precision(np.abs(scores), inside) for scores, inside, _ in shown],
        "cause_in_nodule": [_times(np.abs(scores), inside, whole) for scores, inside, whole in shown],
    }
    return {name: _mean(values) for name, values in found.items()}


def _times(scores: Map, inside: Mask, whole: Mask) -> float:
    """Mean score inside over the mean score of the whole; NaN where the whole has none."""
    level = scores[whole].mean()
    return float(scores[inside].mean() / level) if level > 0 else float("nan")


def area_under_precision(scores: Map, mask: Mask) -> float:
    """Average precision of the pixels' scores for the mask; NaN for a mask that is empty or everything."""
    found = average_precision(scores.ravel(), mask.ravel().astype(float))(np.ones((1, scores.size)))
    return float(found[0])


def sum_on(pixels: Float[np.ndarray, "view h w"], region: Bool[np.ndarray, "view h w"]) -> float:
    """Sum of the scores on a region; mean over the views that show it."""
    return _mean([float(scores[where].sum()) for scores, where in zip(pixels, region, strict=True) if where.any()])


def same_sign(figure: float, output_change: float) -> float:
    """1 where both have one sign, 0 where not; NaN where the output hardly reacts or there is no figure."""
    if not np.isfinite(figure) or not abs(output_change) >= REACTS:
        return float("nan")
    return float(np.sign(figure) == np.sign(output_change))


def map_correlation(one: Float[np.ndarray, "view row column"], other: Float[np.ndarray, "view row column"]) -> float:
    """Pearson correlation of two maps of one nodule over the tokens of a view; mean over the views."""
    found = [float(correlation(a.ravel(), b.ravel())(np.ones((1, a.size)))[0]) for a, b in zip(one, other, strict=True)]
    return _mean(found)


def correlation(one: Column, other: Column) -> Statistic:
    """Pearson correlation over nodules; those that lack a value are left out."""
    return _from_moments((one, other), lambda r: r[:, 0, 1])


def partial_correlation(one: Column, other: Column, given: Column) -> Statistic:
    """Correlation of what is left of two columns when a straight line in a third is taken from each."""

    def partial(r: Float[np.ndarray, "replicate 3 3"]) -> Float[np.ndarray, " replicate"]:
        left = (1 - r[:, 0, 2] ** 2) * (1 - r[:, 1, 2] ** 2)
        return ratio(r[:, 0, 1] - r[:, 0, 2] * r[:, 1, 2], np.where(left > 1e-12, np.sqrt(np.maximum(left, 0)), 0.0))

    return _from_moments((one, other, given), partial)


def _from_moments(columns: tuple[Column, ...], figure: object) -> Statistic:
    """A figure of the columns' correlation matrix, for all replicates at once."""
    values = np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)
    known = np.isfinite(values).all(1)
    held = values[known] - (values[known].mean(0) if known.any() else 0.0)
    products = held[:, :, None] * held[:, None, :]

    def statistic(weights: Weights) -> Float[np.ndarray, " replicate"]:
        chosen = weights[:, known]
        total = chosen.sum(1)
        means = ratio(chosen @ held, total[:, None] * np.ones(held.shape[1]))
        second = ratio(np.einsum("rn,nij->rij", chosen, products), total[:, None, None] * np.ones(products.shape[1:]))
        covariance = second - means[:, :, None] * means[:, None, :]
        deviations = np.sqrt(np.maximum(np.einsum("rii->ri", covariance), 0.0))
        scale = deviations[:, :, None] * deviations[:, None, :]
        found: np.ndarray = figure(ratio(covariance, np.where(scale > 1e-12, scale, 0.0)))  # type: ignore[operator]
        return found

    return statistic


def _mean(values: list[float]) -> float:
    """Mean of those that are defined; NaN if none is."""
    defined = [value for value in values if np.isfinite(value)]
    return float(np.mean(defined)) if defined else float("nan")
