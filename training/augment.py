"""What training varies: draw a view, then apply it. No state, no global generator."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int16

from lidc_cdam.geometry import CROP_SIDE, central_slices

JITTER_HU = 500.0
"""Offset of the grey values that a jitter of 1 would mean."""
DRAW, ORDER = 1, 2
"""Streams of random numbers of one epoch: what each nodule shows, and in which order nodules come."""


@dataclass(frozen=True)
class Variation:
    """How much training varies an image."""

    flips: bool = False
    shift: int = 0
    """Largest shift along rows and columns, voxels."""
    grey_jitter: float = 0.0
    """Largest change of the gain of HU above -1000, and, times `JITTER_HU`, of the offset."""


@dataclass(frozen=True)
class ViewDraw:
    """One image of a cube."""

    view: str
    """A key of `geometry.VIEWS`."""
    slice_index: int
    """Index along the view's axis, counted from 0."""
    quarter_turns: int
    """Anticlockwise turns by 90 degrees, 0 to 3."""
    mirrored: bool
    """Whether left and right are exchanged before turning."""
    shift: tuple[int, int] = (0, 0)
    """Rows and columns by which the window moves, before mirroring."""
    gain: float = 1.0
    """Of HU above -1000."""
    offset_hu: float = 0.0


def draw_view(
    generator: np.random.Generator, views: Sequence[str], variation: Variation, side: int = CROP_SIDE
) -> ViewDraw:
    """Draw one image: a view, one of the central five slices, a quarter turn (SCIENCE.md 3), and what `variation` adds.

    The generator is asked for the same eight numbers whatever the settings, so that one setting does not move another's
    draws.
    """
    numbers = generator.random(8)
    slices = central_slices(side)
    across, steps = variation.grey_jitter, 2 * variation.shift + 1
    return ViewDraw(
        view=views[int(numbers[0] * len(views))],
        slice_index=slices[int(numbers[1] * len(slices))],
        quarter_turns=int(numbers[2] * 4),
        mirrored=bool(numbers[3] < 0.5) and variation.flips,
        shift=(int(numbers[4] * steps) - variation.shift, int(numbers[5] * steps) - variation.shift),
        gain=float(1 + across * (2 * numbers[6] - 1)),
        offset_hu=float(JITTER_HU * across * (2 * numbers[7] - 1)),
    )


def draw_epoch(
    seed: int, epoch: int, nodules: int, views: Sequence[str], variation: Variation, side: int = CROP_SIDE
) -> list[ViewDraw]:
    """One draw per nodule; each depends on (seed, epoch, its index) alone, so a resumed run draws the same."""
    generators = (np.random.default_rng((seed, epoch, index, DRAW)) for index in range(nodules))
    return [draw_view(generator, views, variation, side) for generator in generators]


def order_epoch(seed: int, epoch: int, nodules: int) -> Int[np.ndarray, "nodule"]:
    """The order of the nodules in one epoch."""
    return np.random.default_rng((seed, epoch, nodules, ORDER)).permutation(nodules)


def apply_draw(
    image: Int16[np.ndarray, "plane row column"], draw: ViewDraw, slices: int = 1
) -> Int16[np.ndarray, "plane row column"]:
    """An image shifted, changed in its grey values, mirrored and turned as the draw says.

    Args:
        image: planes of the drawn view and slice: HU first, then perhaps a mask.
        draw: what to do.
        slices: how many of the planes are HU.
    """
    moved = _shifted(image, draw.shift) if any(draw.shift) else image
    if draw.gain != 1 or draw.offset_hu:
        grey = np.rint((moved[:slices] + 1000.0) * draw.gain - 1000 + draw.offset_hu).clip(-32768, 32767)
        moved = np.concatenate([grey.astype(np.int16), moved[slices:]])
    return np.rot90(moved[..., ::-1] if draw.mirrored else moved, draw.quarter_turns, (-2, -1))


def _shifted(image: Int16[np.ndarray, "plane row column"], shift: tuple[int, int]) -> np.ndarray:
    """The image seen through a window moved by whole voxels; what comes in is mirrored at the border."""
    margin = max(map(abs, shift))
    rows, columns = image.shape[-2:]
    wide = np.pad(image, ((0, 0), (margin, margin), (margin, margin)), mode="symmetric")
    down, right = (margin + step for step in shift)
    return wide[:, down : down + rows, right : right + columns]
