"""From an extracted cohort to folds: which nodule trains, validates and tests in which fold."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int, Shaped
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

from lidc_cdam import artifacts, provenance
from lidc_cdam.artifacts import Fold, Splits
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.progress import say

VALIDATION_SHARE = 0.15
"""Part of a fold's training nodules that is cut off for validation (0.15 of 0.85 is the paper's 0.1275)."""
TEST_SHARE = 0.15
"""Part that the paper's single split tests on."""
VALIDATION_PARTS = 7
"""Where patients stay whole, one part of seven validates: 14 %, the nearest to `VALIDATION_SHARE`."""
SEEDS = 2**32

Indices = Int[np.ndarray, "_"]


@dataclass(frozen=True)
class Labelled:
    """What a division goes by: one entry per nodule."""

    labels: Int[np.ndarray, "nodule"]
    """0 benign, 1 malignant."""
    patients: Shaped[np.ndarray, "nodule"]

    def __getitem__(self, chosen: Indices) -> "Labelled":
        return Labelled(self.labels[chosen], self.patients[chosen])

    def __len__(self) -> int:
        return len(self.labels)


Division = Callable[[Labelled, int, int], Iterator[tuple[Indices, Indices, Indices]]]
"""From nodules, number of folds and seed to each fold's training, validation and test indices."""


@dataclass(frozen=True)
class Protocol:
    """One way to divide a cohort."""

    divide: Division
    by_patient: bool
    """Whether all nodules of a patient stay in one role."""
    summary: str


def split(data: Path, protocol: str = "sound", seed: int = 0, folds: int = 5, out: Path | None = None) -> None:
    """Divide the labelled, extracted nodules into folds of training, validation and test nodules.

    Args:
        data: the DATA folder with a cohort and its crops.
        protocol: `sound` (folds by patient, stratified), `paper_main` (the paper's one split, 0.7225 / 0.1275 / 0.15 of
            the nodules) or `paper_appendix` (the authors' folds of nodules, stratified, where a patient's nodules may
            train and test).
        seed: decides the draw; the same seed and nodules give the same folds.
        folds: number of folds (`paper_main` has one split, whatever this says).
        out: the file to write; DATA/splits.json by default.

    Raises:
        LidcCdamError: an unknown protocol, too few nodules or patients, or a file that holds another division.
    """
    rules = _protocol(protocol)
    _check_numbers(seed, folds)
    path = out or data / artifacts.SPLITS
    table = labelled_nodules(data)
    parameters: dict[str, Any] = {"folds": folds, "nodules": len(table)}
    parameters["nodules_sha256"] = provenance.sha256_of(table[["nodule_id", "patient_id", "label"]].values.tolist())
    divided = divide(table, protocol, seed, folds)
    splits = Splits(
        protocol=protocol,
        seed=seed,
        cohort_sha256=provenance.sha256(data / artifacts.COHORT),
        folds=divided,
        shared_patients=shared_patients(divided, dict(zip(table["nodule_id"], table["patient_id"], strict=True))),
        parameters={**parameters, "versions": provenance.versions()},
    )
    if path.exists():
        _refuse_other(path, splits)
        say(f"{path} already holds this division; nothing to do.")
        return
    artifacts.write_splits(path, splits)
    _tell(path, rules, splits, table)


def labelled_nodules(data: Path) -> pd.DataFrame:
    """Rows of the cohort that have a label and a crop, in the order of their identifiers.

    Raises:
        LidcCdamError: there is no cohort or no extraction, or they have no labelled nodule in common.
    """
    table = artifacts.read_cohort(data)
    extracted = artifacts.read_dataset(data).nodules
    chosen = table[table["label"].notna() & table["nodule_id"].isin(list(extracted))]
    if chosen.empty:
        raise LidcCdamError(
            f"{data} must hold crops of labelled nodules, but none of its {len(extracted)} crops is of one; "
            f"run `lidc-cdam extract` with a source that holds nodules of this cohort."
        )
    return chosen.astype({"label": int}).sort_index()


def divide(table: pd.DataFrame, protocol: str, seed: int, folds: int) -> tuple[Fold, ...]:
    """Folds of a table's nodules; the order of its rows does not matter.

    Args:
        table: columns `nodule_id`, `patient_id` and `label` (0 / 1).
        protocol: row of `PROTOCOLS`.
        seed: decides the draw.
        folds: number of folds.

    Raises:
        LidcCdamError: a label has too few nodules or, where patients stay whole, patients.
    """
    rules = _protocol(protocol)
    ordered = table.reset_index(drop=True).sort_values("nodule_id", kind="stable")
    names = ordered["nodule_id"].to_numpy(dtype=object)
    nodules = Labelled(ordered["label"].to_numpy(dtype=int), ordered["patient_id"].to_numpy(dtype=object))
    return tuple(
        Fold(*(tuple(str(name) for name in names[np.sort(role)]) for role in roles))
        for roles in rules.divide(nodules, folds, seed)
    )


