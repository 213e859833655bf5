"""What a report shows, read from the artefacts: the run's facts once, then one small record per nodule."""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float32

from lidc_cdam import artifacts, crop_files, provenance, quality
from lidc_cdam.artifacts import Dataset, Maps, NoduleRecord
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import read_json
from lidc_cdam.geometry import VIEWS
from lidc_cdam.map_files import volume_folder, volume_targets
from lidc_cdam.progress import track
from lidc_cdam.runs import read_config, shown_words
from lidc_cdam.vocabulary import BIOMARKERS, MALIGNANCY, TARGETS, Target

SCALE_PERCENTILE = 99.0
"""The limit of the signed scale: this percentile of |score| over all maps of one model, which is one fold's.

Models of different folds can differ tenfold in the size of their scores, so one limit for all would blank some.
"""
SHOWN: tuple[str, ...] = (*(biomarker.key for biomarker in BIOMARKERS), MALIGNANCY.key)
"""Order in which documents show the targets."""
MASS, CHANCE = "relevance_mass", "relevance_mass_chance"
"""Metrics of `explainers.csv` that a case report shows."""
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""What a nodule_id must be to become a file name."""


@dataclass(frozen=True)
class Run:
    """One finished run, as far as every document shares it. Small: it travels to the workers."""

    folder: Path
    data: Path
    method: str
    targets: tuple[str, ...]
    backbone: str
    limits: dict[int, float]
    """Limit of the signed scale by fold; a fold without maps by this method has none."""
    mapped: dict[int, int]
    """Nodules that have maps, by fold."""
    protocol: str
    shared_patients: float | None
    spread: dict[str, float]
    """Standard deviation of the true values over the run's nodules, per biomarker."""
    config_sha256: str
    model_sha256: dict[int, str]
    commit: str | None
    versions: dict[str, str]
    consensus_level: float = artifacts.CONSENSUS_LEVEL
    """Share of the readers that a voxel of the consensus needs."""
    shown: tuple[str, ...] = ()
    """What every result must say of what the models are shown."""
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One nodule's rows from one run's artefacts."""

    nodule_id: str
    patient_id: str
    fold: int
    label: int | None
    malignancy: float | None
    """Median of the readers' malignancy."""
    readings: tuple[dict[str, float], ...]
    """Per reader: value by target key (ratings; diameter in mm)."""
    predicted: dict[str, float]
    true: dict[str, float]
    mass: dict[str, tuple[float, float | None]]
    """Relevance mass inside the consensus and its chance level, per target; empty without `explainers.csv`."""
    record: NoduleRecord | None

    @property
    def is_synthetic(self) -> bool:
        """Whether the crop is a phantom's."""
        return self.record is not None and quality.SYNTHETIC in self.record.flags


def open_run(run: Path, method: str, data: Path | None = None) -> tuple[Run, list[Case]]:
    """Read a run's facts and one case per nodule of its `predictions.csv`.

    Args:
        run: folder of a finished run.
        method: whose maps to show.
        data: folder of the crops; None takes the one that the run's `config.yaml` names.

    Raises:
        LidcCdamError: an artefact is missing or malformed.
    """
    predictions = artifacts.read_predictions(run / artifacts.PREDICTIONS)
    config = read_config(run)
    folder = data or _data_of(run, config)
    keys = [key for key in SHOWN if key in artifacts.predicted_keys(predictions)]
    if not keys:
        raise LidcCdamError(
            f"{run / artifacts.PREDICTIONS} must hold predictions of {', '.join(TARGETS)}, but it holds none; "
            f"run `lidc-cdam crossval` again."
        )
    dataset = artifacts.read_dataset(folder)
    limits, mapped = _scales(run, method, predictions)
    protocol, shared = _splits(config)
    record = _training_record(run)
    facts = Run(
        folder=run,
        data=folder,
        method=method,
        targets=tuple(keys),
        backbone=str(config.get("backbone", "")),
        limits=limits,
        mapped=mapped,
        protocol=protocol,
        shared_patients=shared,
        spread={key: float(predictions[f"{key}_true"].std(ddof=0)) for key in keys},
        config_sha256=provenance.sha256(run / artifacts.CONFIG),
        model_sha256=_model_digests(run, predictions),
        commit=record.get("commit"),
        versions=record.get("versions", {}),
        consensus_level=dataset.consensus_level,
        shown=tuple(shown_words(config)),
        summary=read_json(run / artifacts.SUMMARY) if (run / artifacts.SUMMARY).exists() else {},
    )
    return facts, _cases(facts, predictions, dataset)


