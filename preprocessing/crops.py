"""From a block of a scan at native resolution to a nodule's cube and its reader counts. Nothing here touches a file.

A block is [row, column, slice], the order of DICOM pixels and pylidc; a cube is [slice, row, column] with identity
directions in LPS (`lidc_cdam.geometry`). Positions are voxel centres, mm; indices count from 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from jaxtyping import Bool, Float, Int, Int16, Shaped, UInt8

from lidc_cdam.artifacts import PADDING_HU, Crop
from lidc_cdam.geometry import CROP_SIDE, origin_of_cube
from preprocessing.annotations import IndexBox

Point = tuple[float, float, float]
"""x, y, z in mm."""
SPACING_MM = 1.0
DECIMALS = 6
"""Interpolated HU are rounded to this many decimals before the last rounding: a value that lies exactly between two
whole numbers (a centre between two voxels) must not depend on the noise of the last bit."""
TIE_MM = 1e-6
"""Shift that sends a position exactly between two voxels to the one of the lower index, for the same reason."""


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

    def position_mm(self, row: float, column: float) -> tuple[float, float]:
        """X and y of a (fractional) pixel index."""
        down, across = row * self.spacing_mm[0], column * self.spacing_mm[1]
        x, y = (
            self.corner_mm[axis] + down * self.along_rows[axis] + across * self.along_columns[axis] for axis in (0, 1)
        )
        return x, y

    def index(self, x: float, y: float) -> tuple[float, float]:
        """Fractional row and column of a position."""
        matrix = np.array([self.along_rows, self.along_columns]).T
        down, across = np.linalg.solve(matrix, np.array([x, y]) - self.corner_mm)
        return float(down) / self.spacing_mm[0], float(across) / self.spacing_mm[1]


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
    lows = np.floor(corners.min(axis=0) - TIE_MM).astype(int)
    highs = np.ceil(corners.max(axis=0) + TIE_MM).astype(int) + 1
    rows, columns = (
        (min(max(int(low), 0), size - 1), max(min(int(high), size), 1))
        for low, high, size in zip(lows, highs, shape, strict=True)
    )
    first = int(np.searchsorted(slice_z_mm, low_mm[2] + TIE_MM)) - 1
    last = int(np.searchsorted(slice_z_mm, high_mm[2] - TIE_MM)) + 1
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

    HU are interpolated linearly, first along z between the true positions of the slices (so irregular steps are
    exact), then in the plane; reader counts take the nearest voxel. A position belongs to what was read if it lies
    inside a voxel of the block, which reaches half a step beyond its centre.

    Args:
        block: the part of the scan that was read.
        centre: (x, y, z), mm, in the block's frame.

    Returns:
        The cube, and the share of its voxels that lie outside the block; they hold `PADDING_HU` and no reader.
    """
    origin = origin_of_cube(centre, SPACING_MM)
    heights = origin[2] + SPACING_MM * np.arange(CROP_SIDE)
    lower, weight, inside_z = _between(np.array(block.z_mm), heights)
    upper = np.minimum(lower + 1, len(block.z_mm) - 1)
    above = weight[:, None, None]
    hu, readers = (np.ascontiguousarray(np.moveaxis(part, 2, 0)) for part in (block.hu, block.readers))
    levels = hu[lower] * (1 - above) + hu[upper] * above
    nearest = np.where(weight > 0.5 + TIE_MM, upper, lower)
    # One is added so that the resampler's 0 outside tells what was not read from what no reader marked.
    counts = np.where(inside_z[:, None, None], readers[nearest] + 1, 0).astype(np.uint8)

    found = _in_plane(counts, block, origin, sitk.sitkNearestNeighbor, TIE_MM)
    inside = found > 0
    smooth = _in_plane(levels, block, origin, sitk.sitkLinear, 0.0)
    cube = np.where(inside, np.rint(np.round(smooth, DECIMALS)), PADDING_HU).astype(np.int16)
    return Crop(cube, found - inside, origin, SPACING_MM), float(1 - inside.mean())


def _between(
    z_mm: Float[np.ndarray, " slice"], heights: Float[np.ndarray, " level"]
) -> tuple[Int[np.ndarray, " level"], Float[np.ndarray, " level"], Bool[np.ndarray, " level"]]:
    """The slice below each height, the weight of the one above, and whether the height lies inside a slice."""
    if len(z_mm) == 1:
        # The step of a single slice is unknown: it stands for one voxel of the cube.
        inside = np.abs(heights - z_mm[0] - TIE_MM) < SPACING_MM / 2
        return np.zeros(len(heights), dtype=int), np.zeros(len(heights)), inside
    lower = np.clip(np.searchsorted(z_mm, heights, side="right") - 1, 0, len(z_mm) - 2)
    steps = np.diff(z_mm)
    weight = np.clip((heights - z_mm[lower]) / steps[lower], 0, 1)
    # The border between two slices belongs to the lower one, as a tie does.
    bottom, top = z_mm[0] - steps[0] / 2 + TIE_MM, z_mm[-1] + steps[-1] / 2 + TIE_MM
    return lower, weight, (heights > bottom) & (heights < top)


def _in_plane(
    levels: Shaped[np.ndarray, "level row column"],
    block: Block,
    origin: Point,
    interpolator: int,
    shift_mm: float,
) -> Shaped[np.ndarray, "slice row column"]:
    """Resample images that already lie at the cube's heights onto the cube's grid; 0 outside."""
    frame = block.frame
    image = sitk.GetImageFromArray(levels)
    x, y = frame.position_mm(
        block.box.row[0] + shift_mm / frame.spacing_mm[0], block.box.column[0] + shift_mm / frame.spacing_mm[1]
    )
    image.SetOrigin((x, y, origin[2]))
    image.SetSpacing((frame.spacing_mm[1], frame.spacing_mm[0], SPACING_MM))
    (column_x, column_y), (row_x, row_y) = frame.along_columns, frame.along_rows
    image.SetDirection((column_x, row_x, 0, column_y, row_y, 0, 0, 0, 1))
    resampler = sitk.ResampleImageFilter()
    resampler.SetNumberOfThreads(1)
    resampler.SetInterpolator(interpolator)
    resampler.SetSize((CROP_SIDE,) * 3)
    resampler.SetOutputOrigin(origin)
    resampler.SetOutputSpacing((SPACING_MM,) * 3)
    cube: np.ndarray = sitk.GetArrayFromImage(resampler.Execute(image))
    return cube
