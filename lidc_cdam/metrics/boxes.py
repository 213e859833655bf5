"""Box sensitivity: does a box that a map calls important change the output when it is taken out of the image?

For a box side b, boxes of b x b pixels are drawn at random inside each image. r(b) is Pearson's correlation between
the sum of a map's scores in the box and the drop of the output when the box is replaced; A_box is the area under r(b)
over the sides, with the side in percent of the image's: unit correlation x percent, so that inputs of different sizes
compare. A map without information has 0.

Boxes and perturbed images know nothing of the map, so one set serves all methods and targets (`box_drops`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.metrics.perturbation import Fill, Images, Model, Perturbed, outputs_of, undisturbed

SHARES = (1 / 14, 1 / 7, 3 / 14, 2 / 7, 3 / 7)
"""Sides of boxes as shares of the image's: 16, 32, 48, 64 and 96 pixels at 224."""
BOXES = 100
Values = Float64[np.ndarray, "..."]
ROUNDING = 1e-6
"""A drop of the output smaller than this share of the output is rounding of single precision."""


@dataclass(frozen=True)
class BoxSensitivity:
    """Correlations of each image."""

    percent: Float64[np.ndarray, " side"]
    """Side of the boxes in percent of the image's."""
    r: Float64[np.ndarray, "image side"]
    """Pearson's r over the boxes of one side; NaN where it is not defined (a constant map or output)."""

    @property
    def area(self) -> Float64[np.ndarray, " image"]:
        """A_box, correlation x percent."""
        return box_area(self.r, self.percent)


@dataclass(frozen=True)
class BoxDrops:
    """Boxes and what taking them out does to every output."""

    sides: Int[np.ndarray, " side"]
    """Sides in pixels, ascending."""
    percent: Float64[np.ndarray, " side"]
    """The same in percent of the image's smaller side."""
    corners: Int[np.ndarray, "image side box 2"]
    """Row and column of each box's first pixel."""
    outputs: Float64[np.ndarray, "image output"]
    """Of the images as they are."""
    drops: Float64[np.ndarray, "image side box output"]
    """`outputs` less those without the box."""
    shape: tuple[int, int]
    """Rows and columns of the images."""

    def correlations(
        self, scores: Float[Tensor, "image map height width"]
    ) -> Float64[np.ndarray, "image map output side"]:
        """Pearson's r between the sums of each map's scores in the boxes and the drops of each output.

        Args:
            scores: signed maps, on the token grid or any other that pixels can be repeated from.
        """
        pixels = F.interpolate(scores.double().cpu(), self.shape, mode="nearest-exact")
        sums = _box_sums(pixels, torch.from_numpy(self.corners), torch.from_numpy(self.sides)).numpy()
        ours, theirs = sums - sums.mean(-1, keepdims=True), self.drops - self.drops.mean(2, keepdims=True)
        # The sum of all scores and the output itself say what is rounding.
        least = 1e-9 * np.abs(pixels.numpy()).sum((-2, -1))[..., None]
        ours = _scaled(ours, -1, least)
        theirs = _scaled(theirs, 2, ROUNDING * np.abs(self.outputs)[:, None])
        found: Float64[np.ndarray, "image map output side"] = np.einsum("imsb,isbo->imos", ours, theirs)
        return found


def box_sensitivity(
    model: Model,
    images: Images,
    scores: Float[Tensor, "map height width"],
    target_index: int | Int[Tensor, " image"],
    sides: Sequence[int] | None = None,
    boxes: int = BOXES,
    seed: int = 0,
    blur_sigma: float | None = None,
    fill: Fill = "blur",
    batch_size: int = 64,
) -> BoxSensitivity:
    """r(b) of each image's own map and one output.

    Args:
        model: what answers: a module (used in evaluation mode and left as it was) or any function of images.
        images: normalised images.
        scores: a signed map per image, on the token grid or any other; brought to pixels by nearest neighbour.
        target_index: the output to read, one for all images or one per image.
        sides: of the boxes, in pixels; by default 16, 32, 48, 64 and 96 at 224, scaled to the input's size.
        boxes: how many of each side are drawn for an image, at least 3.
        seed: of their places.
        blur_sigma: of the Gaussian blur, in pixels; by default the paper's 14 at 224, scaled to the input's width.
        fill: what replaces a box: `blur`, `mean` or `linear` (see `perturbation`).
        batch_size: perturbed images at a time; changes the memory, not the figures.

    Raises:
        LidcCdamError: a setting is out of range.
        ValueError: `scores` has not one map per image.
    """
    if scores.ndim != 3 or len(scores) != len(images):
        raise ValueError(f"scores must be [image, row, column] with {len(images)} maps, got {tuple(scores.shape)}")
    found = box_drops(model, images, sides, boxes, seed, blur_sigma, fill, batch_size)
    read = torch.as_tensor(target_index).expand(len(images)).cpu().numpy()
    return BoxSensitivity(found.percent, found.correlations(scores[:, None])[np.arange(len(images)), 0, read])