def _data_of(run: Path, config: dict[str, Any]) -> Path:
    named = Path(config["data"])
    if not named.is_dir():
        raise LidcCdamError(
            f"{run / artifacts.CONFIG} must name the folder of the crops under `data`, but {named} is no folder here; "
            f"give it with --data."
        )
    return named


def _splits(config: dict[str, Any]) -> tuple[str, float | None]:
    named = config.get("splits")
    if named is None or not Path(named).is_file():
        return "", None
    splits = artifacts.read_splits(Path(named))
    return splits.protocol, splits.shared_patients


def _training_record(run: Path) -> dict[str, Any]:
    for stage in ("crossval", "train"):
        record = provenance.read_record(run, stage)
        if record:
            return record
    return {}


def _model_digests(run: Path, predictions: pd.DataFrame) -> dict[int, str]:
    paths = {
        int(fold): artifacts.fold_folder(run, int(fold)) / "model.safetensors"
        for fold in sorted(set(predictions["fold"]))
    }
    return {fold: provenance.sha256(path) for fold, path in paths.items() if path.exists()}


def _scales(run: Path, method: str, predictions: pd.DataFrame) -> tuple[dict[int, float], dict[int, int]]:
    """By fold: the limit that its maps share, and how many nodules have maps."""
    paths = [
        (int(fold), artifacts.maps_path(run, int(fold), method, nodule))
        for fold, nodule in zip(predictions["fold"], predictions["nodule_id"], strict=True)
        if SAFE_NAME.fullmatch(nodule)
    ]
    scores: dict[int, list[Float32[np.ndarray, score]]] = {}
    for fold, path in track([(fold, path) for fold, path in paths if path.exists()], f"Reading {method} maps"):
        # A damaged file decides no scale; the report of its own nodule fails and names it.
        with suppress(LidcCdamError):
            scores.setdefault(fold, []).append(np.abs(read_maps(path).scores).ravel())
    limits = {fold: float(np.percentile(np.concatenate(own), SCALE_PERCENTILE)) for fold, own in scores.items()}
    # Two significant digits, upwards: a printed limit is the limit itself.
    rounded = {fold: _round_up(limit) if limit > 0 else 1.0 for fold, limit in sorted(limits.items())}
    return rounded, {fold: len(own) for fold, own in scores.items()}


def read_maps(path: Path) -> Maps:
    """Maps whose scores are all finite and whose targets and views are known.

    Raises:
        LidcCdamError: the file is damaged or breaks the contract.
    """
    maps = artifacts.read_maps(path)
    expected = (len(maps.targets), len(maps.views), len(maps.slices))
    known = set(maps.targets) <= set(TARGETS) and set(maps.views) <= set(VIEWS)
    if maps.scores.ndim != 5 or maps.scores.shape[:3] != expected or not known or not np.isfinite(maps.scores).all():
        raise LidcCdamError(
            f"{path} must hold finite scores [target, view, slice, row, column] that fit its names, but it does not; "
            f"delete it and run `lidc-cdam explain` again."
        )
    return maps


def _round_up(value: float) -> float:
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / step - 1e-9) * step:.6g}")


