"""Whether a map belongs to its own target: an output read under the map of another one.

With A_cw the figure (A_(LIF-MIF) of `faithfulness` or A_box of `boxes`) of output c under the map of target w,

    Delta_c = A_cc - mean over w other than c of A_cw

One perturbed image gives all outputs, so the whole matrix costs the perturbations of one map per target. A method with
one map for every target has Delta = 0 by construction: its row of the matrix is constant.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from lidc_cdam.metrics.boxes import BOXES, BoxDrops, box_area, box_drops
from lidc_cdam.metrics.faithfulness import Curves, curves
from lidc_cdam.metrics.perturbation import Fill, Images, Model


@dataclass(frozen=True)
class Discrimination:
    """A figure of each output under each map, of each image."""

    matrix: Float64[np.ndarray, "image target map"]
    """Output of a target (row) under the map of one (column); on the diagonal both are the same."""

    @property
    def own(self) -> Float64[np.ndarray, "image target"]:
        """A_cc: each output under its own map."""
        return np.diagonal(self.matrix, axis1=1, axis2=2).copy()

    @property
    def pairs(self) -> Float64[np.ndarray, "image target map"]:
        """A_cc - A_cw of each pair; 0 on the diagonal."""
        found: Float64[np.ndarray, "image target map"] = self.own[:, :, None] - self.matrix
        return found

    @property
    def delta(self) -> Float64[np.ndarray, "image target"]:
        """Delta_c; NaN with a single target, or where a figure is not defined."""
        targets = self.matrix.shape[1]
        if targets < 2:
            return np.full(self.own.shape, np.nan)
        found: Float64[np.ndarray, "image target"] = self.pairs.sum(-1) / (targets - 1)
        return found


def fidelity_discrimination(
    model: Model,
    images: Images,
    scores: Float[Tensor, "image target height width"],
    outputs: Int[Tensor, "image target"] | Sequence[int] | None = None,
    steps: int = 20,
    fill: Fill = "blur",
    blur_sigma: float | None = None,
    batch_size: int = 64,
) -> Discrimination:
    """A_(LIF-MIF) of every target's output under every target's map.

    Args:
        model: what answers: a module (used in evaluation mode and left as it was) or any function of images.
        images: normalised images.
        scores: a signed map per target, on the token grid or any other; brought to pixels by nearest neighbour.
        outputs: which of the model's outputs each map explains, for all images or for each (the two classes that an
            image shows); by default map i explains output i.
        steps: equal steps from 0 to 100 percent, at least 1.
        fill: what replaces pixels: `blur`, `mean` or `linear` (see `perturbation`).
        blur_sigma: of the Gaussian blur, in pixels; by default the paper's 14 at 224, scaled to the input's width.
        batch_size: perturbed images at a time; changes the memory, not the figures.

    Raises:
        LidcCdamError: a setting is out of range, or a score is NaN.
        ValueError: `outputs` does not name one output per map.
    """
    read = output_indices(outputs, *scores.shape[:2])
    return of_curves(curves(model, images, scores, steps, fill, blur_sigma, batch_size), read)


def box_discrimination(
    model: Model,
    images: Images,
    scores: Float[Tensor, "image target height width"],
    outputs: Int[Tensor, "image target"] | Sequence[int] | None = None,
    sides: Sequence[int] | None = None,
    boxes: int = BOXES,
    seed: int = 0,
    fill: Fill = "blur",
    blur_sigma: float | None = None,
    batch_size: int = 64,
) -> Discrimination:
    """A_box of every target's output under every target's map.

    Args:
        model: what answers: a module (used in evaluation mode and left as it was) or any function of images.
        images: normalised images.
        scores: a signed map per target, on the token grid or any other; brought to pixels by nearest neighbour.
        outputs: which of the model's outputs each map explains, for all images or for each; by default map i explains
            output i.
        sides: of the boxes, in pixels; by default 16, 32, 48, 64 and 96 at 224, scaled to the input's size.
        boxes: how many of each side are drawn for an image, at least 3.
        seed: of their places.
        fill: what replaces a box: `blur`, `mean` or `linear` (see `perturbation`).
        blur_sigma: of the Gaussian blur, in pixels; by default the paper's 14 at 224, scaled to the input's width.
        batch_size: perturbed images at a time; changes the memory, not the figures.

    Raises:
        LidcCdamError: a setting is out of range.
        ValueError: `outputs` does not name one output per map.
    """
    read = output_indices(outputs, *scores.shape[:2])
    return of_boxes(box_drops(model, images, sides, boxes, seed, blur_sigma, fill, batch_size), scores, read)


def of_curves(found: Curves, outputs: Int[np.ndarray, "image target"]) -> Discrimination:
    """The matrix of `faithfulness.curves`; `outputs` as `output_indices` gives them."""
    return Discrimination(_matrix(found.area, outputs))


def of_boxes(
    found: BoxDrops, scores: Float[Tensor, "image map height width"], outputs: Int[np.ndarray, "image target"]
) -> Discrimination:
    """The matrix of maps on boxes already taken out; `outputs` as `output_indices` gives them."""
    return Discrimination(_matrix(box_area(found.correlations(scores), found.percent), outputs))


def output_indices(
    outputs: Int[Tensor, "image target"] | Sequence[int] | None, images: int, targets: int
) -> Int[np.ndarray, "image target"]:
    """Which output each map explains, per image.

    Raises:
        ValueError: there is not one per map.
    """
    given = np.arange(targets) if outputs is None else torch.as_tensor(outputs).cpu().numpy()
    if given.shape not in ((targets,), (images, targets)):
        raise ValueError(f"outputs must name one output per map, [{images}, {targets}], got {list(given.shape)}")
    return np.broadcast_to(given, (images, targets)).astype(np.int64)


def _matrix(
    areas: Float64[np.ndarray, "image map output"], outputs: Int[np.ndarray, "image target"]
) -> Float64[np.ndarray, "image target map"]:
    read = outputs[:, None, :].repeat(areas.shape[1], axis=1)
    matrix: Float64[np.ndarray, "image target map"] = np.take_along_axis(areas, read, axis=2).swapaxes(1, 2)
    return matrix
