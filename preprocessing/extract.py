"""Make the nodules' cubes and reader masks, from DICOM, from volumes or from a pack."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from lidc_cdam import artifacts, provenance, quality
from lidc_cdam.artifacts import Dataset, NoduleRecord
from lidc_cdam.compute import HERE, Pool, Workers, map_items
from lidc_cdam.crop_files import PADDING_HU
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import read_json
from lidc_cdam.progress import say
from preprocessing.crops import DEFAULT, CropSettings
from preprocessing.jobs import Job, dicom_jobs, is_done, lose_job, pack_jobs, record_path, run_job, volume_jobs
from preprocessing.native import Failure, write_failures
from preprocessing.resample import INTERPOLATIONS

STAGE = "extract"
ALGORITHM = 2
"""Raised with each change of the code that changes a voxel, so that older crops are not taken for today's."""


def extract(
    data: Path,
    dicom: Path | None = None,
    pack: Path | None = None,
    volumes: Path | None = None,
    settings: CropSettings = DEFAULT,
    workers: Workers = HERE,
) -> None:
    """Make a cube (32 voxels of 1 mm) and its reader mask for each cohort nodule that a source holds.

    Writes `crops/`, `masks/`, `records/` and `dataset.json`, which holds the settings: other ones need another DATA
    folder. A part of LIDC-IDRI is enough, and a second source adds to the same folder; what is there already is kept.
    A nodule that fails is a row of `failed.csv` and is tried again by the next run.

    Args:
        data: the DATA folder with a cohort.
        dicom: folder of DICOM files, in any layout. Give this, `--pack` or `--volumes`.
        pack: folder of native-resolution cut-outs, as `lidc-cdam pack` writes it.
        volumes: folder of MetaImage, NRRD or NIfTI files named by series UID, as LUNA16 has them.
        settings: what decides a cube's voxels.
        workers: where to work.

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
    parameters = _parameters(data, settings)
    record = provenance.begin(
        data, STAGE, parameters, {"cohort": data / artifacts.COHORT}, "make the cohort in another --data"
    )
    with Pool(workers) as pool:
        held, jobs = _jobs(data, (dicom, pack, volumes), cohort, settings, pool)
        say(f"{sources[0]} holds {held}.")
        if record.finished and not jobs:
            say(f"All of them are extracted in {data}; nothing to do.")
            return
        provenance.reopen(data, STAGE)
        failures = [row for rows in map_items(run_job, jobs, "Extracting cubes", pool, lose_job) for row in rows]
    write_failures(data, {nodule_id for job in jobs for nodule_id in job.nodule_ids}, failures)
    records = _finish(data, cohort, parameters, settings, failures)
    record.finish(nodules=len(records), failed=len(failures))
    _tell(data, cohort, records, failures)


def _jobs(
    data: Path,
    sources: tuple[Path | None, Path | None, Path | None],
    cohort: pd.DataFrame,
    settings: CropSettings,
    pool: Pool,
) -> tuple[str, Sequence[Job]]:
    dicom, pack, volumes = sources
    allow = _allow_padding(data)
    if dicom is not None:
        return dicom_jobs(data, dicom, cohort, allow, settings, pool)
    if volumes is not None:
        return volume_jobs(data, volumes, cohort, allow, settings)
    return pack_jobs(data, Path(str(pack)), cohort, allow, settings)


def _parameters(data: Path, settings: CropSettings) -> dict[str, Any]:
    """Every setting that decides a voxel.

    Those that came later stand here only where they differ from what was done before they came, so that a folder of an
    earlier version is still the same folder.
    """
    later = ("antialias", "consensus_level", "signed_distance")
    changed = {name: getattr(settings, name) for name in later if getattr(settings, name) != getattr(DEFAULT, name)}
    return {
        "algorithm": ALGORITHM,
        "side": settings.side,
        "spacing_mm": settings.spacing_mm,
        "central_voxel": settings.grid.central,
        "hu_interpolation": INTERPOLATIONS[settings.interpolation].title,
        "mask_interpolation": "nearest neighbour",
        "padding_hu": PADDING_HU,
        "allow_padding": _allow_padding(data),
        **changed,
    }


def _cohort_config(data: Path) -> dict[str, Any]:
    record = provenance.read_record(data, "cohort")
    config: dict[str, Any] = record["config"] if record else {}
    return config


def _allow_padding(data: Path) -> bool:
    return bool(_cohort_config(data).get("selection", {}).get("allow_padding", True))


def _finish(
    data: Path,
    cohort: pd.DataFrame,
    parameters: dict[str, Any],
    settings: CropSettings,
    failures: Sequence[Failure],
) -> dict[str, NoduleRecord]:
    """Write `dataset.json` from the records, in the cohort's order, with the flags that the cohort gives."""
    records = {}
    told = cohort["flags"] if "flags" in cohort else pd.Series(dtype=object)
    for nodule_id in map(str, cohort.index):
        if is_done(data, nodule_id, settings):
            record = artifacts.nodule_record(read_json(record_path(data, nodule_id)))
            flags = quality.merge_flags(record.flags, quality.read_flags(told.get(nodule_id)))
            records[nodule_id] = replace(record, flags=flags)
    if not records:
        raise LidcCdamError(
            f"None of the {len(failures)} nodules could be extracted; {data / artifacts.FAILED} says why, the first: "
            f"{failures[0]['reason']}"
        )
    config = _cohort_config(data)
    chosen_by = {"preset": config.get("preset", "")}
    if "rules_sha256" in config:
        chosen_by["rules_sha256"] = config["rules_sha256"]
    artifacts.write_dataset(data, Dataset({**chosen_by, **parameters}, records))
    return records


def _tell(data: Path, cohort: pd.DataFrame, records: dict[str, NoduleRecord], failures: Sequence[Failure]) -> None:
    labelled = int(cohort.loc[list(records), "label"].notna().sum())
    padded = sum(record.padded_share > 0 for record in records.values())
    say(f"{data} holds {len(records)} cubes, {labelled} of them with a malignancy label; {padded} are padded.")
    counts = Counter(quality.flag_kind(flag) for record in records.values() for flag in record.flags)
    if counts:
        listed = ", ".join(f"{kind} {number}" for kind, number in sorted(counts.items(), key=lambda pair: -pair[1]))
        say(f"Data-quality flags: {listed}; {data / artifacts.DATASET} names the nodules.")
    if failures:
        say(f"{len(failures)} nodules failed; {data / artifacts.FAILED} says why.")