def _cases(run: Run, predictions: pd.DataFrame, dataset: Dataset) -> list[Case]:
    cohort = artifacts.read_cohort(run.data)
    readings = dict(iter(artifacts.read_readings(run.data).groupby("nodule_id")))
    masses = _masses(run)
    cases = []
    for row in predictions.to_dict("records"):
        nodule = row["nodule_id"]
        facts = cohort.loc[nodule] if nodule in cohort.index else None
        cases.append(
            Case(
                nodule_id=nodule,
                patient_id=row["patient_id"],
                fold=int(row["fold"]),
                label=None if facts is None or pd.isna(facts["label"]) else int(facts["label"]),
                malignancy=None if facts is None else float(facts["malignancy"]),
                readings=_readings(readings.get(nodule)),
                predicted=_finite(row, run.targets, "predicted"),
                true=_finite(row, run.targets, "true"),
                mass=masses.get(nodule, {}),
                record=dataset.nodules.get(nodule),
            )
        )
    return cases


def _finite(row: Mapping[Any, Any], keys: Sequence[str], kind: str) -> dict[str, float]:
    values = {key: float(row.get(f"{key}_{kind}", math.nan)) for key in keys}
    return {key: value for key, value in values.items() if math.isfinite(value)}


def _readings(table: pd.DataFrame | None) -> tuple[dict[str, float], ...]:
    if table is None:
        return ()
    return tuple({key: float(row[key]) for key in TARGETS if not pd.isna(row[key])} for row in table.to_dict("records"))


def _masses(run: Run) -> dict[str, dict[str, tuple[float, float | None]]]:
    """Relevance mass and its chance level by nodule and target, for this run's method."""
    path = run.folder / artifacts.EXPLAINERS
    if not path.exists():
        return {}
    table = artifacts.read_table(path, artifacts.EXPLAINER_COLUMNS, "evaluate")
    table = table[(table["method"] == run.method) & table["metric"].isin((MASS, CHANCE))]
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in table.to_dict("records"):
        if math.isfinite(row["value"]):
            found.setdefault((row["nodule_id"], row["target"]), {})[row["metric"]] = float(row["value"])
    masses: dict[str, dict[str, tuple[float, float | None]]] = {}
    for (nodule, target), values in found.items():
        if MASS in values:
            masses.setdefault(nodule, {})[target] = (values[MASS], values.get(CHANCE))
    return masses


def targets_of(run: Run) -> tuple[Target, ...]:
    """The run's targets as records, in the order in which documents show them."""
    return tuple(TARGETS[key] for key in run.targets)


def title_of(run: Run) -> str:
    """What the run predicts, for a heading."""
    eight = SHOWN[:-1]
    if set(eight) <= set(run.targets):
        return "Biomarkers and malignancy" if MALIGNANCY.key in run.targets else "Biomarkers"
    return ", ".join(target.title for target in targets_of(run))


def case_key(runs: Sequence[Run], cases: Sequence[Case | None], renderer: str) -> str:
    """Digest of everything that decides one nodule's documents; a document with the same key need not be made again.

    Args:
        runs: the run, and the second one if there is one.
        cases: the nodule's case in each of them.
        renderer: digest of the templates and of the code that renders.
    """
    digest = hashlib.sha256(renderer.encode())
    for run, case in zip(runs, cases, strict=True):
        shared = {key: value for key, value in asdict(run).items() if key not in ("folder", "data", "summary")}
        digest.update(provenance.sha256_of(shared).encode())
        if case is None:
            continue
        digest.update(provenance.sha256_of(asdict(case)).encode())
        paths = (
            crop_files.crop_path(run.data, case.nodule_id),
            crop_files.mask_path(run.data, case.nodule_id),
            artifacts.maps_path(run.folder, case.fold, run.method, case.nodule_id),
        )
        for path in paths:
            digest.update(path.read_bytes() if path.exists() else b"missing")
        digest.update(repr(volume_targets(volume_folder(run.folder, case.fold, run.method, case.nodule_id))).encode())
    return digest.hexdigest()
