"""The shapes that a phantom is built of, each a function of position: grids, edges, tubes, bodies, correlated noise.

Positions are millimetres in the scan's own frame: x = column * pixel spacing, y = row * pixel spacing, z as DICOM
stores it. Signed distances are positive inside. Arrays are ordered [slice, row, column] = [z, y, x].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, Shaped
from scipy import ndimage

from preprocessing.annotations import Nodule, Scan, consensus

Point = tuple[float, float, float]
"""A position (x, y, z), mm."""
Index = tuple[slice, slice, slice]
Volume = Float32[np.ndarray, "slice row column"]


@dataclass(frozen=True)
class Grid:
    """Positions on three axes, mm, each ascending."""

    x_mm: Float[np.ndarray, " column"]
    y_mm: Float[np.ndarray, " row"]
    z_mm: Float[np.ndarray, " slice"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of slices, rows and columns."""
        return (len(self.z_mm), len(self.y_mm), len(self.x_mm))

    def part(self, low: Sequence[float], high: Sequence[float]) -> tuple[Index, "Grid"]:
        """The part between two corners (x, y, z), mm, and where it lies in an array on this grid."""
        axes = (self.x_mm, self.y_mm, self.z_mm)
        x, y, z = (
            slice(int(np.searchsorted(axis, start)), int(np.searchsorted(axis, stop, "right")))
            for axis, start, stop in zip(axes, low, high, strict=True)
        )
        return (z, y, x), Grid(self.x_mm[x], self.y_mm[y], self.z_mm[z])

    def from_point(self, point: Point) -> tuple[Shaped[np.ndarray, "..."], ...]:
        """Offsets (x, y, z) of the positions from `point`, mm, as arrays that broadcast to the grid's shape."""
        x, y, z = (
            (axis - centre).astype(np.float32)
            for axis, centre in zip((self.x_mm, self.y_mm, self.z_mm), point, strict=True)
        )
        return x[None, None, :], y[None, :, None], z[:, None, None]


def edge(distance_mm: Shaped[np.ndarray, "..."], width_mm: float) -> Shaped[np.ndarray, "..."]:
    """Share of tissue, 0 to 1, at a signed distance: a smooth step of the given width around 0, flat beyond it."""
    ramp = np.clip(distance_mm / width_mm + 0.5, 0.0, 1.0)
    return np.asarray(ramp * ramp * (3.0 - 2.0 * ramp), np.float32)


@dataclass(frozen=True)
class Ball:
    """A ball."""

    centre_mm: Point
    radius_mm: float

    def box(self, margin_mm: float = 1.0) -> tuple[Point, Point]:
        """Two corners around it."""
        reach = self.radius_mm + margin_mm
        x, y, z = self.centre_mm
        return (x - reach, y - reach, z - reach), (x + reach, y + reach, z + reach)

    def distance(self, grid: Grid) -> Volume:
        """Signed distance, mm."""
        x, y, z = grid.from_point(self.centre_mm)
        return np.asarray(self.radius_mm - np.sqrt(x**2 + y**2 + z**2), np.float32)


@dataclass(frozen=True)
class Tube:
    """A straight tube with round ends whose radius changes evenly along it: part of a vessel, or a spicule."""

    start_mm: Point
    end_mm: Point
    start_radius_mm: float
    end_radius_mm: float

    def box(self, margin_mm: float = 1.0) -> tuple[Point, Point]:
        """Two corners around it."""
        reach = max(self.start_radius_mm, self.end_radius_mm) + margin_mm
        ends = np.array([self.start_mm, self.end_mm])
        low, high = ends.min(0) - reach, ends.max(0) + reach
        return (low[0], low[1], low[2]), (high[0], high[1], high[2])

    def distance(self, grid: Grid) -> Volume:
        """Signed distance to the tube with the radius at the nearest point of its axis, mm."""
        x, y, z = grid.from_point(self.start_mm)
        run = np.subtract(self.end_mm, self.start_mm).astype(np.float32)
        along = np.clip((x * run[0] + y * run[1] + z * run[2]) / max(float(run @ run), 1e-6), 0.0, 1.0)
        from_axis = np.sqrt((x - along * run[0]) ** 2 + (y - along * run[1]) ** 2 + (z - along * run[2]) ** 2)
        radius = self.start_radius_mm + along * (self.end_radius_mm - self.start_radius_mm)
        return np.asarray(radius - from_axis, np.float32)


