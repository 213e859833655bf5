"""The signed distance of a cube's voxels from the surface of what the readers marked, exact in patient space.

Every voxel of the scan fills its box: a pixel in the plane, half-way to the neighbouring slices along z. The surface is
that of the marked boxes together. So the nearest-neighbour mask of a cube is where the distance is below zero (but for
ties), and the distance knows what that mask cannot: where within a voxel the surface runs.
"""

import numpy as np
from jaxtyping import Bool, Float, Float32

from lidc_cdam.geometry import Grid, origin_of_cube
from preprocessing.crops import Block, Point, voxel_positions
from preprocessing.resample import TIE


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
    row, column = block.frame.index(grid_x, grid_y)
    rows, columns, slices = (_span(marked, axis) for axis in range(3))
    edges = (
        (block.box.row[0] + np.arange(rows.start, rows.stop + 1) - 0.5) * block.frame.spacing_mm[0],
        (block.box.column[0] + np.arange(columns.start, columns.stop + 1) - 0.5) * block.frame.spacing_mm[1],
    )
    places = (row * block.frame.spacing_mm[0], column * block.frame.spacing_mm[1])
    up = _gaps(z, _slice_edges(np.array(block.z_mm), grid.spacing_mm)[slices.start : slices.stop + 1])
    # One voxel around what is marked stands for all that lies beyond: its box has no end.
    core = np.pad(marked[rows, columns, slices], 1)
    outwards, inwards = (
        _in_plane(_cheapest(np.where(kind, 0.0, np.inf), up**2), places, edges) for kind in (core, ~core)
    )
    distances: np.ndarray = np.where(outwards > 0, np.sqrt(outwards), -np.sqrt(inwards)).astype(np.float32)
    return distances


Pair = tuple[np.ndarray, np.ndarray]


def _in_plane(cost: Float[np.ndarray, "row column z"], places: Pair, edges: Pair) -> Float[np.ndarray, "z y x"]:
    """Squared distance to the nearest voxel, given it along z: the plane's part, exact for any frame.

    Args:
        cost: squared distance along z to the nearest voxel of a kind in each column of voxels; infinite without one.
        places: along rows and along columns, mm, of each pair (y, x) of the cube's positions.
        edges: of the rows and of the columns, mm, ascending.
    """
    down, across = places
    if np.ptp(down, axis=1).max() + np.ptp(across, axis=0).max() < TIE:
        # Rows run along x: one axis after the other, [row, column, z] -> [column, z, y] -> [z, y, x].
        cost = _cheapest(np.moveaxis(cost, 0, -1), _gaps(down[:, 0], edges[0]) ** 2)
        return _cheapest(np.moveaxis(cost, 0, -1), _gaps(across[0], edges[1]) ** 2)
    if np.ptp(down, axis=0).max() + np.ptp(across, axis=1).max() < TIE:
        swapped = _in_plane(cost, (down.T, across.T), edges)
        return np.swapaxes(swapped, 1, 2)
    pixels = cost.reshape(-1, cost.shape[2]).T
    found = [
        (pixels + (a[:, None] ** 2 + b**2).ravel()).min(axis=1)
        for a, b in zip(_gaps(down.ravel(), edges[0]), _gaps(across.ravel(), edges[1]), strict=True)
    ]
    return np.stack(found, axis=1).reshape(-1, *down.shape)


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


def _cheapest(
    cost: Float[np.ndarray, "*other voxel"], squares: Float[np.ndarray, "position voxel"]
) -> Float[np.ndarray, "*other position"]:
    """Least sum of a voxel's cost and the squared distance to it, for each position along the last axis."""
    return np.stack([(cost + square).min(axis=-1) for square in squares], axis=-1)
