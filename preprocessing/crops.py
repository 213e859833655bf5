"""From a block of a scan at native resolution to a nodule's cube and its reader counts. Nothing here touches a file.

A block is [row, column, slice], the order of DICOM pixels and pylidc; a cube is [slice, row, column] with identity
directions in LPS (`lidc_cdam.geometry`). Positions are voxel centres, mm; indices count from 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int16, Shaped, UInt8

from lidc_cdam.artifacts import CONSENSUS_LEVEL
from lidc_cdam.crop_files import PADDING_HU, Crop, marked_by
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.geometry import CROP_SIDE, Grid, origin_of_cube
from preprocessing.annotations import IndexBox
from preprocessing.resample import CUT, FWHM, INTERPOLATIONS, TIE, anti_alias, neighbours, slice_index

Point = tuple[float, float, float]
"""x, y, z in mm."""
SIDES = (8, 256)
"""Fewest and most voxels along a cube's axis."""
SPACINGS_MM = (0.1, 10.0)
"""Finest and coarsest voxels of a cube."""
DECIMALS = 6
"""Interpolated HU are rounded to this many decimals before the last rounding: a value that lies exactly between two
whole numbers (a centre between two voxels) must not depend on the noise of the last bit."""
HU_RANGE = (PADDING_HU + 1, 32767)
"""What a spline's overshoot is cut to: int16, and nothing that reads as padding."""
Place = TypeVar("Place", float, np.ndarray)
"""One coordinate of a position, or of many."""


@dataclass(frozen=True)
class CropSettings:
    """What decides a cube's voxels."""

    side: int = CROP_SIDE
    """Voxels along each axis of a cube, 8 to 256; voxel side // 2 lies on the nodule's centre."""
    spacing_mm: float = 1.0
    """Size of a voxel in mm, 0.1 to 10, the same along each axis."""
    interpolation: Literal["linear", "bspline"] = "linear"
    """How HU between voxels are found. Reader counts always take the nearest voxel."""
    antialias: bool = False
    """Along each axis on which --spacing-mm is coarser than the scan, smooth HU before they are sampled: a Gaussian
    of sigma = sqrt(spacing_mm^2 - native^2) / 2.355."""
    consensus_level: float = CONSENSUS_LEVEL
    """Share of the readers, above 0 and at most 1, that must have marked a voxel of the consensus, which the cube is
    centred on and maps are measured against."""
    signed_distance: bool = False
    """Also write distances/, the distance in mm from the surface of the consensus, negative inside."""

    def __post_init__(self) -> None:
        """Refuse a value out of range.

        Raises:
            LidcCdamError: with the option, what it must be and what it was.
        """
        for name, (low, high) in (("side", SIDES), ("spacing_mm", SPACINGS_MM)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise LidcCdamError(f"--{name.replace('_', '-')} must be from {low:g} to {high:g}; got {value:g}.")
        if self.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise LidcCdamError(f"--interpolation must be one of {known}; got {self.interpolation!r}.")
        if not 0 < self.consensus_level <= 1:
            raise LidcCdamError(
                f"--consensus-level must be above 0 and at most 1, the share of the readers; "
                f"got {self.consensus_level:g}."
            )

    @property
    def grid(self) -> Grid:
        """Of the cubes."""
        return Grid(self.side, self.spacing_mm)

    @property
    def reach_mm(self) -> float:
        """How far beyond the outermost voxels smoothing looks, at most."""
        return CUT * self.spacing_mm / FWHM if self.antialias else 0.0

    @property
    def support(self) -> int:
        """Voxels beyond the two neighbours that interpolation needs."""
        return INTERPOLATIONS[self.interpolation].support


DEFAULT = CropSettings()


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

    @property
    def steps_mm(self) -> tuple[float, float]:
        """Size of a pixel along x and along y; in a turned frame, what of its width and height lies along them."""
        x, y = (
            float(np.hypot(self.spacing_mm[0] * self.along_rows[axis], self.spacing_mm[1] * self.along_columns[axis]))
            for axis in (0, 1)
        )
        return x, y


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


def consensus_box(
    readers: UInt8[np.ndarray, "row column slice"], number: int, box: IndexBox, level: float = CONSENSUS_LEVEL
) -> IndexBox:
    """The smallest box, in the scan, around the voxels that at least the share `level` of the readers marked.

    Args:
        readers: reader counts over `box`.
        number: readers of the nodule.
        box: place of `readers` in the scan.
        level: above 0, at most 1.

    Raises:
        ValueError: there is no such voxel.
    """
    where = np.nonzero(marked_by(readers, number, level))
    if not len(where[0]):
        raise ValueError(f"no voxel was marked by {level:.0%} of the readers")
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
    support: int = 0,
) -> IndexBox:
    """The voxels of a scan that interpolation anywhere between two corners needs, cut to the scan.

    Args:
        low_mm: the lowest x, y, z.
        high_mm: the highest x, y, z.
        frame: of the scan.
        shape: rows and columns of the scan.
        slice_z_mm: z of all its slices, ascending.
        support: voxels to add on every side, for a spline.
    """
    corners = np.array([frame.index(x, y) for x in (low_mm[0], high_mm[0]) for y in (low_mm[1], high_mm[1])])
    # A millionth of a pixel of rounding noise must not leave out the neighbour that a position lies on.
    lows = np.floor(corners.min(axis=0) - TIE).astype(int) - support
    highs = np.ceil(corners.max(axis=0) + TIE).astype(int) + 1 + support
    rows, columns = (
        (min(max(int(low), 0), size - 1), max(min(int(high), size), 1))
        for low, high, size in zip(lows, highs, shape, strict=True)
    )
    first = int(np.searchsorted(slice_z_mm, low_mm[2] + TIE)) - 1 - support
    last = int(np.searchsorted(slice_z_mm, high_mm[2] - TIE)) + 1 + support
    return IndexBox(rows, columns, (max(first, 0), min(last, len(slice_z_mm))))