def box_drops(
    model: Model,
    images: Images,
    sides: Sequence[int] | None = None,
    boxes: int = BOXES,
    seed: int = 0,
    blur_sigma: float | None = None,
    fill: Fill = "blur",
    batch_size: int = 64,
) -> BoxDrops:
    """Take boxes out of images and read all outputs; the model is called sides x boxes times for an image.

    Args:
        model: what answers: a module (used in evaluation mode and left as it was) or any function of images.
        images: normalised images.
        sides: of the boxes, in pixels; by default 16, 32, 48, 64 and 96 at 224, scaled to the input's size.
        boxes: how many of each side are drawn for an image, at least 3.
        seed: of their places.
        blur_sigma: of the Gaussian blur, in pixels; by default the paper's 14 at 224, scaled to the input's width.
        fill: what replaces a box: `blur`, `mean` or `linear` (see `perturbation`).
        batch_size: perturbed images at a time; changes the memory, not the drops.

    Raises:
        LidcCdamError: a setting is out of range.
    """
    rows, columns = images.shape[-2:]
    widths = box_sides(sides, min(rows, columns))
    if boxes < 3:
        raise LidcCdamError(f"--boxes must be at least 3, or nothing can be correlated; got {boxes}.")
    corners = draw_corners(len(images), widths, boxes, (rows, columns), seed)
    perturbed = Perturbed.of(images, fill, blur_sigma)
    with undisturbed(model):
        outputs = outputs_of(model, images, batch_size).double().cpu()
        without = _without_boxes(model, perturbed, torch.from_numpy(corners), torch.from_numpy(widths), batch_size)
    drops = outputs[:, None, None] - without.double().cpu()
    percent = 100 * widths / min(rows, columns)
    return BoxDrops(widths, percent, corners, outputs.numpy(), drops.numpy(), (int(rows), int(columns)))


def box_sides(sides: Sequence[int] | None, image_side: int) -> Int[np.ndarray, " side"]:
    """Sides of the boxes in pixels, ascending; the usual ones by default.

    Raises:
        LidcCdamError: a side does not leave a box room to lie in different places.
    """
    asked = [max(1, round(share * image_side)) for share in SHARES] if sides is None else list(sides)
    if not asked or not all(1 <= side < image_side for side in asked):
        raise LidcCdamError(f"--box-sides must be whole numbers from 1 to {image_side - 1} pixels; got {asked}.")
    return np.unique(np.array(asked, dtype=np.int64))


def draw_corners(
    images: int, sides: Int[np.ndarray, " side"], boxes: int, shape: tuple[int, int], seed: int
) -> Int[np.ndarray, "image side box 2"]:
    """Places of boxes inside images, uniform."""
    rng = np.random.default_rng(seed)
    room = np.array(shape)[None, :] - sides[:, None] + 1
    return rng.integers(0, room[None, :, None, :], (images, len(sides), boxes, 2))


def box_area(r: Float64[np.ndarray, "*map side"], percent: Float64[np.ndarray, " side"]) -> Float64[np.ndarray, "*map"]:
    """A_box: area under r over the sides by trapezoids, correlation x percent; 0 for a single side."""
    found: Float64[np.ndarray, "*map"] = np.trapezoid(r, percent, axis=-1)
    return found


def _without_boxes(
    model: Model,
    perturbed: Perturbed,
    corners: Int[Tensor, "image side box 2"],
    sides: Int[Tensor, " side"],
    batch_size: int,
) -> Float[Tensor, "image side box output"]:
    device = perturbed.images.device
    rows, columns = (torch.arange(size, device=device) for size in perturbed.images.shape[-2:])
    index = torch.cartesian_prod(*(torch.arange(size) for size in corners.shape[:3]))
    outputs = []
    for image, side, box in (part.unbind(1) for part in torch.split(index, batch_size)):
        first, width = corners[image, side, box].to(device), sides[side, None].to(device)
        upright, across = (
            (line >= start[:, None]) & (line < start[:, None] + width)
            for line, start in zip((rows, columns), first.unbind(1), strict=True)
        )
        removed = upright[:, :, None] & across[:, None, :]
        outputs.append(model(perturbed.without(image.to(device), removed)))
    return torch.cat(outputs).reshape(*corners.shape[:3], -1)


def _box_sums(
    pixels: Float[Tensor, "image map row column"],
    corners: Int[Tensor, "image side box 2"],
    sides: Int[Tensor, " side"],
) -> Float[Tensor, "image map side box"]:
    """Sum of the scores in each box, from the sums of all pixels above and left of a point."""
    integral = F.pad(pixels.cumsum(-2).cumsum(-1), (1, 0, 1, 0))
    width = integral.shape[-1]
    top, left = corners[:, None].unbind(-1)
    bottom, right = top + sides[:, None], left + sides[:, None]
    flat = integral.flatten(2)

    def at(row: Tensor, column: Tensor) -> Tensor:
        places = (row * width + column).expand(-1, pixels.shape[1], -1, -1)
        return flat.gather(2, places.flatten(2)).reshape(places.shape)

    return at(bottom, right) - at(top, right) - at(bottom, left) + at(top, left)


def _scaled(centred: Values, axis: int, least: Values) -> Values:
    """Centred values over their norm; NaN where they do not vary beyond rounding."""
    varies = np.abs(centred).max(axis) > least
    norm = np.where(varies, np.sqrt((centred**2).sum(axis)), np.nan)
    scaled: Values = centred / np.expand_dims(norm, axis)
    return scaled
