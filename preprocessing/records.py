"""The records of this room: scans, readings, nodules, and boxes of voxels.

Indices are (row, column, slice), counted from 0: row and column as in the DICOM pixel array, slices by ascending z.
"""

import builtins
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True)
class IndexBox:
    """A box of voxels in a scan: half-open index ranges (start, stop)."""

    row: tuple[int, int]
    column: tuple[int, int]
    slice: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of rows, columns and slices."""
        return (self.row[1] - self.row[0], self.column[1] - self.column[0], self.slice[1] - self.slice[0])

    @property
    def centre(self) -> tuple[float, float, float]:
        """Index (row, column, slice) of the middle of the box; x.5 between two voxels."""
        return (sum(self.row) - 1) / 2, (sum(self.column) - 1) / 2, (sum(self.slice) - 1) / 2

    def union(self, other: "IndexBox") -> "IndexBox":
        """The smallest box around both."""
        return IndexBox(
            (min(self.row[0], other.row[0]), max(self.row[1], other.row[1])),
            (min(self.column[0], other.column[0]), max(self.column[1], other.column[1])),
            (min(self.slice[0], other.slice[0]), max(self.slice[1], other.slice[1])),
        )

    def within(self, outer: "IndexBox") -> tuple[builtins.slice, builtins.slice, builtins.slice]:
        """Slices that cut the part of this box inside `outer` out of an array over `outer`."""
        ranges = ((self.row, outer.row), (self.column, outer.column), (self.slice, outer.slice))
        rows, columns, slices = (
            slice(max(inner[0] - around[0], 0), max(min(inner[1], around[1]) - around[0], 0))
            for inner, around in ranges
        )
        return rows, columns, slices


@dataclass(frozen=True, eq=False)
class Contour:
    """One closed outline in one slice."""

    slice_index: int
    """Index into `Scan.slice_z_mm`."""
    inclusion: bool
    """Whether it encloses nodule; else it cuts a hole."""
    points: Int[np.ndarray, "point 2"]
    """Corners (row, column) in pixel indices from 0; by LIDC's rule they are the first pixels outside the nodule."""


@dataclass(frozen=True, eq=False)
class Reading:
    """One radiologist's outlines and ratings of one nodule."""

    annotation_id: int
    ratings: Mapping[str, int]
    """Code of each of `vocabulary.RATINGS`."""
    diameter_mm: float
    """Greatest distance of two corners of one outline (pylidc's `Annotation.diameter`)."""
    contours: tuple[Contour, ...]
    """In database order, which decides a mask where outlines overlap."""
    name: str = ""
    """What the reader's workstation called it (`Nodule 001`, `IL057_127364`, `0`)."""


@dataclass(frozen=True)
class Scan:
    """One CT series that was read."""

    patient_id: str
    study_uid: str
    series_uid: str
    slice_thickness_mm: float
    pixel_spacing_mm: float
    """In both directions of the plane."""
    slice_z_mm: tuple[float, ...]
    """z of each slice (third coordinate of ImagePositionPatient), ascending."""
    is_from_initial: bool
    """One of the first 399 cases, among which lobulation and spiculation scales differed between sites."""
    contrast_used: bool
    number: int
    """1 = the patient's first scan in database order, 2 = the second."""


@dataclass(frozen=True, eq=False)
class Nodule:
    """The readings of one nodule: a cluster, by default one of pylidc's."""

    nodule_id: str
    """Under every rule of clustering the same identifier stands for the same readings."""
    scan: Scan
    readings: tuple[Reading, ...]
    number: int
    """Place of its cluster in the scan, in pylidc's order, from 1."""
    divided: bool = False
    """Whether it is a part of a cluster of more than four readings."""