def cube_corners(centre: Point, settings: CropSettings = DEFAULT) -> tuple[Point, Point]:
    """Positions (x, y, z), mm, of the first and the last place at which a cube needs HU."""
    x, y, z = (start - settings.reach_mm for start in origin_of_cube(centre, settings.grid))
    width = (settings.side - 1) * settings.spacing_mm + 2 * settings.reach_mm
    return (x, y, z), (x + width, y + width, z + width)


def voxel_positions(origin: Point, grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y and z, mm, of a cube's voxels along each axis.

    Args:
        origin: (x, y, z) of voxel [0, 0, 0].
        grid: of the cube.
    """
    x, y, z = (start + grid.spacing_mm * np.arange(grid.side) for start in origin)
    return x, y, z


def cut_cube(block: Block, centre: Point, settings: CropSettings = DEFAULT) -> tuple[Crop, float]:
    """Resample a block to a cube whose voxel [side // 2] * 3 lies on `centre`.

    HU are interpolated in the plane, and along z between the true positions of the slices (so irregular steps are
    exact); reader counts take the nearest voxel. A position belongs to what was read if it lies inside a voxel of the
    block, which reaches half a step beyond its centre; there HU are those of the outermost voxel.

    Args:
        block: the part of the scan that was read.
        centre: (x, y, z), mm, in the block's frame.
        settings: of the cube; `consensus_level` and `signed_distance` play no part here.

    Returns:
        The cube, and the share of its voxels that lie outside the block; they hold `PADDING_HU` and no reader.
    """
    origin = origin_of_cube(centre, settings.grid)
    positions = voxel_positions(origin, settings.grid)
    inside, readers = take_nearest(block, block.readers, centre, settings)
    whole = np.rint(np.round(_interpolated(block, positions, settings), DECIMALS))
    cube = np.where(inside, whole, PADDING_HU).astype(np.int16)
    return Crop(cube, readers, origin, settings.spacing_mm), float(1 - inside.mean())


def take_nearest(
    block: Block, values: Shaped[np.ndarray, "row column slice"], centre: Point, settings: CropSettings = DEFAULT
) -> tuple[Bool[np.ndarray, "z y x"], Shaped[np.ndarray, "z y x"]]:
    """Values of a block's voxels on the grid of a cube, each from the nearest voxel.

    Args:
        block: the part of the scan that was read.
        values: on its voxels.
        centre: (x, y, z), mm, of the cube.
        settings: of the cube.

    Returns:
        Which of the cube's voxels lie inside the block, and their values; 0 outside.
    """
    x, y, z = voxel_positions(origin_of_cube(centre, settings.grid), settings.grid)
    row, column = _in_plane(block, x, y)
    down, across = neighbours(row, values.shape[0]), neighbours(column, values.shape[1])
    level = neighbours(slice_index(np.array(block.z_mm), z, settings.spacing_mm), values.shape[2])
    inside = level.inside[:, None, None] & down.inside & across.inside
    nearest = values[down.nearest, across.nearest, level.nearest[:, None, None]]
    return inside, np.where(inside, nearest, 0).astype(values.dtype)


def _in_plane(
    block: Block, x: Float[np.ndarray, " x"], y: Float[np.ndarray, " y"]
) -> tuple[Float[np.ndarray, "y x"], Float[np.ndarray, "y x"]]:
    """Fractional row and column, in the block, of each pair of positions."""
    grid_y, grid_x = np.meshgrid(y, x, indexing="ij")
    row, column = block.frame.index(grid_x, grid_y)
    return row - block.box.row[0], column - block.box.column[0]


def _interpolated(
    block: Block, positions: tuple[np.ndarray, np.ndarray, np.ndarray], settings: CropSettings
) -> Float[np.ndarray, "z y x"]:
    """HU at every (x, y, z) of three axes, smoothed before sampling where the settings say so."""
    z_mm, spacing = np.array(block.z_mm), settings.spacing_mm
    step = float(np.median(np.diff(z_mm))) if len(z_mm) > 1 else spacing
    native = (*block.frame.steps_mm, step) if settings.antialias else (np.inf,) * 3
    x, y, z = (anti_alias(axis, spacing, size) for axis, size in zip(positions, native, strict=True))
    method = INTERPOLATIONS[settings.interpolation]
    planes = method.plane(block.hu, *_in_plane(block, x.positions, y.positions))
    planes = y.apply(x.apply(planes, 2), 1)
    smooth = z.apply(method.along(planes, z_mm, z.positions), 0)
    # Linear values lie between the scan's own; a spline's may not.
    return np.clip(smooth, *HU_RANGE) if method.support else smooth
