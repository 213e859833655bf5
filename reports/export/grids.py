"""Layers as frames: on the crop's own grid, or on the slices of the source series."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import highdicom
import numpy as np
from jaxtyping import Float, Shaped
from pydicom.dataset import Dataset

from reports.export.source import directions, normal, position
from reports.export.subject import Layer

Extent = Literal["crop", "full"]


@dataclass(frozen=True)
class Frames:
    """Values on parallel planes, with what highdicom needs to place them."""

    values: Shaped[np.ndarray, "frame row column"]
    place: dict[str, Any]
    """Arguments that place the frames; empty where they are those of the source slices."""


def frames_of(layer: Layer, source: Sequence[Dataset], extent: Extent, order: int) -> Frames:
    """A layer's frames.

    Args:
        layer: values at 1 mm around the nodule, say.
        source: headers of the source series.
        extent: `crop`, the layer's own grid; `full`, the grid of every source slice, 0 beyond the layer. A layer of one
            slice between two source slices stands on the nearer one.
        order: how `full` samples: 0 takes the nearest voxel, 1 interpolates.
    """
    if extent == "crop":
        return Frames(layer.values, crop_place(layer))
    placed = _on_nearest(layer, source) if len(layer.values) == 1 else layer
    return Frames(np.stack([_sampled(placed, one, order) for one in source]), {})


def _on_nearest(layer: Layer, source: Sequence[Dataset]) -> Layer:
    """A layer of one slice, moved to the nearest source slice where it lies between two and would be on neither."""
    across = normal(source[0])
    heights = np.sort([position(one) @ across for one in source])
    away = heights - layer.corners_mm.mean(0) @ across
    nearest = away[np.abs(away).argmin()]
    widest = np.diff(heights).max(initial=0.0)
    if not layer.spacing_mm / 2 < abs(nearest) <= widest / 2:
        return layer
    x, y, z = np.array(layer.origin_mm) + nearest * across
    return replace(layer, origin_mm=(float(x), float(y), float(z)))


def crop_place(layer: Layer) -> dict[str, Any]:
    """Where the frames of a layer's own grid lie; by ascending z, rows to the back, columns to the left."""
    x, y, z = layer.origin_mm
    step = layer.spacing_mm
    return {
        "plane_positions": [
            highdicom.PlanePositionSequence("PATIENT", (x, y, z + place * step)) for place in range(len(layer.values))
        ],
        "plane_orientation": highdicom.PlaneOrientationSequence("PATIENT", (1, 0, 0, 0, 1, 0)),
        "pixel_measures": highdicom.PixelMeasuresSequence((step, step), step, step),
    }


def _sampled(layer: Layer, header: Dataset, order: int) -> Float[np.ndarray, "row column"]:
    """A layer on the pixels of one source slice."""
    across, down = directions(header)
    corner = position(header)
    made = np.zeros((header.Rows, header.Columns))
    rows, columns = _reach(layer, corner, across, down, made.shape)
    if rows.size and columns.size:
        points = corner + rows[:, None, None] * down + columns[None, :, None] * across
        made[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = layer.at(points, order)
    return made


def _reach(
    layer: Layer,
    corner: Float[np.ndarray, "3"],
    across: Float[np.ndarray, "3"],
    down: Float[np.ndarray, "3"],
    shape: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of a slice that a layer can touch: those below the box around its corners."""
    ranges = []
    for step, size in ((down, shape[0]), (across, shape[1])):
        index = (layer.corners_mm - corner) @ step / (step @ step)
        ranges.append(np.arange(max(int(np.floor(index.min())), 0), min(int(np.ceil(index.max())) + 1, size)))
    return ranges[0], ranges[1]
