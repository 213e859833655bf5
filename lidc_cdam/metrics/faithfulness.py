"""Whether a map tells what the model uses: perturb the image by the map's order and watch the output.

Fidelity as in the paper: pixels are ranked by score and replaced, most important first (MIF) or least important first
(LIF). With the perturbed share of the pixels on an axis from 0 to 100, A_MIF and A_LIF are the areas under the output
curves and A_(LIF-MIF) their difference, the figure to quote: unit output x percent, larger is better, a map without
information has 0.

Box sensitivity, the paper's second figure, is in `boxes` and can be imported from here.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from scipy.special import expit
from torch import Tensor

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain.inputs import check_size
from lidc_cdam.metrics.boxes import BoxSensitivity, box_sensitivity
from lidc_cdam.metrics.perturbation import BLUR_SHARE, Fill, Images, Model, Perturbed, blur, outputs_of, undisturbed

__all__ = ["BLUR_SHARE", "BoxSensitivity", "Curves", "Fidelity", "blur", "box_sensitivity", "curves", "fidelity"]

Output = Literal["model", "probability"]
MIF, LIF = 0, 1
"""Directions of `Curves.values`."""


@dataclass(frozen=True)
class Fidelity:
    """Curves and areas of each image; their means are those of the mean curve."""

    percent: Float64[np.ndarray, " step"]
    """Perturbed share of the pixels, 0 to 100."""
    mif: Float64[np.ndarray, "image step"]
    """Output, most important first."""
    lif: Float64[np.ndarray, "image step"]
    """Output, least important first."""

    @property
    def area_mif(self) -> Float64[np.ndarray, " image"]:
        """A_MIF, output x percent."""
        return area(self.mif, self.percent)

    @property
    def area_lif(self) -> Float64[np.ndarray, " image"]:
        """A_LIF, output x percent."""
        return area(self.lif, self.percent)

    @property
    def area(self) -> Float64[np.ndarray, " image"]:
        """A_(LIF-MIF), output x percent."""
        return area(self.lif - self.mif, self.percent)


@dataclass(frozen=True)
class Curves:
    """Every output along the order of every map."""

    percent: Float64[np.ndarray, " step"]
    """Perturbed share of the pixels, 0 to 100."""
    values: Float64[np.ndarray, "direction image map output step"]
    """Outputs; direction `MIF` or `LIF`."""

    @property
    def areas(self) -> Float64[np.ndarray, "direction image map output"]:
        """A_MIF and A_LIF, output x percent."""
        return area(self.values, self.percent)

    @property
    def area(self) -> Float64[np.ndarray, "image map output"]:
        """A_(LIF-MIF) of each output under each map, output x percent."""
        return area(self.values[LIF] - self.values[MIF], self.percent)


def curves(
    model: Model,
    images: Images,
    scores: Float[Tensor, "image map height width"],
    steps: int = 20,
    fill: Fill = "blur",
    blur_sigma: float | None = None,
    batch_size: int = 64,
) -> Curves:
    """Perturb each image by the order of each of its maps, and read all outputs.

    Equal scores, such as the pixels of one token, keep the order of reading (row by row) in both directions, so a
    constant map perturbs the same pixels either way and its A_(LIF-MIF) is 0. The model is called
    2 x (steps - 1) times for a map and twice for an image.

    Args:
        model: what answers: a module (used in evaluation mode and left as it was) or any function of images.
        images: normalised images.
        scores: signed maps, on the token grid or any other; brought to pixels by nearest neighbour.
        steps: equal steps from 0 to 100 percent, at least 1; the curves have one point more.
        fill: what replaces pixels: `blur`, `mean` or `linear` (see `perturbation`).
        blur_sigma: of the Gaussian blur, in pixels; by default the paper's 14 at 224, scaled to the input's width.
        batch_size: perturbed images at a time; changes the memory, not the curves.

    Raises:
        LidcCdamError: a setting is out of range, or a score is NaN.
        ValueError: `scores` has not one set of maps per image.
    """
    _check(images, scores, steps, batch_size)
    perturbed = Perturbed.of(images, fill, blur_sigma)
    pixels = F.interpolate(scores.to(images.device).double(), images.shape[-2:], mode="nearest-exact").flatten(2)
    counts = torch.linspace(0, pixels.shape[-1], steps + 1, dtype=torch.float64).round().long().to(images.device)
    places = torch.stack([_places(pixels, descending) for descending in (True, False)])
    with undisturbed(model):
        start, end = (outputs_of(model, part, batch_size) for part in perturbed.ends())
        inner = _inner(model, perturbed, places, counts[1:-1], batch_size)
    shape = (2, *scores.shape[:2], -1, 1)
    first, last = (each[None, :, None, :, None].expand(shape) for each in (start, end))
    inner = inner.movedim(-1, -2) if inner.numel() else start.new_zeros(*first.shape[:-1], 0)
    values = torch.cat([first, inner, last], -1).double().cpu().numpy()
    return Curves((100 * counts.double() / pixels.shape[-1]).cpu().numpy(), values)


def fidelity(
    model: Model,
    images: Images,
    scores: Float[Tensor, "map height width"],
    target_index: int | Int[Tensor, " image"],
    steps: int = 20,
    blur_sigma: float | None = None,
    output: Output = "model",
    batch_size: int = 64,
    fill: Fill = "blur",
) -> Fidelity:
    """Perturb images by the order of their scores.

    Args:
        model: what answers: a module (used in evaluation mode and left as it was) or any function of images.
        images: normalised images.
        scores: a signed map per image, on the token grid or any other; brought to pixels by nearest neighbour.
        target_index: the output to read, one for all images or one per image.
        steps: equal steps from 0 to 100 percent, at least 1; the curves have one point more.
        blur_sigma: of the Gaussian blur, in pixels; by default the paper's 14 at 224, scaled to the input's width.
        output: `model`, the model's own scale (logit, z-score), or `probability`, the logistic function of a logit.
        batch_size: perturbed images at a time; changes the memory, not the curves.
        fill: what replaces pixels: `blur`, `mean` or `linear` (see `perturbation`).

    Raises:
        LidcCdamError: a setting is out of range, or a score is NaN.
        ValueError: `scores` has not one map per image.
    """
    if scores.ndim != 3 or len(scores) != len(images):
        raise ValueError(f"scores must be [image, row, column] with {len(images)} maps, got {tuple(scores.shape)}")
    found = curves(model, images, scores[:, None], steps, fill, blur_sigma, batch_size)
    read = torch.as_tensor(target_index).expand(len(images)).cpu().numpy()
    mif, lif = found.values[:, np.arange(len(images)), 0, read]
    if output == "probability":
        mif, lif = (expit(each) for each in (mif, lif))
    return Fidelity(found.percent, mif, lif)


def area(
    curve: Float64[np.ndarray, "*curve step"], percent: Float64[np.ndarray, " step"]
) -> Float64[np.ndarray, "*curve"]:
    """Area under curves by trapezoids, output x percent."""
    found: Float64[np.ndarray, "*curve"] = np.trapezoid(curve, percent, axis=-1)
    return found


def _check(images: Images, scores: Float[Tensor, "..."], steps: int, batch_size: int) -> None:
    if scores.ndim != 4 or len(scores) != len(images):
        raise ValueError(f"scores must be [image, map, row, column] of {len(images)} images, got {tuple(scores.shape)}")
    if steps < 1:
        raise LidcCdamError(f"--steps must be at least 1; got {steps}.")
    check_size(batch_size)
    check_scores(scores)


def check_scores(scores: Float[Tensor, "image map *grid"]) -> None:
    """Check that maps can be ranked.

    Raises:
        LidcCdamError: a score is no finite number.
    """
    wrong = (~torch.isfinite(scores).flatten(2).all(-1)).nonzero().tolist()
    if wrong:
        image, number = wrong[0]
        raise LidcCdamError(
            f"Maps must hold finite numbers, but map {number} of image {image} (from 0) holds NaN or infinity; "
            f"look at the model's outputs for this image, or leave it out."
        )


def _places(pixels: Float[Tensor, "image map pixel"], descending: bool) -> Int[Tensor, "image map pixel"]:
    """The place of each pixel in the order of perturbation, from 0."""
    order = pixels.argsort(dim=-1, descending=descending, stable=True)
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def _inner(
    model: Model,
    perturbed: Perturbed,
    places: Int[Tensor, "direction image map pixel"],
    counts: Int[Tensor, " inner"],
    batch_size: int,
) -> Float[Tensor, "direction image map inner output"]:
    """Outputs with the first `counts` pixels of each order replaced, all orders in the same batches."""
    ranges = [torch.arange(size, device=places.device) for size in (*places.shape[:3], len(counts))]
    index = torch.cartesian_prod(*ranges).reshape(-1, 4)
    outputs = []
    for direction, image, number, step in (part.unbind(1) for part in torch.split(index, batch_size)):
        removed = places[direction, image, number] < counts[step, None]
        outputs.append(model(perturbed.without(image, removed.reshape(-1, *perturbed.images.shape[-2:]))))
    if not outputs:
        return perturbed.images.new_zeros(*places.shape[:3], 0, 0)
    return torch.cat(outputs).reshape(*places.shape[:3], len(counts), -1)