def pixel_axis(scan: Scan, count: int = 512) -> Float[np.ndarray, " position"]:
    """Positions of a scan's columns (or rows) in its own frame, mm."""
    return np.asarray(np.arange(count) * scan.pixel_spacing_mm)


def slice_spacing_mm(scan: Scan) -> float:
    """Median distance of neighbouring slices, mm."""
    return float(np.median(np.diff(scan.slice_z_mm)))


def slice_index(scan: Scan, z_mm: Float[np.ndarray, " slice"]) -> Float[np.ndarray, " slice"]:
    """Fractional slice index of each z, mm: linear between slices, and beyond the ends with the median spacing."""
    known = np.asarray(scan.slice_z_mm)
    inside = np.interp(z_mm, known, np.arange(len(known)))
    beyond = np.minimum(z_mm - known[0], 0.0) + np.maximum(z_mm - known[-1], 0.0)
    return np.asarray(inside + beyond / slice_spacing_mm(scan))


def sample(
    values: Float32[np.ndarray, "depth height width"],
    indices: tuple[Float[np.ndarray, " slice"], Float[np.ndarray, " row"], Float[np.ndarray, " column"]],
    periodic: bool,
) -> Volume:
    """Values on a grid of fractional indices, linear along each axis; beyond the ends periodic, or as at the end."""
    for axis, index in enumerate(indices):
        index = np.round(index, 6)  # a position on a voxel must not miss it by a rounding error
        below = np.floor(index).astype(int)
        weight = (index - below).astype(np.float32).reshape([-1 if axis == k else 1 for k in range(3)])
        near = _take(values, below, axis, periodic)
        # On the lattice itself (a slice of the scan) the second look-up would be for nothing.
        values = near + weight * (_take(values, below + 1, axis, periodic) - near) if weight.any() else near
    return np.asarray(values)


def _take(
    values: Float32[np.ndarray, "depth height width"], index: Int[np.ndarray, " position"], axis: int, periodic: bool
) -> Float32[np.ndarray, "..."]:
    length = values.shape[axis]
    return np.asarray(np.take(values, index % length if periodic else np.clip(index, 0, length - 1), axis))


@dataclass(frozen=True)
class Noise:
    """Correlated noise of deviation 1 that lives on the scan's own voxels, like a scanner's, and is linear in between.

    It is a periodic tile, so its value at a position depends on nothing but the tile and the position.
    """

    tile: Volume
    scan: Scan

    @classmethod
    def draw(cls, scan: Scan, correlation_mm: Point, generator: np.random.Generator) -> "Noise":
        """White noise on 96 x 96 x 32 voxels, smoothed by a Gaussian of the given deviation (x, y, z), mm."""
        spacing = (slice_spacing_mm(scan), scan.pixel_spacing_mm, scan.pixel_spacing_mm)
        sigma = [length / step for length, step in zip(correlation_mm[::-1], spacing, strict=True)]
        white = generator.standard_normal((32, 96, 96), dtype=np.float32)
        tile = ndimage.gaussian_filter(white, sigma, mode="wrap", truncate=3)
        return cls((tile / tile.std()).astype(np.float32), scan)

    def at(self, grid: Grid) -> Volume:
        """Its values on a grid."""
        rows, columns = (axis / self.scan.pixel_spacing_mm for axis in (grid.y_mm, grid.x_mm))
        return sample(self.tile, (slice_index(self.scan, grid.z_mm), rows, columns), periodic=True)


MARGIN_MM = 4.0
"""What a body's distances reach beyond its surface, mm: more than half of the widest edge."""


def with_volume(depth_mm: Volume, voxels: int) -> Volume:
    """Distances moved so that as many voxels as asked for lie inside."""
    ordered = np.sort(depth_mm, axis=None)[::-1]
    return np.asarray(depth_mm - (ordered[voxels - 1] + ordered[voxels]) / 2, np.float32)


