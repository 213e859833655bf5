"""The signed distance of a cube's voxels from the surface of what the readers marked, exact in patient space.

Every voxel of the scan fills its box: a pixel in the plane, half-way to the neighbouring slices along z. The surface is
that of the marked boxes together. So the nearest-neighbour mask of a cube is where the distance is below zero (but for
ties), and the distance knows what that mask cannot: where within a voxel the surface runs.
"""

import numpy as np
from jaxtyping import Bool, Float, Float32

from lidc_cdam.geometry import Grid, origin_of_cube
from preprocessing.crops import Block, Point, voxel_positions


def surface_distance(
    block: Block, marked: Bool[np.ndarray, "row column slice"], centre: Point, grid: Grid
) -> Float32[np.ndarray, "z y x"]:
    """Distances of a cube's voxel centres from the surface of the marked voxels, mm; negative inside.

    Args:
        block: the part of the scan that was read; beyond it nothing counts as marked.
        marked: over the block; at least one voxel.
        centre: (x, y, z), mm, in the block's frame, of the cube's central voxel.
        grid: of the cube.
    """
    x, y, z = voxel_positions(origin_of_cube(centre, grid), grid)
    grid_y, grid_x = np.meshgrid(y, x, indexing="ij")
    row, column = block.frame.index(grid_x.ravel(), grid_y.ravel())
    rows, columns, slices = (_span(marked, axis) for axis in range(3))
    row_mm, column_mm = block.frame.spacing_mm
    down = _gaps(row * row_mm, (block.box.row[0] + np.arange(rows.start, rows.stop + 1) - 0.5) * row_mm)
    across = _gaps(
        column * column_mm, (block.box.column[0] + np.arange(columns.start, columns.stop + 1) - 0.5) * column_mm
    )
    up = _gaps(z, _slice_edges(np.array(block.z_mm), grid.spacing_mm)[slices.start : slices.stop + 1])
    in_plane = (down[:, :, None] ** 2 + across[:, None, :] ** 2).reshape(len(row), -1)
    # One voxel around what is marked stands for all that lies beyond: its box has no end.
    core = np.pad(marked[rows, columns, slices], 1)
    outwards, inwards = (_nearest(kind, in_plane, up**2) for kind in (core, ~core))
    signed = np.where(outwards > 0, np.sqrt(outwards), -np.sqrt(inwards))
    distances: np.ndarray = signed.reshape(len(z), len(y), len(x)).astype(np.float32)
    return distances


def _span(marked: Bool[np.ndarray, "row column slice"], axis: int) -> slice:
    """The indices along an axis between the first and the last marked voxel."""
    found = np.flatnonzero(marked.any(axis=tuple(other for other in range(3) if other != axis)))
    return slice(int(found[0]), int(found[-1]) + 1)


def _slice_edges(z_mm: Float[np.ndarray, " slice"], single_mm: float) -> Float[np.ndarray, " edge"]:
    """Where slices end: half-way to the next; the outermost ones reach as far outwards as inwards."""
    if len(z_mm) == 1:
        return np.array([z_mm[0] - single_mm / 2, z_mm[0] + single_mm / 2])
    middle = (z_mm[1:] + z_mm[:-1]) / 2
    return np.concatenate([[2 * z_mm[0] - middle[0]], middle, [2 * z_mm[-1] - middle[-1]]])


def _gaps(
    values: Float[np.ndarray, " position"], edges: Float[np.ndarray, " edge"]
) -> Float[np.ndarray, "position voxel"]:
    """How far positions lie from each voxel between ascending edges, and from the endless ones before and behind."""
    low, high = np.concatenate([[-np.inf], edges]), np.concatenate([edges, [np.inf]])
    away: np.ndarray = np.maximum(np.maximum(low - values[:, None], values[:, None] - high), 0)
    return away


def _nearest(
    kind: Bool[np.ndarray, "row column slice"],
    in_plane: Float[np.ndarray, "place pixel"],
    up: Float[np.ndarray, "level slice"],
) -> Float[np.ndarray, "level place"]:
    """Squared distance to the nearest voxel of one kind, from the squared distances along the plane and along z."""
    closed = np.where(kind, 0.0, np.inf).reshape(in_plane.shape[1], -1)
    return np.stack([(in_plane + (closed + height).min(axis=1)).min(axis=1) for height in up])
