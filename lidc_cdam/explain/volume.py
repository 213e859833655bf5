"""From the token maps of every slice to volumes on the crop's grid."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32

from lidc_cdam.geometry import stack_view

Upsampling = Literal["nearest", "area"]


def merge_slices(
    scores: Float32[np.ndarray, "target view slice row column"], views: Sequence[str], upsampling: Upsampling
) -> Float32[np.ndarray, "target view side side side"]:
    """One volume per target and view, [slice, row, column] on the crop's grid, from maps of all slices of each view.

    A slice fills the model's input, and the token grid covers the input, so a token is a rectangle of the slice
    wherever the resize has put its pixels. Its score is the score of each point in it; nothing is shared out.

    Args:
        scores: token maps of slices 0, 1, ... along each view's axis, as the view is looked at.
        views: keys of `geometry.VIEWS`, one per view.
        upsampling: see `token_shares`.
    """
    side, rows, columns = scores.shape[2:]
    down, across = (token_shares(side, tokens, upsampling) for tokens in (rows, columns))
    images = (down @ scores.astype(np.float64) @ across.T).astype(np.float32)
    return np.stack([stack_view(images[:, place], view) for place, view in enumerate(views)], axis=1)


def token_shares(side: int, tokens: int, upsampling: Upsampling) -> Float[np.ndarray, "voxel token"]:
    """Share of each token in each voxel's score along one axis; every row sums to 1.

    Args:
        side: voxels along the axis.
        tokens: tokens along the same length.
        upsampling: `nearest`, the token on which the voxel's centre lies; `area`, the mean of the tokens that the voxel
            touches, weighted by what it has of each.
    """
    if upsampling == "nearest":
        # Integers: a centre that lies on the border of two tokens goes to the later one on every machine.
        return np.eye(tokens)[(2 * np.arange(side) + 1) * tokens // (2 * side)]
    # Edges in units of 1 / (side * tokens), so that they are exact.
    voxel, token = np.arange(side) * tokens, np.arange(tokens) * side
    overlap = np.minimum.outer(voxel + tokens, token + side) - np.maximum.outer(voxel, token)
    shares: np.ndarray = overlap.clip(0) / tokens
    return shares
