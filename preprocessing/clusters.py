"""pylidc's rule for which readings of a scan are of one nodule (`Scan.cluster_annotations`, default settings).

Two readings are neighbours where their outlines come within a tolerance; groups are the connected readings. A group of
more than four readers cannot be one nodule, so the tolerance shrinks by a tenth until there is none or it falls
below 0.1. The distance counts voxel steps while the tolerance starts as the slice thickness in mm: pylidc's own mix of
units, kept because the published cohorts rest on it (in mm, 4 of 883 scans would change).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

MOST_READERS = 4
SHRINK = 0.9
LEAST_TOLERANCE = 0.1

Points = Int[np.ndarray, "_ 3"]
"""All outline corners of a reading: row, column, slice, in voxel indices from 0."""


def cluster(readings: Sequence[Points], slice_thickness_mm: float) -> list[list[int]]:
    """Indices of the readings of each nodule, in pylidc's order of nodules.

    Args:
        readings: outline corners of each reading of one scan, in database order.
        slice_thickness_mm: the first tolerance (see above for its unit).

    Returns:
        One list of indices per nodule, ascending; nodules by the mean slice of their readings' corners.
    """
    if not readings:
        return []
    labels = _labels(_distances(readings, slice_thickness_mm), slice_thickness_mm)
    groups = [[int(index) for index in np.flatnonzero(labels == label)] for label in range(labels.max() + 1)]
    height = [points[:, 2].mean() for points in readings]
    return sorted(groups, key=lambda group: float(np.mean([height[index] for index in group])))


def _labels(distances: Float[np.ndarray, "reading reading"], tolerance: float) -> Int[np.ndarray, "reading"]:
    labels: np.ndarray = connected_components(distances <= tolerance, directed=False)[1]
    while np.bincount(labels).max() > MOST_READERS:
        tolerance *= SHRINK
        if tolerance < LEAST_TOLERANCE:
            break
        labels = connected_components(distances <= tolerance, directed=False)[1]
    return labels


def _distances(readings: Sequence[Points], reach: float) -> Float[np.ndarray, "reading reading"]:
    """Least distance of two readings' corners in voxel steps; infinite where it exceeds `reach`."""
    low = np.array([points.min(axis=0) for points in readings])
    high = np.array([points.max(axis=0) for points in readings])
    gap = np.maximum(np.maximum(low[:, None] - high[None], low[None] - high[:, None]), 0)
    near = (gap**2).sum(axis=2) <= reach**2
    distances = np.full(near.shape, np.inf)
    np.fill_diagonal(distances, 0)
    touched = [set((points @ (1 << 40, 1 << 20, 1)).tolist()) for points in readings]
    for one, other in np.argwhere(np.triu(near, 1)):
        distance = 0.0
        if touched[one].isdisjoint(touched[other]):
            # The bound is exclusive; one step more keeps what lies exactly at `reach`.
            distance = cKDTree(readings[one]).query(readings[other], distance_upper_bound=reach + 1)[0].min()
        distances[one, other] = distances[other, one] = distance
    return distances