def shared_patients(folds: Sequence[Fold], patients: dict[str, str]) -> float:
    """Mean share of a fold's test nodules whose patient has a nodule in another role of that fold, 0 to 1."""
    shares = []
    for fold in folds:
        others = {patients[name] for name in (*fold.train, *fold.val)}
        shares.append(np.mean([patients[name] in others for name in fold.test]))
    return float(np.mean(shares))


def _patient_folds(nodules: Labelled, folds: int, seed: int) -> Iterator[tuple[Indices, Indices, Indices]]:
    _require(nodules, folds, by_patient=True)
    cut = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for rest, test in cut.split(nodules.labels, nodules.labels, nodules.patients):
        parts = min(VALIDATION_PARTS, _fewest(nodules[rest], by_patient=True))
        _require(nodules[rest], 2, by_patient=True)
        inner = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
        kept = nodules[rest]
        train, val = next(inner.split(kept.labels, kept.labels, kept.patients))
        yield rest[train], rest[val], test


def _nodule_folds(nodules: Labelled, folds: int, seed: int) -> Iterator[tuple[Indices, Indices, Indices]]:
    _require(nodules, max(folds, 3), by_patient=False)
    for rest, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(nodules.labels, nodules.labels):
        yield *_cut(nodules, rest, VALIDATION_SHARE, seed), test


def _one_split(nodules: Labelled, folds: int, seed: int) -> Iterator[tuple[Indices, Indices, Indices]]:
    _require(nodules, 3, by_patient=False)
    rest, test = _cut(nodules, np.arange(len(nodules)), TEST_SHARE, seed)
    yield *_cut(nodules, rest, VALIDATION_SHARE, seed), test


def _cut(nodules: Labelled, among: Indices, share: float, seed: int) -> tuple[Indices, Indices]:
    """Two stratified parts of `among`, the second with `share` of it and at least one nodule of each label."""
    size = max(round(share * len(among)), 2)
    kept, cut = train_test_split(among, test_size=size, random_state=seed, stratify=nodules.labels[among])
    return kept, cut


PROTOCOLS: dict[str, Protocol] = {
    "sound": Protocol(_patient_folds, True, "folds of whole patients, stratified by label"),
    "paper_main": Protocol(_one_split, False, "one stratified split of the nodules (paper, main text)"),
    "paper_appendix": Protocol(_nodule_folds, False, "stratified folds of the nodules (paper, appendix)"),
}


def _protocol(name: str) -> Protocol:
    if name not in PROTOCOLS:
        raise LidcCdamError(f"--protocol must be one of {', '.join(PROTOCOLS)}; got {name!r}.")
    return PROTOCOLS[name]


def _check_numbers(seed: int, folds: int) -> None:
    if folds < 2:
        raise LidcCdamError(f"--folds must be at least 2; got {folds}.")
    if not 0 <= seed < SEEDS:
        raise LidcCdamError(f"--seed must be from 0 to {SEEDS - 1}; got {seed}.")


def _fewest(nodules: Labelled, by_patient: bool) -> int:
    """Nodules, or patients, of the label that has the fewest."""
    groups = [nodules.patients[nodules.labels == label] for label in (0, 1)]
    return min(len(set(group)) if by_patient else len(group) for group in groups)


def _require(nodules: Labelled, least: int, by_patient: bool) -> None:
    found = _fewest(nodules, by_patient)
    if found < least:
        what = "patients with a nodule" if by_patient else "nodules"
        raise LidcCdamError(
            f"This division needs at least {least} {what} of each label (benign, malignant), but one has {found}; "
            f"choose fewer --folds or extract more nodules."
        )


def _refuse_other(path: Path, fresh: Splits) -> None:
    found = artifacts.read_splits(path)
    for name, old, new in _settings(found, fresh):
        if old != new:
            raise LidcCdamError(
                f"{path} was made with {name} = {old!r}, but this call has {name} = {new!r}; "
                f"choose another --out OTHER.json, or delete the file."
            )


def _settings(found: Splits, fresh: Splits) -> Iterator[tuple[str, Any, Any]]:
    for name in ("protocol", "seed"):
        yield name, getattr(found, name), getattr(fresh, name)
    for name in ("folds", "nodules", "nodules_sha256"):
        yield name, found.parameters.get(name), fresh.parameters[name]
    yield "cohort_sha256", found.cohort_sha256, fresh.cohort_sha256


def _tell(path: Path, rules: Protocol, splits: Splits, table: pd.DataFrame) -> None:
    sizes = ", ".join(f"{len(fold.train)}/{len(fold.val)}/{len(fold.test)}" for fold in splits.folds)
    say(f"{len(table)} nodules of {table['patient_id'].nunique()} patients: {rules.summary}.")
    say(f"{splits.protocol}, seed {splits.seed}: train/val/test {sizes}.")
    say(f"{splits.shared_patients:.1%} of test nodules share a patient with their fold's other nodules.")
    say(f"Written to {path}.")
