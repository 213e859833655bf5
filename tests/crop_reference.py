"""Slow literal twins of what `preprocessing.crops` does beyond the default cube, and bodies of known size.

Written from the definitions alone: points are (y, x, z) in mm, blocks are [row column slice], as in `reference.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, exp, pi, sqrt

import numpy as np

from preprocessing.annotations import IndexBox
from preprocessing.crops import Block, Frame

Point = tuple[float, float, float]
Interval = tuple[float, float]


def cube_points(centre: Point, side: int, spacing_mm: float) -> list[list[float]]:
    """Coordinates of a cube's voxels along each axis: voxel `side // 2` lies on the centre."""
    return [[coordinate + (index - side // 2) * spacing_mm for index in range(side)] for coordinate in centre]


def voxel_intervals(positions: Sequence[float]) -> list[Interval]:
    """What each voxel of an axis fills: half-way to its neighbours, the outermost ones as far outwards as inwards."""
    edges = [(low + high) / 2 for low, high in pairwise(positions)]
    first = positions[0] - (edges[0] - positions[0])
    last = positions[-1] + (positions[-1] - edges[-1])
    ends = [first, *edges, last]
    return list(pairwise(ends))


def outside(interval: Interval, value: float) -> float:
    """How far a value lies from an interval; 0 in it."""
    return max(interval[0] - value, value - interval[1], 0.0)


def signed_box_distance(marked: np.ndarray, intervals: Sequence[Sequence[Interval]], point: Point) -> float:
    """Distance from the surface of the union of the marked voxels' boxes, negative inside.

    Outside it is the distance to the nearest marked box; inside, that to the nearest box that is not marked, where the
    block is surrounded by unmarked ones without end.
    """
    grown = np.pad(marked, 1)
    whole = [[(-np.inf, axis[0][0]), *axis, (axis[-1][1], np.inf)] for axis in intervals]
    nearest = {True: np.inf, False: np.inf}
    for index in np.ndindex(*grown.shape):
        parts = [outside(axis[place], value) for axis, place, value in zip(whole, index, point, strict=True)]
        kind = bool(grown[index])
        nearest[kind] = min(nearest[kind], sqrt(sum(part**2 for part in parts)))
    return nearest[True] if nearest[True] > 0 else -nearest[False]


def sigma_mm(target_mm: float, native_mm: float) -> float:
    """Deviation of the Gaussian that widens a full width at half maximum of one native voxel to one target voxel."""
    return sqrt(max(target_mm**2 - native_mm**2, 0.0)) / (2 * sqrt(2 * np.log(2)))


def smoothed(sample: Callable[[Point], float], point: Point, sigmas: Point, step_mm: float) -> float:
    """Gaussian mean of an interpolated function around a point, by a sum over a fine grid up to three deviations."""
    total = weights = 0.0
    reach = [ceil(3 * sigma / step_mm) if sigma else 0 for sigma in sigmas]
    for index in np.ndindex(*(2 * count + 1 for count in reach)):
        offsets = [(place - count) * step_mm for place, count in zip(index, reach, strict=True)]
        if any(sigma and abs(offset) > 3 * sigma for offset, sigma in zip(offsets, sigmas, strict=True)):
            continue
        weight = exp(-sum((o / s) ** 2 / 2 for o, s in zip(offsets, sigmas, strict=True) if s))
        total += weight * sample(tuple(p + o for p, o in zip(point, offsets, strict=True)))
        weights += weight
    return total / weights


# --- Bodies of known size ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid along the patient's axes; a ball where the three half-axes are equal."""

    centre: Point
    """x, y, z in mm."""
    half_mm: Point

    @property
    def volume_mm3(self) -> float:
        return 4 / 3 * pi * float(np.prod(self.half_mm))

    def holds(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        parts = zip((x, y, z), self.centre, self.half_mm, strict=True)
        return sum(((place - middle) / half) ** 2 for place, middle, half in parts) <= 1


@dataclass(frozen=True)
class Rod:
    """A round rod with flat ends, along a direction."""

    centre: Point
    """x, y, z in mm."""
    radius_mm: float
    length_mm: float
    direction: Point

    @property
    def volume_mm3(self) -> float:
        return pi * self.radius_mm**2 * self.length_mm

    def holds(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        along = np.array(self.direction) / np.linalg.norm(self.direction)
        offsets = [place - middle for place, middle in zip((x, y, z), self.centre, strict=True)]
        height = sum(part * offset for part, offset in zip(along, offsets, strict=True))
        away = sum(offset**2 for offset in offsets) - height**2
        return (np.abs(height) <= self.length_mm / 2) & (away <= self.radius_mm**2)


def soft_volume_mm3(distance_mm: np.ndarray, spacing_mm: float) -> float:
    """Volume under a surface from signed distances: a voxel counts by how far it reaches across the surface."""
    return float(np.clip(0.5 - distance_mm / spacing_mm, 0, 1).sum(dtype=np.float64) * spacing_mm**3)


def soft_centre(distance_mm: np.ndarray, origin_mm: Point, spacing_mm: float) -> Point:
    """Centre (x, y, z) of what lies under a surface, mm, from signed distances [z y x]."""
    weights = np.clip(0.5 - distance_mm / spacing_mm, 0, 1)
    z, y, x = (
        float((weights.sum(axis=tuple(other for other in range(3) if other != axis)) * place).sum() / weights.sum())
        for axis, place in enumerate(np.arange(size) for size in weights.shape)
    )
    return tuple(start + spacing_mm * place for start, place in zip(origin_mm, (x, y, z), strict=True))


Body = Ellipsoid | Rod


def draw(
    body: Body,
    pixel_mm: tuple[float, float],
    z_mm: tuple[float, ...],
    along_columns: tuple[float, float] = (1.0, 0.0),
    along_rows: tuple[float, float] = (0.0, 1.0),
    side_mm: float = 100.0,
) -> Block:
    """A scan of 0 HU around and 1000 HU inside a body, marked by one reader where a voxel's centre is inside.

    Args:
        body: what to draw.
        pixel_mm: distance of rows and of columns.
        z_mm: of the slices.
        along_columns: (x, y) in which the column index grows.
        along_rows: (x, y) in which the row index grows.
        side_mm: of the plane, whose middle lies on x = y = 0.
    """
    shape = (round(side_mm / pixel_mm[0]), round(side_mm / pixel_mm[1]))
    at_zero = Frame((0.0, 0.0), pixel_mm, along_columns, along_rows)
    x, y = at_zero.position_mm((shape[0] - 1) / 2, (shape[1] - 1) / 2)
    frame = Frame((-x, -y), pixel_mm, along_columns, along_rows)
    row, column = np.mgrid[: shape[0], : shape[1]]
    x, y = frame.position_mm(row[..., None], column[..., None])
    marked = body.holds(x, y, np.array(z_mm))
    box = IndexBox((0, shape[0]), (0, shape[1]), (0, len(z_mm)))
    heights = tuple(float(z) for z in z_mm)
    return Block((1000 * marked).astype(np.int16), marked.astype(np.uint8), box, frame, heights)
