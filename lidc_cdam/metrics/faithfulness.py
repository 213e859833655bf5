"""Whether a map tells what the model uses: perturb the image by the map's order and watch the output.

Fidelity as in the paper: pixels are ranked by score and replaced by those of the Gaussian-blurred image, most
important first (MIF) or least important first (LIF). With the perturbed share of the pixels on an axis from 0 to 100,
A_MIF and A_LIF are the areas under the output curves and A_(LIF-MIF) their difference, the figure to quote: unit output
x percent, larger is better, a map without information has 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain.registry import evaluation_mode

Model = Callable[[Float[Tensor, "image channel row column"]], Float[Tensor, "image target"]]
Output = Literal["model", "probability"]
BLUR_SHARE = 14 / 224
"""Blur sigma as a share of the image's side: the paper's 14 pixels at 224."""


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
        return _area(self.mif, self.percent)

    @property
    def area_lif(self) -> Float64[np.ndarray, " image"]:
        """A_LIF, output x percent."""
        return _area(self.lif, self.percent)

    @property
    def area(self) -> Float64[np.ndarray, " image"]:
        """A_(LIF-MIF), output x percent."""
        return _area(self.lif - self.mif, self.percent)


def fidelity(
    model: Model,
    images: Float[Tensor, "image channel row column"],
    scores: Float[Tensor, "map height width"],
    target_index: int | Int[Tensor, " image"],
    steps: int = 20,
    blur_sigma: float | None = None,
    output: Output = "model",
    batch_size: int = 64,
) -> Fidelity:
    """Perturb images by the order of their scores.

    Equal scores, such as the pixels of one token, keep the order of reading (row by row) in both directions, so a
    constant map perturbs the same pixels either way and its A_(LIF-MIF) is 0.

    Args:
        model: what answers: a module (used in evaluation mode and left as it was) or any function of images.
        images: normalised images.
        scores: a signed map per image, on the token grid or any other; brought to pixels by nearest neighbour.
        target_index: the output to read, one for all images or one per image.
        steps: equal steps from 0 to 100 percent, at least 1; the curves have one point more.
        blur_sigma: of the Gaussian blur, in pixels; by default the paper's 14 at 224, scaled to the input's width.
        output: `model`, the model's own scale (logit, z-score), or `probability`, the logistic function of a logit.
        batch_size: perturbed images at a time; changes the memory, not the curves.

    Raises:
        LidcCdamError: `steps`, `blur_sigma` or `batch_size` is out of range.
        ValueError: `scores` has not one map per image.
    """
    _check(images, scores, steps, blur_sigma, batch_size)
    blurred = blur(images, images.shape[-1] * BLUR_SHARE if blur_sigma is None else blur_sigma)
    pixels = F.interpolate(scores[:, None].to(images).double(), images.shape[-2:], mode="nearest-exact").flatten(1)
    counts = torch.linspace(0, pixels.shape[1], steps + 1, dtype=torch.float64).round().long().to(images.device)
    targets = torch.as_tensor(target_index, device=images.device).expand(len(images))
    curves = []
    with torch.no_grad(), evaluation_mode(model if isinstance(model, nn.Module) else nn.Identity()):
        ends = torch.stack([_read(model, part, targets, batch_size) for part in (images, blurred)], 1)
        for descending in (True, False):
            inner = _curve(model, images, blurred, _places(pixels, descending), counts[1:-1], targets, batch_size)
            curve = torch.cat([ends[:, :1], inner, ends[:, 1:]], 1)
            curves.append(curve.sigmoid() if output == "probability" else curve)
    percent = (100 * counts.double() / pixels.shape[1]).cpu().numpy()
    return Fidelity(percent, *(curve.double().cpu().numpy() for curve in curves))


def blur(images: Float[Tensor, "image channel row column"], sigma: float) -> Float[Tensor, "image channel row column"]:
    """Gaussian blur of each channel, sigma in pixels; the image is mirrored at its edges, their pixels repeated."""
    smooth = gaussian_filter(images.detach().cpu().numpy(), (0, 0, sigma, sigma), mode="reflect", truncate=4.0)
    return torch.from_numpy(smooth).to(images)


def _area(
    curve: Float64[np.ndarray, "image step"], percent: Float64[np.ndarray, " step"]
) -> Float64[np.ndarray, " image"]:
    area: Float64[np.ndarray, " image"] = np.trapezoid(curve, percent, axis=1)
    return area


def _check(images: Tensor, scores: Tensor, steps: int, blur_sigma: float | None, batch_size: int) -> None:
    if scores.ndim != 3 or len(scores) != len(images):
        raise ValueError(f"scores must be [image, row, column] with {len(images)} maps, got {tuple(scores.shape)}")
    if steps < 1:
        raise LidcCdamError(f"--steps must be at least 1; got {steps}.")
    if blur_sigma is not None and not blur_sigma > 0:
        raise LidcCdamError(f"--blur-sigma must be above 0 pixels; got {blur_sigma}.")
    if batch_size < 1:
        raise LidcCdamError(f"--batch-size must be at least 1 image; got {batch_size}.")


def _places(pixels: Float[Tensor, "image pixel"], descending: bool) -> Int[Tensor, "image pixel"]:
    """The place of each pixel in the order of perturbation, from 0."""
    order = pixels.argsort(dim=1, descending=descending, stable=True)
    return order.argsort(dim=1)


def _curve(
    model: Model,
    images: Float[Tensor, "image channel row column"],
    blurred: Float[Tensor, "image channel row column"],
    places: Int[Tensor, "image pixel"],
    counts: Int[Tensor, " step"],
    targets: Int[Tensor, " image"],
    batch_size: int,
) -> Float[Tensor, "image step"]:
    """Output of each image with the first `counts` pixels of its order replaced."""
    outputs = []
    index = torch.cartesian_prod(torch.arange(len(images)), torch.arange(len(counts))).to(images.device)
    for image, step in (part.unbind(1) for part in torch.split(index.reshape(-1, 2), batch_size)):
        replaced: Bool[Tensor, "one pixel"] = places[image] < counts[step, None]
        replaced = replaced.reshape(-1, 1, *images.shape[-2:])
        perturbed = torch.where(replaced, blurred[image], images[image])
        outputs.append(model(perturbed).gather(1, targets[image, None]).squeeze(1))
    return torch.cat(outputs).reshape(len(images), len(counts)) if outputs else images.new_zeros(len(images), 0)


def _read(
    model: Model,
    images: Float[Tensor, "image channel row column"],
    targets: Int[Tensor, " image"],
    batch_size: int,
) -> Float[Tensor, " image"]:
    """The wanted output of each image."""
    outputs = torch.cat([model(part) for part in torch.split(images, batch_size)])
    return outputs.gather(1, targets[:, None]).squeeze(1)
