"""The work of `extract`: the nodules of one scan or of one pack's row, cut and written by whoever takes the job."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int16

from lidc_cdam import artifacts, crop_files, quality
from lidc_cdam.artifacts import NoduleRecord
from lidc_cdam.compute import HERE, Pool, Workers
from lidc_cdam.crop_files import PADDING_HU, marked_by
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import write_json
from preprocessing.annotations import IndexBox, Nodule, consensus, reader_bits
from preprocessing.clusters import MOST_READERS
from preprocessing.crops import (
    DEFAULT,
    Block,
    CropSettings,
    Frame,
    Point,
    centre_mm,
    consensus_box,
    cube_corners,
    cut_cube,
    surrounding_box,
    take_nearest,
)
from preprocessing.distances import surface_distance
from preprocessing.index_cache import SERIES_INDEX
from preprocessing.native import Failure, each_block, failure, nodules_of
from preprocessing.pack import NODULES, read_cutout, read_pack
from preprocessing.selection import grouping_of
from preprocessing.series import Series, index_series
from preprocessing.volumes import FORMATS, Volume, find_volumes

LOWEST_HU = -1500
"""No tissue and no air is below, with any noise."""
RECORDS = "records"
"""Folder in DATA with one file per finished nodule."""


@dataclass(frozen=True, eq=False)
class ScanJob:
    """The nodules of one scan, a DICOM series or a volume, that are still to be extracted."""

    data: Path
    allow_padding: bool
    series: Series | Volume
    nodules: tuple[Nodule, ...]
    settings: CropSettings = DEFAULT

    @property
    def series_uid(self) -> str:
        """Of its series."""
        return self.series.series_uid

    @property
    def nodule_ids(self) -> tuple[str, ...]:
        """Of its nodules."""
        return tuple(nodule.nodule_id for nodule in self.nodules)

    def run(self) -> list[Failure]:
        """Write the nodules' cubes; returns the failures."""
        centres: dict[str, Point] = {}

        def box_of(nodule: Nodule, frame: Frame) -> IndexBox:
            centres[nodule.nodule_id], box = self.place(nodule, frame)
            return box

        def use(nodule: Nodule, block: Block, flags: tuple[str, ...]) -> None:
            step = float(np.median(np.diff(nodule.scan.slice_z_mm)))
            source = "volume" if isinstance(self.series, Volume) else "dicom"
            found = _Found(nodule.nodule_id, source, len(nodule.readings), step, flags)
            centre = centres[nodule.nodule_id]
            _write_readers(self.data, nodule, block, centre, self.settings)
            _write(self.data, found, block, centre, self.settings, self.allow_padding)

        return each_block(self.series, self.nodules, box_of, use)

    def place(self, nodule: Nodule, frame: Frame) -> tuple[Point, IndexBox]:
        """The centre of a nodule's cube, and the voxels that the cube needs.

        Where no voxel is marked by enough readers, the place is that of half of the readers; `_write` refuses it.
        """
        _, box = consensus(nodule, self.settings.consensus_level)
        z_mm = nodule.scan.slice_z_mm
        centre = centre_mm(box if min(box.shape) else consensus(nodule)[1], frame, z_mm)
        low, high = cube_corners(centre, self.settings)
        return centre, surrounding_box(low, high, frame, self.series.shape, z_mm, self.settings.support)


