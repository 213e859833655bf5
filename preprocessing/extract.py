"""Make the nodules' cubes and reader masks, from DICOM, from volumes or from a pack."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int16

from lidc_cdam import artifacts, provenance
from lidc_cdam.artifacts import PADDING_HU, Dataset, NoduleRecord
from lidc_cdam.compute import map_items
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import read_json, write_json
from lidc_cdam.geometry import CENTRAL, CROP_SIDE
from lidc_cdam.progress import say
from lidc_cdam.quality import OUTSIDE_FIELD, PADDED
from preprocessing.annotations import IndexBox, Nodule, consensus
from preprocessing.crops import (
    SPACING_MM,
    Block,
    Frame,
    Point,
    centre_mm,
    consensus_box,
    cube_corners,
    cut_cube,
    surrounding_box,
)
from preprocessing.index_cache import SERIES_INDEX
from preprocessing.native import Failure, each_block, failure, nodules_of, write_failures
from preprocessing.pack import NODULES, read_cutout, read_pack
from preprocessing.series import Series, index_series
from preprocessing.volumes import FORMATS, Volume, find_volumes

STAGE = "extract"
ALGORITHM = 2
"""Raised with each change of the code that changes a voxel, so that older crops are not taken for today's."""
LOWEST_HU = -1500
"""No tissue and no air is below, with any noise."""
MAX_READERS = 4
"""Radiologists who read each scan; a cluster with more readings has one reader's twice."""


def extract(
    data: Path,
    dicom: Path | None = None,
    pack: Path | None = None,
    volumes: Path | None = None,
    workers: int = 1,
) -> None:
    """Make a 32 mm cube at 1 mm and its reader mask for each cohort nodule that a source holds.

    Writes `crops/`, `masks/`, `records/` and `dataset.json`. A part of LIDC-IDRI is enough, and a second source adds to
    the same folder; what is there already is kept. A nodule that fails is a row of `failed.csv` and is tried again by
    the next run.

    Args:
        data: the DATA folder with a cohort.
        dicom: folder of DICOM files, in any layout. Give this, `--pack` or `--volumes`.
        pack: folder of native-resolution cut-outs, as `lidc-cdam pack` writes it.
        volumes: folder of MetaImage, NRRD or NIfTI files named by series UID, as LUNA16 has them.
        workers: processes that work side by side.

    Raises:
        LidcCdamError: there is no cohort, not exactly one source, the source holds no nodule of the cohort, the folder
            was extracted with other settings, or every nodule failed.
    """
    cohort = artifacts.read_cohort(data)
    sources = [source for source in (dicom, pack, volumes) if source is not None]
    if len(sources) != 1:
        raise LidcCdamError(
            f"extract needs exactly one source, --dicom, --pack or --volumes; got {len(sources) or 'none'}."
        )
    parameters = _parameters(data)
    record = provenance.begin(
        data, STAGE, parameters, {"cohort": data / artifacts.COHORT}, "make the cohort in another --data"
    )
    held, jobs = _jobs(data, (dicom, pack, volumes), cohort, workers)
    say(f"{sources[0]} holds {held}.")
    if record.finished and not jobs:
        say(f"All of them are extracted in {data}; nothing to do.")
        return
    provenance.reopen(data, STAGE)
    failures = [row for rows in map_items(_run, jobs, "Extracting cubes", workers) for row in rows]
    write_failures(data, {nodule_id for job in jobs for nodule_id in job.nodule_ids}, failures)
    records = _finish(data, cohort, parameters, failures)
    record.finish(nodules=len(records), failed=len(failures))
    _tell(data, cohort, records, failures)


