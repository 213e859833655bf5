"""What training varies: draw a view, then apply it. No state, no global generator."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped

from lidc_cdam.geometry import CROP_SIDE, central_slices

DRAW, ORDER = 1, 2
"""Streams of random numbers of one epoch: what each nodule shows, and in which order nodules come."""


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


def draw_view(generator: np.random.Generator, views: Sequence[str], flips: bool, side: int = CROP_SIDE) -> ViewDraw:
    """Draw one image: a view, one of the central five slices, a quarter turn (SCIENCE.md 3), and perhaps a mirror.

    The generator is asked for the same four numbers whatever the settings, so that one setting does not move another's
    draws.
    """
    view = views[int(generator.random() * len(views))]
    slices = central_slices(side)
    slice_index = slices[int(generator.random() * len(slices))]
    turns = int(generator.random() * 4)
    mirrored = bool(generator.random() < 0.5)
    return ViewDraw(view, slice_index, turns, mirrored and flips)


def draw_epoch(
    seed: int, epoch: int, nodules: int, views: Sequence[str], flips: bool, side: int = CROP_SIDE
) -> list[ViewDraw]:
    """One draw per nodule; each depends on (seed, epoch, its index) alone, so a resumed run draws the same."""
    generators = (np.random.default_rng((seed, epoch, index, DRAW)) for index in range(nodules))
    return [draw_view(generator, views, flips, side) for generator in generators]


def order_epoch(seed: int, epoch: int, nodules: int) -> Int[np.ndarray, "nodule"]:
    """The order of the nodules in one epoch."""
    return np.random.default_rng((seed, epoch, nodules, ORDER)).permutation(nodules)


def turned(image: Shaped[np.ndarray, "*plane row column"], draw: ViewDraw) -> Shaped[np.ndarray, "*plane row column"]:
    """A drawn image mirrored and turned as the draw says."""
    return np.rot90(image[..., ::-1] if draw.mirrored else image, draw.quarter_turns, (-2, -1))
