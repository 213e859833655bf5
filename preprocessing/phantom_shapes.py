"""Bodies of another size or roundness: what `sphericity` and `diameter` change of a phantom's nodule.

A body is the distance from its surface, known on the scan's voxels. A larger body is the same one seen closer; a less
round one is stretched along its longest axis; a rounder one is on its way to the ball of the same volume.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from preprocessing.phantom_parts import MARGIN_MM, Body, Volume, slice_spacing_mm, with_volume

MOST_STRETCH = 2.0
"""Factor along the longest axis from the roundest rating to the least round one."""
RATINGS = (1.0, 5.0)
"""Ends of the readers' scale of sphericity."""


@dataclass(frozen=True)
class Shape:
    """How a body differs from the readers' consensus."""

    scale: float = 1.0
    """Factor on every length."""
    stretch: float = 1.0
    """Factor along the longest axis; the two others shrink by its root, so that the volume stays."""
    roundness: float = 0.0
    """0: as it is; 1: the ball of the same volume around the same middle."""

    @classmethod
    def between(cls, own: float, sphericity: float, scale: float) -> "Shape":
        """The shape that takes a nodule from its own rating of sphericity to another one.

        Args:
            own: the readers' mean, 1 to 5, which stands for the body as they drew it.
            sphericity: the wanted rating.
            scale: factor on every length.
        """
        low, high = RATINGS
        if sphericity >= own:
            return cls(scale, 1.0, (sphericity - own) / (high - own) if sphericity > own else 0.0)
        return cls(scale, MOST_STRETCH ** ((own - sphericity) / (high - low)), 0.0)


AS_DRAWN = Shape()


def reshaped(body: Body, shape: Shape) -> Body:
    """The body in another shape, around the same middle; the same body for `AS_DRAWN`."""
    if shape == AS_DRAWN:
        return body
    spacing = np.array([slice_spacing_mm(body.scan), body.scan.pixel_spacing_mm, body.scan.pixel_spacing_mm])
    inside = np.argwhere(body.depth_mm > 0) * spacing
    middle = np.array(np.unravel_index(int(body.depth_mm.argmax()), body.depth_mm.shape)) * spacing
    reach = shape.scale * shape.stretch * np.abs(inside - middle).max() + MARGIN_MM
    half = np.ceil(max(reach, shape.scale * body.radius_mm + MARGIN_MM) / spacing).astype(int) + 1
    start = np.rint(middle / spacing).astype(int) - half
    offsets = [(begin + np.arange(2 * size + 1)) * step for begin, size, step in zip(start, half, spacing, strict=True)]
    places = np.stack(np.meshgrid(*offsets, indexing="ij"), axis=-1) - middle
    depth = _seen(body, middle + places @ _inverse(shape, inside - inside.mean(0)), spacing)
    if shape.stretch != 1.0:
        depth = _as_distance(depth, spacing, shape)
    depth = (1 - shape.roundness) * depth * shape.scale + shape.roundness * (
        shape.scale * body.radius_mm - np.linalg.norm(places, axis=-1)
    )
    voxels = max(round(float((body.depth_mm > 0).sum()) * shape.scale**3), 1)
    first = [int(begin + offset) for begin, offset in zip(body.first, start, strict=True)]
    return replace(
        body,
        depth_mm=with_volume(depth.astype(np.float32), voxels),
        first=(first[0], first[1], first[2]),
        middle_mm=body.centre_mm,
    )


def _inverse(shape: Shape, centred: Float[np.ndarray, "voxel 3"]) -> Float[np.ndarray, "3 3"]:
    """From offsets in the new shape to offsets in the body, both (z, y, x); symmetric."""
    _, axes = np.linalg.eigh(centred.T @ centred)
    along = np.array([shape.stretch**-0.5, shape.stretch**-0.5, shape.stretch]) * shape.scale
    return np.asarray((axes / along) @ axes.T)


def _seen(body: Body, places_mm: Float[np.ndarray, "*position 3"], spacing: Float[np.ndarray, " 3"]) -> Volume:
    """Distances at any offsets (z, y, x) from the body's first voxel; beyond its box they fall by a mm a mm."""
    last = (np.array(body.depth_mm.shape) - 1) * spacing
    held = np.clip(places_mm, 0.0, last)
    found = ndimage.map_coordinates(body.depth_mm, np.moveaxis(held / spacing, -1, 0), order=1, mode="nearest")
    return np.asarray(found - np.linalg.norm(places_mm - held, axis=-1), np.float32)


def _as_distance(depth: Volume, spacing: Float[np.ndarray, " 3"], shape: Shape) -> Volume:
    """About the distance again after a stretch: divided by how fast it changes, which lies between known bounds."""
    slope = np.sqrt(sum(part**2 for part in np.gradient(depth, *spacing))) * shape.scale
    return np.asarray(depth / np.clip(slope, 1 / shape.stretch, shape.stretch**0.5), np.float32)