@dataclass(frozen=True, eq=False)
class PackJob:
    """One nodule of a pack that is still to be extracted."""

    data: Path
    allow_padding: bool
    pack: Path
    row: dict[str, Any]
    settings: CropSettings = DEFAULT

    @property
    def series_uid(self) -> str:
        """Of its nodule's series."""
        return str(self.row["series_uid"])

    @property
    def nodule_ids(self) -> tuple[str, ...]:
        """Of its nodule."""
        return (str(self.row["nodule_id"]),)

    def run(self) -> list[Failure]:
        """Write the nodule's cube; returns the failure if it fails."""
        (nodule_id,) = self.nodule_ids
        try:
            block, flags = read_cutout(self.pack, self.row)
            readers = len(str(self.row["annotation_ids"]).split())
            try:
                box = consensus_box(block.readers, readers, block.box, self.settings.consensus_level)
            except ValueError as error:
                raise LidcCdamError(f"The cut-out of {nodule_id} in {self.pack} is wrong: {error}.") from error
            centre = centre_mm(box, block.frame, block.z_mm, block.box.slice[0])
            step = float(np.median(np.diff(block.z_mm))) if len(block.z_mm) > 1 else self.settings.spacing_mm
            found = _Found(nodule_id, "pack", readers, step, flags)
            _write(self.data, found, block, centre, self.settings, self.allow_padding)
        except LidcCdamError as error:
            return [failure(nodule_id, self.series_uid, error)]
        return []


Job = ScanJob | PackJob


def run_job(job: Job) -> list[Failure]:
    """Write a job's cubes; returns the failures."""
    return job.run()


def lose_job(job: Job, reason: LidcCdamError) -> list[Failure]:
    """Failures of what a job whose workers died had left."""
    left = (nodule_id for nodule_id in job.nodule_ids if not is_done(job.data, nodule_id, job.settings))
    return [failure(nodule_id, job.series_uid, reason) for nodule_id in left]


@dataclass(frozen=True)
class _Found:
    """What is known of a nodule before its cube is cut."""

    nodule_id: str
    source: str
    readers: int
    slice_spacing_mm: float
    flags: tuple[str, ...]


def _write(data: Path, found: _Found, block: Block, centre: Point, settings: CropSettings, allow_padding: bool) -> None:
    """Cut and write one nodule: its volumes, and last the record, which says that they are there."""
    marked = marked_by(block.readers, found.readers, settings.consensus_level)
    if not marked.any():
        raise LidcCdamError(
            f"{found.nodule_id} has no voxel that {settings.consensus_level:.0%} of its {found.readers} readers "
            f"marked; choose a lower --consensus-level."
        )
    crop, padded = cut_cube(block, centre, settings)
    if padded and not allow_padding:
        raise LidcCdamError(
            f"{padded:.1%} of the cube of {found.nodule_id} lie outside what was read, and the cohort's preset refuses "
            f"padding; choose `--preset all`."
        )
    if settings.signed_distance:
        crop = replace(crop, distance_mm=surface_distance(block, marked, centre, settings.grid))
    flags = (
        *found.flags,
        *((quality.MANY_READINGS,) if found.readers > MOST_READERS else ()),
        *((quality.PADDED,) if padded else ()),
        *((quality.OUTSIDE_FIELD,) if _leaves_field(crop.hu) else ()),
    )
    crop_files.write_crop(data, found.nodule_id, crop)
    record = NoduleRecord(
        nodule_id=found.nodule_id,
        source=found.source,
        geometry="patient" if block.frame.patient else "scan",
        padded_share=round(padded, 6),
        pixel_spacing_mm=block.frame.spacing_mm[1],
        slice_spacing_mm=round(found.slice_spacing_mm, 6),
        flags=flags,
    )
    write_json(record_path(data, found.nodule_id), asdict(record))


def _write_readers(data: Path, nodule: Nodule, block: Block, centre: Point, settings: CropSettings) -> None:
    """Write what each reader marked, on the cube's grid. A pack holds only their number, so its nodules have none."""
    _, bits = take_nearest(block, reader_bits(nodule, block.box), centre, settings)
    each = np.stack([(bits >> place) & 1 for place in range(len(nodule.readings))]).astype(bool)
    crop_files.write_reader_masks(data, nodule.nodule_id, each, [one.annotation_id for one in nodule.readings])


def _leaves_field(hu: Int16[np.ndarray, "slice row column"]) -> bool:
    """Whether a cube holds voxels that the scanner did not reconstruct (scanners write -2000 HU or less there)."""
    return bool(((hu < LOWEST_HU) & (hu != PADDING_HU)).any())


