"""From a block of a scan at native resolution to a nodule's cube and its reader counts. Nothing here touches a file.

A block is [row, column, slice], the order of DICOM pixels and pylidc; a cube is [slice, row, column] with identity
directions in LPS (`lidc_cdam.geometry`). Positions are voxel centres, mm; indices count from 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int, Int16, UInt8

from lidc_cdam.artifacts import PADDING_HU, Crop
from lidc_cdam.geometry import CROP_SIDE, origin_of_cube
from preprocessing.annotations import IndexBox

Point = tuple[float, float, float]
"""x, y, z in mm."""
SPACING_MM = 1.0
DECIMALS = 6
"""Interpolated HU are rounded to this many decimals before the last rounding: a value that lies exactly between two
whole numbers (a centre between two voxels) must not depend on the noise of the last bit."""
TIE = 1e-6
"""Share of a step within which a position counts as exactly between two voxels, which sends it to the lower index."""
Place = TypeVar("Place", float, np.ndarray)
"""One coordinate of a position, or of many."""


@dataclass(frozen=True)
class Frame:
    """Where the pixels of an axial scan lie in its plane."""

    corner_mm: tuple[float, float]
    """x and y of pixel [0, 0]."""
    spacing_mm: tuple[float, float]
    """Distance of neighbouring rows and of neighbouring columns."""
    along_columns: tuple[float, float] = (1.0, 0.0)
    """Unit vector (x, y) in which the column index grows."""
    along_rows: tuple[float, float] = (0.0, 1.0)
    """Unit vector (x, y) in which the row index grows."""
    patient: bool = True
    """Whether x and y are patient coordinates; else they are the scan's own (x grows with the column, y with the row,
    both 0 at the first pixel)."""

    def position_mm(self, row: Place, column: Place) -> tuple[Place, Place]:
        """X and y of (fractional) pixel indices."""
        down, across = row * self.spacing_mm[0], column * self.spacing_mm[1]
        x, y = (
            self.corner_mm[axis] + down * self.along_rows[axis] + across * self.along_columns[axis] for axis in (0, 1)
        )
        return x, y

    def index(self, x: Place, y: Place) -> tuple[Place, Place]:
        """Fractional row and column of positions."""
        (row_x, row_y), (column_x, column_y) = self.along_rows, self.along_columns
        right, back = x - self.corner_mm[0], y - self.corner_mm[1]
        area = row_x * column_y - row_y * column_x
        down, across = (right * column_y - back * column_x) / area, (back * row_x - right * row_y) / area
        return down / self.spacing_mm[0], across / self.spacing_mm[1]


@dataclass(frozen=True, eq=False)
class Block:
    """A part of a scan at native resolution."""

    hu: Int16[np.ndarray, "row column slice"]
    readers: UInt8[np.ndarray, "row column slice"]
    box: IndexBox
    """Its place in the scan."""
    frame: Frame
    """Of the scan."""
    z_mm: tuple[float, ...]
    """z of each of its slices, ascending; any steps."""


def consensus_box(readers: UInt8[np.ndarray, "row column slice"], number: int, box: IndexBox) -> IndexBox:
    """The smallest box, in the scan, around the voxels that at least half of the readers marked.

    Args:
        readers: reader counts over `box`.
        number: readers of the nodule.
        box: place of `readers` in the scan.

    Raises:
        ValueError: no voxel was marked by half of the readers.
    """
    where = np.nonzero(2 * readers.astype(int) >= number)
    if not len(where[0]):
        raise ValueError("no voxel was marked by half of the readers")
    rows, columns, slices = (
        (outer[0] + int(index.min()), outer[0] + int(index.max()) + 1)
        for outer, index in zip((box.row, box.column, box.slice), where, strict=True)
    )
    return IndexBox(rows, columns, slices)


def centre_mm(box: IndexBox, frame: Frame, slice_z_mm: Sequence[float], first: int = 0) -> Point:
    """Position (x, y, z) of the middle of a box of voxels: that of its fractional central index.

    Args:
        box: half-open index ranges in the scan.
        frame: of the scan.
        slice_z_mm: z of slices, ascending; those of the box must be among them.
        first: index in the scan of the first of them.
    """
    row, column, level = box.centre
    x, y = frame.position_mm(row, column)
    return x, y, float(np.interp(level - first, np.arange(len(slice_z_mm)), slice_z_mm))


def surrounding_box(
    low_mm: Point,
    high_mm: Point,
    frame: Frame,
    shape: tuple[int, int],
    slice_z_mm: Sequence[float],
) -> IndexBox:
    """The voxels of a scan that interpolation anywhere between two corners needs, cut to the scan.

    Args:
        low_mm: the lowest x, y, z.
        high_mm: the highest x, y, z.
        frame: of the scan.
        shape: rows and columns of the scan.
        slice_z_mm: z of all its slices, ascending.
    """
    corners = np.array([frame.index(x, y) for x in (low_mm[0], high_mm[0]) for y in (low_mm[1], high_mm[1])])
    # A millionth of a pixel of rounding noise must not leave out the neighbour that a position lies on.
    lows = np.floor(corners.min(axis=0) - TIE).astype(int)
    highs = np.ceil(corners.max(axis=0) + TIE).astype(int) + 1
    rows, columns = (
        (min(max(int(low), 0), size - 1), max(min(int(high), size), 1))
        for low, high, size in zip(lows, highs, shape, strict=True)
    )
    first = int(np.searchsorted(slice_z_mm, low_mm[2] + TIE)) - 1
    last = int(np.searchsorted(slice_z_mm, high_mm[2] - TIE)) + 1
    return IndexBox(rows, columns, (max(first, 0), min(last, len(slice_z_mm))))


def cube_corners(
    centre: Point,
) -> tuple[Point, Point]:
    """Positions (x, y, z), mm, of a cube's first and last voxel."""
    x, y, z = origin_of_cube(centre, SPACING_MM)
    side = (CROP_SIDE - 1) * SPACING_MM
    return (x, y, z), (x + side, y + side, z + side)