@dataclass(frozen=True, eq=False)
class DicomJob:
    """The nodules of one scan, a DICOM series or a volume, that are still to be extracted."""

    data: Path
    allow_padding: bool
    series: Series | Volume
    nodules: tuple[Nodule, ...]

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
            _write(self.data, found, block, centres[nodule.nodule_id], self.allow_padding)

        return each_block(self.series, self.nodules, box_of, use)

    def place(self, nodule: Nodule, frame: Frame) -> tuple[Point, IndexBox]:
        """The centre of a nodule's cube, and the voxels that the cube needs."""
        centre = centre_mm(consensus(nodule)[1], frame, nodule.scan.slice_z_mm)
        low, high = cube_corners(centre)
        return centre, surrounding_box(low, high, frame, self.series.shape, nodule.scan.slice_z_mm)


@dataclass(frozen=True, eq=False)
class PackJob:
    """One nodule of a pack that is still to be extracted."""

    data: Path
    allow_padding: bool
    pack: Path
    row: dict[str, Any]

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
                box = consensus_box(block.readers, readers, block.box)
            except ValueError as error:
                raise LidcCdamError(f"The cut-out of {nodule_id} in {self.pack} is wrong: {error}.") from error
            centre = centre_mm(box, block.frame, block.z_mm, block.box.slice[0])
            step = float(np.median(np.diff(block.z_mm))) if len(block.z_mm) > 1 else SPACING_MM
            found = _Found(nodule_id, "pack", readers, step, flags)
            _write(self.data, found, block, centre, self.allow_padding)
        except LidcCdamError as error:
            return [failure(nodule_id, str(self.row["series_uid"]), error)]
        return []


Job = DicomJob | PackJob


def _run(job: Job) -> list[Failure]:
    return job.run()


@dataclass(frozen=True)
class _Found:
    """What is known of a nodule before its cube is cut."""

    nodule_id: str
    source: str
    readers: int
    slice_spacing_mm: float
    flags: tuple[str, ...]


def _write(data: Path, found: _Found, block: Block, centre: Point, allow_padding: bool) -> None:
    """Cut and write one nodule: mask, cube, and last the record, which says that both are there."""
    crop, padded = cut_cube(block, centre)
    if padded and not allow_padding:
        raise LidcCdamError(
            f"{padded:.1%} of the cube of {found.nodule_id} lie outside what was read, and the cohort's preset refuses "
            f"padding; choose `--preset all`."
        )
    flags = (
        *found.flags,
        *(("more than 4 readers",) if found.readers > MAX_READERS else ()),
        *((PADDED,) if padded else ()),
        *((OUTSIDE_FIELD,) if _leaves_field(crop.hu) else ()),
    )
    artifacts.write_crop(data, found.nodule_id, crop)
    record = NoduleRecord(
        nodule_id=found.nodule_id,
        source=found.source,
        geometry="patient" if block.frame.patient else "scan",
        padded_share=round(padded, 6),
        pixel_spacing_mm=block.frame.spacing_mm[1],
        slice_spacing_mm=round(found.slice_spacing_mm, 6),
        flags=flags,
    )
    write_json(_record_path(data, found.nodule_id), asdict(record))


def _leaves_field(hu: Int16[np.ndarray, "slice row column"]) -> bool:
    """Whether a cube holds voxels that the scanner did not reconstruct (scanners write -2000 HU or less there)."""
    return bool(((hu < LOWEST_HU) & (hu != PADDING_HU)).any())


def _jobs(
    data: Path, sources: tuple[Path | None, Path | None, Path | None], cohort: pd.DataFrame, workers: int
) -> tuple[str, Sequence[Job]]:
    dicom, pack, volumes = sources
    allow = _allow_padding(data)
    if dicom is not None:
        return dicom_jobs(data, dicom, cohort, allow, workers)
    if volumes is not None:
        return volume_jobs(data, volumes, cohort, allow)
    return pack_jobs(data, Path(str(pack)), cohort, allow)


def dicom_jobs(
    data: Path, root: Path, cohort: pd.DataFrame, allow_padding: bool, workers: int = 1
) -> tuple[str, list[DicomJob]]:
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
    held, jobs = _scan_jobs(data, index.series, cohort, allow_padding)
    return f"{held} ({index.summary()})", jobs