@dataclass(frozen=True)
class Body:
    """A nodule's body: signed distance from the surface of the readers' consensus (half of them)."""

    depth_mm: Volume
    """Signed distance on the scan's voxels, mm."""
    first: tuple[int, int, int]
    """Index (slice, row, column) of the first voxel."""
    scan: Scan
    middle_mm: Point | None = None
    """Where its parts are seen from, if that is not the deepest point: a body that was reshaped keeps it."""

    @classmethod
    def of(cls, nodule: Nodule, margin_mm: float = MARGIN_MM) -> "Body":
        """Distance map of the consensus, smoothed by 0.6 of a voxel to hide the voxels' steps, with the same volume."""
        scan = nodule.scan
        marked, box = consensus(nodule)
        spacing = (slice_spacing_mm(scan), scan.pixel_spacing_mm, scan.pixel_spacing_mm)
        pads = [int(np.ceil(margin_mm / step)) + 1 for step in spacing]
        inside = np.pad(np.moveaxis(marked, 2, 0), [(pad, pad) for pad in pads])
        depth = ndimage.distance_transform_edt(inside, spacing) - ndimage.distance_transform_edt(~inside, spacing)
        # Smoothing shrinks what is small; the surface goes where the body has the consensus' volume again.
        depth = with_volume(ndimage.gaussian_filter(depth, 0.6, mode="nearest").astype(np.float32), int(marked.sum()))
        first = (box.slice[0] - pads[0], box.row[0] - pads[1], box.column[0] - pads[2])
        return cls(depth, first, scan)

    @property
    def deepest_mm(self) -> float:
        """Largest depth, mm: the radius of the largest ball that fits."""
        return max(float(self.depth_mm.max()), self.scan.pixel_spacing_mm / 2)

    @property
    def centre_mm(self) -> Point:
        """The deepest point, or `middle_mm`."""
        if self.middle_mm is not None:
            return self.middle_mm
        index = np.unravel_index(int(self.depth_mm.argmax()), self.depth_mm.shape)
        return self._position(tuple(float(i) for i in index))

    @property
    def radius_mm(self) -> float:
        """Radius of the ball of the same volume, mm."""
        voxel = slice_spacing_mm(self.scan) * self.scan.pixel_spacing_mm**2
        return float((3 / (4 * np.pi) * voxel * max(int((self.depth_mm > 0).sum()), 1)) ** (1 / 3))

    def box(self) -> tuple[Point, Point]:
        """Two corners around the body and its margin."""
        return self._position((0.0, 0.0, 0.0)), self._position(tuple(float(n - 1) for n in self.depth_mm.shape))

    def depth(self, grid: Grid) -> Volume:
        """Signed distance on a grid inside `box`, mm."""
        spacing = self.scan.pixel_spacing_mm
        indices = (slice_index(self.scan, grid.z_mm), grid.y_mm / spacing, grid.x_mm / spacing)
        slices, rows, columns = (index - start for index, start in zip(indices, self.first, strict=True))
        return sample(self.depth_mm, (slices, rows, columns), periodic=False)

    def reach(self, direction: Float[np.ndarray, " xyz"]) -> float:
        """Distance from the deepest point to the outermost surface along a unit direction, mm."""
        low, high = self.box()
        lengths = np.arange(0.0, float(np.linalg.norm(np.subtract(high, low))), 0.25)
        points = np.asarray(self.centre_mm) + lengths[:, None] * direction
        spacing = self.scan.pixel_spacing_mm
        indices = (slice_index(self.scan, points[:, 2]), points[:, 1] / spacing, points[:, 0] / spacing)
        local = [index - start for index, start in zip(indices, self.first, strict=True)]
        depths = ndimage.map_coordinates(self.depth_mm, local, order=1, mode="nearest")
        return float(max(lengths[depths > 0], default=0.0))

    def _position(self, index: tuple[float, ...]) -> Point:
        slices, row, column = (start + step for start, step in zip(self.first, index, strict=True))
        known, last = self.scan.slice_z_mm, len(self.scan.slice_z_mm) - 1
        beyond = min(slices, 0.0) + max(slices - last, 0.0)
        z = float(np.interp(slices, np.arange(len(known)), known)) + beyond * slice_spacing_mm(self.scan)
        return (column * self.scan.pixel_spacing_mm, row * self.scan.pixel_spacing_mm, z)