def cut_cube(block: Block, centre: Point) -> tuple[Crop, float]:
    """Resample a block to a cube of 32 voxels of 1 mm whose voxel [16, 16, 16] lies on `centre`.

    HU are interpolated linearly, in the plane and along z between the true positions of the slices (so irregular steps
    are exact); reader counts take the nearest voxel. A position belongs to what was read if it lies inside a voxel of
    the block, which reaches half a step beyond its centre; there HU are those of the outermost voxel.

    Args:
        block: the part of the scan that was read.
        centre: (x, y, z), mm, in the block's frame.

    Returns:
        The cube, and the share of its voxels that lie outside the block; they hold `PADDING_HU` and no reader.
    """
    origin = origin_of_cube(centre, SPACING_MM)
    x, y, z = (start + SPACING_MM * np.arange(CROP_SIDE) for start in origin)
    grid_y, grid_x = np.meshgrid(y, x, indexing="ij")
    row, column = block.frame.index(grid_x, grid_y)
    down = _neighbours(row - block.box.row[0], block.hu.shape[0])
    across = _neighbours(column - block.box.column[0], block.hu.shape[1])
    level = _neighbours(_slice_index(np.array(block.z_mm), z), block.hu.shape[2])

    inside = level.inside[:, None, None] & down.inside & across.inside
    smooth = _linear(block.hu, down, across, level)
    cube = np.where(inside, np.rint(np.round(smooth, DECIMALS)), PADDING_HU).astype(np.int16)
    nearest = block.readers[down.nearest, across.nearest, level.nearest[:, None, None]]
    readers = np.where(inside, nearest, 0).astype(np.uint8)
    return Crop(cube, readers, origin, SPACING_MM), float(1 - inside.mean())


@dataclass(frozen=True, eq=False)
class _Neighbours:
    """Along one axis of a block: between which voxels each position lies."""

    lower: Int[np.ndarray, "*position"]
    upper: Int[np.ndarray, "*position"]
    weight: Float[np.ndarray, "*position"]
    """Of the upper voxel, 0 to 1."""
    nearest: Int[np.ndarray, "*position"]
    inside: Bool[np.ndarray, "*position"]
    """Whether the position lies inside a voxel."""


def _neighbours(index: Float[np.ndarray, "*position"], size: int) -> _Neighbours:
    """What fractional indices lie between, on an axis of `size` voxels; ties and borders go to the lower index."""
    lower = np.clip(np.floor(index).astype(int), 0, max(size - 2, 0))
    upper = np.minimum(lower + 1, size - 1)
    weight = np.clip(index - lower, 0, 1)
    inside = (index > TIE - 0.5) & (index < size - 0.5 + TIE)
    return _Neighbours(lower, upper, weight, np.where(weight > 0.5 + TIE, upper, lower), inside)


def _slice_index(
    z_mm: Float[np.ndarray, "slice"], heights_mm: Float[np.ndarray, "level"]
) -> Float[np.ndarray, "level"]:
    """Fractional slice indices of heights; beyond the ends the outermost step goes on."""
    if len(z_mm) == 1:
        # The step of a single slice is unknown: it stands for one voxel of the cube.
        lower, steps = np.zeros(len(heights_mm), dtype=int), np.array([SPACING_MM])
    else:
        lower = np.clip(np.searchsorted(z_mm, heights_mm, side="right") - 1, 0, len(z_mm) - 2)
        steps = np.diff(z_mm)
    index: np.ndarray = lower + (heights_mm - z_mm[lower]) / steps[lower]
    return index


def _linear(
    hu: Int16[np.ndarray, "row column slice"], down: _Neighbours, across: _Neighbours, level: _Neighbours
) -> Float[np.ndarray, "z y x"]:
    """Linear interpolation, first in the plane of every slice, then along z."""
    left, right = 1 - across.weight[..., None], across.weight[..., None]
    above = hu[down.lower, across.lower] * left + hu[down.lower, across.upper] * right
    below = hu[down.upper, across.lower] * left + hu[down.upper, across.upper] * right
    planes = np.moveaxis(above * (1 - down.weight[..., None]) + below * down.weight[..., None], 2, 0)
    weight = level.weight[:, None, None]
    smooth: np.ndarray = planes[level.lower] * (1 - weight) + planes[level.upper] * weight
    return smooth