def volume_jobs(data: Path, root: Path, cohort: pd.DataFrame, allow_padding: bool) -> tuple[str, list[DicomJob]]:
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
    return _scan_jobs(data, found, cohort, allow_padding)


def _scan_jobs(
    data: Path, found: Mapping[str, Series | Volume], cohort: pd.DataFrame, allow_padding: bool
) -> tuple[str, list[DicomJob]]:
    patients = set(cohort.loc[cohort["series_uid"].isin(found), "patient_id"])
    present = {
        uid: [nodule for nodule in nodules if nodule.nodule_id in cohort.index]
        for uid, nodules in nodules_of(found, patients).items()
    }
    jobs = []
    for uid, nodules in present.items():
        left = tuple(nodule for nodule in nodules if not _is_done(data, nodule.nodule_id))
        if left:
            jobs.append(DicomJob(data, allow_padding, found[uid], left))
    return f"{sum(map(len, present.values()))} of the cohort's {len(cohort)} nodules", jobs


def pack_jobs(data: Path, folder: Path, cohort: pd.DataFrame, allow_padding: bool) -> tuple[str, list[PackJob]]:
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
    rows = [row for row in present.to_dict("records") if not _is_done(data, row["nodule_id"])]
    named = [{str(key): value for key, value in row.items()} for row in rows]
    held = f"{len(table)} nodules, {len(present)} of the cohort's {len(cohort)}"
    return held, [PackJob(data, allow_padding, folder, row) for row in named]


def _parameters(data: Path) -> dict[str, Any]:
    """Every setting that decides a voxel."""
    return {
        "algorithm": ALGORITHM,
        "side": CROP_SIDE,
        "spacing_mm": SPACING_MM,
        "central_voxel": CENTRAL,
        "hu_interpolation": "linear",
        "mask_interpolation": "nearest neighbour",
        "padding_hu": PADDING_HU,
        "allow_padding": _allow_padding(data),
    }


def _cohort_config(data: Path) -> dict[str, Any]:
    record = provenance.read_record(data, "cohort")
    config: dict[str, Any] = record["config"] if record else {}
    return config


def _allow_padding(data: Path) -> bool:
    return bool(_cohort_config(data).get("selection", {}).get("allow_padding", True))


def _record_path(data: Path, nodule_id: str) -> Path:
    return data / "records" / f"{nodule_id}.json"


def _is_done(data: Path, nodule_id: str) -> bool:
    paths = (path(data, nodule_id) for path in (_record_path, artifacts.crop_path, artifacts.mask_path))
    return all(path.exists() for path in paths)


def _finish(
    data: Path, cohort: pd.DataFrame, parameters: dict[str, Any], failures: Sequence[Failure]
) -> dict[str, NoduleRecord]:
    """Write `dataset.json` from the records, in the cohort's order."""
    records = {}
    for nodule_id in cohort.index:
        if _is_done(data, nodule_id):
            records[str(nodule_id)] = artifacts.nodule_record(read_json(_record_path(data, nodule_id)))
    if not records:
        raise LidcCdamError(
            f"None of the {len(failures)} nodules could be extracted; {data / artifacts.FAILED} says why, the first: "
            f"{failures[0]['reason']}"
        )
    preset = _cohort_config(data).get("preset", "")
    artifacts.write_dataset(data, Dataset({"preset": preset, **parameters}, records))
    return records


def _tell(data: Path, cohort: pd.DataFrame, records: dict[str, NoduleRecord], failures: Sequence[Failure]) -> None:
    labelled = int(cohort.loc[list(records), "label"].notna().sum())
    padded = sum(record.padded_share > 0 for record in records.values())
    say(f"{data} holds {len(records)} cubes, {labelled} of them with a malignancy label; {padded} are padded.")
    flagged = sum(bool(set(record.flags) - {PADDED}) for record in records.values())
    if flagged:
        say(f"{flagged} carry other data-quality flags; {data / artifacts.DATASET} names them.")
    if failures:
        say(f"{len(failures)} nodules failed; {data / artifacts.FAILED} says why.")
