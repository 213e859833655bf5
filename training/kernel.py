"""Fit a second head in closed form: kernel ridge regression on the numbers beside the image.

What it answers for a nodule whose patient it did not learn from is known in closed form too. The image's part of a
model learns from those answers what is left to say; the head's answers for nodules that it knows would leave nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64
from sklearn.linear_model import LogisticRegression

from lidc_cdam.kernel import KernelHead, matern
from lidc_cdam.vocabulary import MALIGNANCY

NOISE = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Variances of the readers' noise, as shares of the kernel's own, out of which each target takes its best."""

Answers = Float64[np.ndarray, "nodule target"]


@dataclass(frozen=True)
class KernelFit:
    """A fitted head, and what it would say of its own nodules."""

    head: KernelHead
    held_out: Float32[np.ndarray, "nodule target"]
    """Answers for the training nodules of heads that learnt without the nodule's patient, on the model's own scale; 0
    where the target is not known."""


def fit_kernel(
    features: Float32[np.ndarray, "nodule feature"],
    wanted: Float32[np.ndarray, "nodule target"],
    patients: Sequence[str],
    keys: Sequence[str],
) -> KernelFit:
    """Fit every target on the nodules that have it.

    A target's noise is the one with the least squared error on left-out patients. Malignancy is learnt as -1 and 1; a
    logistic regression on the left-out answers makes a logit of them.

    Args:
        features: scaled numbers.
        wanted: label 0 / 1 or z-scores; NaN where a nodule has none.
        patients: of the nodules.
        keys: targets, in the columns' order.
    """
    numbers = torch.from_numpy(features).double()
    likeness = matern(numbers, numbers).numpy()
    weights, held_out = np.zeros(wanted.shape), np.zeros(wanted.shape, dtype=np.float32)
    offset = np.zeros(len(keys))
    labels = np.array([key == MALIGNANCY.key for key in keys])
    values = np.where(labels, 2.0 * wanted - 1, wanted.astype(np.float64))
    known = ~np.isnan(values)
    for pattern in np.unique(known, axis=1).T:
        rows, columns = np.flatnonzero(pattern), np.flatnonzero((known == pattern[:, None]).all(0))
        part = np.ix_(rows, columns)
        offset[columns] = values[part].mean(0)
        own, patients_here = likeness[np.ix_(rows, rows)], np.asarray(patients)[rows]
        weights[part], answers = _ridge(own, values[part] - offset[columns], patients_here)
        held_out[part] = answers + offset[columns]
    for column in np.flatnonzero(labels):
        rows = np.flatnonzero(known[:, column])
        slope, shift = _logit(held_out[rows, column], values[rows, column])
        weights[:, column] *= slope
        offset[column] = slope * offset[column] + shift
        held_out[rows, column] = slope * held_out[rows, column] + shift
    return KernelFit(KernelHead.of(numbers, torch.from_numpy(weights), torch.from_numpy(offset)), held_out)


def _ridge(likeness: np.ndarray, values: Answers, patients: np.ndarray) -> tuple[Answers, Answers]:
    """Weights (K + noise I)^-1 y and left-out answers, each target with its best noise."""
    tried = []
    for noise in NOISE:
        inverse = np.linalg.inv(likeness + noise * np.eye(len(likeness)))
        tried.append((inverse @ values, _without_patient(inverse, values, patients)))
    errors = [((answers - values) ** 2).mean(0) for _, answers in tried]
    best = np.argmin(errors, axis=0)
    chosen = [np.stack([tried[index][part][:, column] for column, index in enumerate(best)], 1) for part in (0, 1)]
    return chosen[0], chosen[1]


def _without_patient(inverse: np.ndarray, values: Answers, patients: np.ndarray) -> Answers:
    """Answers for each patient's nodules B had they been left out: y_B - (G_BB)^-1 (G y)_B, G = (K + noise I)^-1."""
    answers, product = np.empty_like(values), inverse @ values
    _, codes = np.unique(patients, return_inverse=True)
    for rows in np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1]):
        answers[rows] = values[rows] - np.linalg.solve(inverse[np.ix_(rows, rows)], product[rows])
    return answers


def _logit(answers: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Slope and shift that make a logit of answers (Platt 1999)."""
    fitted = LogisticRegression().fit(answers[:, None], values > 0)
    return float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