def dicom_jobs(
    data: Path,
    root: Path,
    cohort: pd.DataFrame,
    allow_padding: bool,
    settings: CropSettings = DEFAULT,
    workers: Workers | Pool = HERE,
) -> tuple[str, list[ScanJob]]:
    """What a DICOM root holds of the cohort, in words, and what is still to be extracted.

    Raises:
        LidcCdamError: the root is missing or empty, or holds none of the cohort's series.
    """
    index = index_series(root, set(cohort["series_uid"]), data / SERIES_INDEX, workers)
    if not index.series:
        raise LidcCdamError(
            f"--dicom must hold CT series of the cohort's {cohort['series_uid'].nunique()} scans, but {root} has "
            f"{index.summary()}."
        )
    held, jobs = _scan_jobs(data, index.series, cohort, allow_padding, settings)
    return f"{held} ({index.summary()})", jobs


def volume_jobs(
    data: Path, root: Path, cohort: pd.DataFrame, allow_padding: bool, settings: CropSettings = DEFAULT
) -> tuple[str, list[ScanJob]]:
    """What a folder of volumes holds of the cohort, in words, and what is still to be extracted.

    Raises:
        LidcCdamError: the folder is missing or holds no volume of the cohort's series.
    """
    found = find_volumes(root, set(cohort["series_uid"]))
    if not found:
        raise LidcCdamError(
            f"--volumes must hold files named by the series UIDs of the cohort's {cohort['series_uid'].nunique()} "
            f"scans (<series UID>{FORMATS[0]}, {', '.join(FORMATS[1:])}), but {root} has none."
        )
    return _scan_jobs(data, found, cohort, allow_padding, settings)


def _scan_jobs(
    data: Path,
    found: Mapping[str, Series | Volume],
    cohort: pd.DataFrame,
    allow_padding: bool,
    settings: CropSettings,
) -> tuple[str, list[ScanJob]]:
    patients = set(cohort.loc[cohort["series_uid"].isin(found), "patient_id"])
    present = {
        uid: [nodule for nodule in nodules if nodule.nodule_id in cohort.index]
        for uid, nodules in nodules_of(found, patients, (grouping_of(data),)).items()
    }
    jobs = []
    for uid, nodules in present.items():
        left = tuple(nodule for nodule in nodules if not is_done(data, nodule.nodule_id, settings))
        if left:
            jobs.append(ScanJob(data, allow_padding, found[uid], left, settings))
    return f"{sum(map(len, present.values()))} of the cohort's {len(cohort)} nodules", jobs


def pack_jobs(
    data: Path, folder: Path, cohort: pd.DataFrame, allow_padding: bool, settings: CropSettings = DEFAULT
) -> tuple[str, list[PackJob]]:
    """How many nodules a pack holds, also of the cohort, in words, and what is still to be extracted.

    Raises:
        LidcCdamError: the pack is missing or damaged, or holds no nodule of the cohort.
    """
    table = read_pack(folder)
    present = table[table["nodule_id"].isin(cohort.index)]
    if not len(present):
        raise LidcCdamError(
            f"--pack must hold nodules of the cohort, but none of the {len(table)} in {folder / NODULES} is among the "
            f"{len(cohort)} of {data / artifacts.COHORT}."
        )
    rows = [row for row in present.to_dict("records") if not is_done(data, row["nodule_id"], settings)]
    named = [{str(key): value for key, value in row.items()} for row in rows]
    held = f"{len(table)} nodules, {len(present)} of the cohort's {len(cohort)}"
    return held, [PackJob(data, allow_padding, folder, row, settings) for row in named]


def record_path(data: Path, nodule_id: str) -> Path:
    """A nodule's `records/<nodule_id>.json`, which says that its cube is finished."""
    return data / RECORDS / f"{nodule_id}.json"


def is_done(data: Path, nodule_id: str, settings: CropSettings) -> bool:
    """Whether a nodule has all its files."""
    paths = [record_path, crop_files.crop_path, crop_files.mask_path]
    if settings.signed_distance:
        paths.append(crop_files.distance_path)
    return all(path(data, nodule_id).exists() for path in paths)
