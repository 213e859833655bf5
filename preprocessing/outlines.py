"""Plane geometry of readers' outlines, exact in whole numbers: which pixels an outline encloses, how long it is."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int
from scipy.spatial.distance import pdist


def enclosed(
    outlines: Sequence[Int[np.ndarray, "_ 2"]], corner: tuple[int, int], shape: tuple[int, int]
) -> Bool[np.ndarray, "outline row column"]:
    """The pixels whose centre each closed outline encloses.

    The even-odd rule with the treatment of points on an edge that pylidc gets from matplotlib's `contains_points`:
    going along the outline, an edge from column c0 to c1 counts for the pixels (r, c) before its crossing x of column
    c, r <= x where the column rises (c0 < c <= c1) and r < x where it falls (c1 < c <= c0); a pixel that an odd
    number of edges count for is inside. Corners are whole numbers, so floor division makes this exact.

    Args:
        outlines: corners (row, column) in pixel indices, from 0; the last joins the first.
        corner: row and column of the result's first pixel; no outline goes beyond the result.
        shape: rows and columns of the result.
    """
    sizes = np.array([len(outline) for outline in outlines])
    owner = np.repeat(np.arange(len(outlines)), sizes)
    first = np.concatenate(outlines) - corner
    following = np.arange(1, len(first) + 1)
    following[np.cumsum(sizes) - 1] = np.cumsum(sizes) - sizes
    second = first[following]
    steps = np.abs(second[:, 1] - first[:, 1])
    edge = np.repeat(np.arange(len(steps)), steps)
    offset = np.arange(len(edge)) - np.repeat(np.cumsum(steps) - steps, steps)
    (row0, column0), (row1, column1) = first[edge].T, second[edge].T
    column = np.minimum(column0, column1) + 1 + offset
    run = column1 - column0
    # The crossing is row1 + above / run; flooring with a positive divisor gives the last row that counts.
    above = (column - column1) * (row1 - row0) * np.sign(run)
    last = row1 + np.where(run > 0, above // np.abs(run), -(-above // np.abs(run)) - 1)
    counted = last >= 0
    flat = (owner[edge] * shape[0] + last) * shape[1] + column
    ends = np.bincount(flat[counted], minlength=len(outlines) * shape[0] * shape[1])
    counts = ends.reshape(len(outlines), *shape)[:, ::-1].cumsum(axis=1)[:, ::-1]
    inside: np.ndarray = counts % 2 == 1
    return inside


def greatest_length(outlines: Sequence[Int[np.ndarray, "_ 2"]], pixel_spacing_mm: float) -> float:
    """The greatest distance between two corners of one outline, mm (pylidc's `Annotation.diameter`, to the last bit).

    Outlines of a single point count for nothing; minus infinity where there is no other.
    """
    extents = [float(np.hypot(*np.ptp(outline, axis=0))) * pixel_spacing_mm for outline in outlines]
    greatest = -np.inf
    # Longest extent first: no outline is longer than its box's diagonal (rounding aside), so most need no look.
    for index in np.argsort(extents)[::-1]:
        if extents[index] < greatest * (1 - 1e-9):
            break
        if len(outlines[index]) > 1:
            greatest = max(greatest, float(pdist(outlines[index] * pixel_spacing_mm).max()))
    return greatest
