"""Which readings of a scan are of one nodule: pylidc's rule, and ours for the clusters that pylidc gives up on.

pylidc's rule (`Scan.cluster_annotations`, default settings): two readings are neighbours where their outlines come
within a tolerance; groups are the connected readings. A group of more than four readers cannot be one nodule, so the
tolerance shrinks by a tenth until there is none or it falls below 0.1. The distance counts voxel steps while the
tolerance starts as the slice thickness in mm: pylidc's own mix of units, kept because the published cohorts rest on it.
With positions in mm 4 of 883 scans change.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float, Int, Real
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

MOST_READERS = 4
SHRINK = 0.9
LEAST_TOLERANCE = 0.1
ROUNDING_MM = 1e-6
"""What positions in mm may be off; neighbouring slices are often exactly a slice thickness apart."""
LEAST_OVERLAP = 0.2
"""Overlap (intersection over union) from which two readings of a crowded cluster speak for one nodule. Of the 6825
pairs of readings in clusters of three or four, one in 200 overlaps less."""

Points = Int[np.ndarray, "_ 3"]
"""All outline corners of a reading: row, column, slice, in voxel indices from 0."""
Positions = Real[np.ndarray, "_ 3"]
"""Where those corners lie, in the unit of the tolerance."""
Parts = tuple[tuple[int, ...], ...]


def cluster(
    readings: Sequence[Points], tolerance: float, positions_mm: Sequence[Positions] | None = None
) -> list[list[int]]:
    """Indices of the readings of each nodule, in pylidc's order of nodules.

    Args:
        readings: outline corners of each reading of one scan, in database order.
        tolerance: the first tolerance, the scan's slice thickness in mm.
        positions_mm: the same corners in mm; by default distances count voxel steps, as pylidc's do.

    Returns:
        One list of indices per nodule, ascending; nodules by the mean slice of their readings' corners.
    """
    if not readings:
        return []
    distances = _distances(readings, tolerance, positions_mm)
    labels = _labels(distances, tolerance)
    groups = [[int(index) for index in np.flatnonzero(labels == label)] for label in range(labels.max() + 1)]
    return in_order(readings, groups)


def in_order(readings: Sequence[Points], groups: Sequence[list[int]]) -> list[list[int]]:
    """Groups of readings by the mean slice of their corners, first the mean of each reading."""
    height = [points[:, 2].mean() for points in readings]
    return sorted(groups, key=lambda group: float(np.mean([height[index] for index in group])))


def split(overlap: Float[np.ndarray, "reading reading"], apart: Bool[np.ndarray, "reading reading"]) -> list[list[int]]:
    """Divide a cluster of more than four readings, where some reader outlined parts and another the whole.

    Of all divisions into parts of at most four readings without a forbidden pair, the one with the largest sum of
    (overlap - `LEAST_OVERLAP`) over the pairs within parts: correlation clustering (Bansal, Blum & Chawla 2004), found
    by trying every division. A reading that fits no part stays alone. The 14 crowded clusters of LIDC-IDRI hold five to
    eight readings, so there are at most 4140 divisions.

    Args:
        overlap: intersection over union of the voxels of each two readings.
        apart: pairs that cannot be of one nodule.

    Returns:
        Indices of the readings of each part, ascending.
    """
    gain = overlap - LEAST_OVERLAP

    def worth(parts: Parts) -> float:
        return sum(float(gain[pair]) for part in parts for pair in combinations(part, 2))

    return [list(part) for part in max(_divisions(apart), key=worth)]


def _divisions(apart: Bool[np.ndarray, "reading reading"], parts: Parts = ()) -> Iterator[Parts]:
    """Every division of the readings into allowed parts, each once."""
    reading = sum(map(len, parts))
    if reading == len(apart):
        yield parts
        return
    for place, part in enumerate(parts):
        if len(part) < MOST_READERS and not apart[reading, list(part)].any():
            yield from _divisions(apart, (*parts[:place], (*part, reading), *parts[place + 1 :]))
    yield from _divisions(apart, (*parts, (reading,)))


def _labels(distances: Float[np.ndarray, "reading reading"], tolerance: float) -> Int[np.ndarray, "reading"]:
    labels: np.ndarray = connected_components(distances <= tolerance, directed=False)[1]
    while np.bincount(labels).max() > MOST_READERS:
        tolerance *= SHRINK
        if tolerance < LEAST_TOLERANCE:
            break
        labels = connected_components(distances <= tolerance, directed=False)[1]
    return labels


def _distances(
    readings: Sequence[Points], reach: float, positions_mm: Sequence[Positions] | None
) -> Float[np.ndarray, "reading reading"]:
    """Least distance of two readings' corners; infinite where it exceeds `reach` clearly."""
    places, slack = (readings, 0.0) if positions_mm is None else (positions_mm, ROUNDING_MM)
    low = np.array([points.min(axis=0) for points in places])
    high = np.array([points.max(axis=0) for points in places])
    gap = np.maximum(np.maximum(low[:, None] - high[None], low[None] - high[:, None]), 0)
    near = (gap**2).sum(axis=2) <= (reach + slack) ** 2
    distances = np.full(near.shape, np.inf)
    np.fill_diagonal(distances, 0)
    touched = [set((points @ (1 << 40, 1 << 20, 1)).tolist()) for points in readings]
    for one, other in np.argwhere(np.triu(near, 1)):
        distance = 0.0
        if touched[one].isdisjoint(touched[other]):
            # The bound is exclusive; one step more keeps what lies exactly at `reach`.
            distance = cKDTree(places[one]).query(places[other], distance_upper_bound=reach + 1)[0].min() - slack
        distances[one, other] = distances[other, one] = distance
    return distances
