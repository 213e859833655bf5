"""What a report shows, read from the artefacts: the run's facts once, then one small record per nodule."""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from lidc_cdam import artifacts, crop_files, provenance, quality
from lidc_cdam.artifacts import NoduleRecord
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import read_json
from lidc_cdam.map_files import random_maps_path, volume_folder, volume_path, volume_targets
from lidc_cdam.runs import read_config, shown_words
from lidc_cdam.vocabulary import BIOMARKERS, MALIGNANCY, TARGETS, Target
from reports.conformal import Calibrated, calibrate
from reports.measures import CHANCE, CONTROL, MASS, Measures, Typical, read_measures
from reports.scales import Limits, methods_with_maps, read_random_scales, read_scales, rows_of

SHOWN: tuple[str, ...] = (*(biomarker.key for biomarker in BIOMARKERS), MALIGNANCY.key)
"""Order in which documents show the targets."""
MOST_METHODS = 5
"""Methods beside the shown one that a document can hold."""
TAKEN = r"(?i:index|run|checklists|provenance\.json|exported\.csv|failed\.csv)"
"""Names of what lies beside the nodules' files and folders."""
SAFE_NAME = re.compile(rf"(?!{TAKEN}$)[A-Za-z0-9][A-Za-z0-9._-]{{0,127}}")
"""What a nodule_id must be to become a file name."""
UNSAFE_NAME = (
    "nodule_id must be at most 128 letters, digits, dots, dashes and underscores, and none of the reports' own names "
    "(index, run), to name a file"
)
"""Why another one has none."""


@dataclass(frozen=True)
class Run:
    """One finished run, as far as every document shares it. Small: it travels to the workers."""

    folder: Path
    data: Path
    method: str
    targets: tuple[str, ...]
    backbone: str
    limits: Limits
    """Limit of the signed scale by fold and target; a fold without maps by this method has none."""
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
    views: tuple[str, ...] = ()
    """Views whose outputs evaluation averages over."""
    beside: dict[str, Limits] = field(default_factory=dict)
    """The same limits for other methods whose maps the run holds, to compare with."""
    held: dict[str, tuple[float, int]] = field(default_factory=dict)
    """By target: share of the test nodules whose 90 % interval holds the readers' value, and of how many."""
    calibrated_on: dict[int, int] = field(default_factory=dict)
    """By fold: validation nodules that intervals are calibrated on."""
    typical: Typical = field(default_factory=dict)
    """Middle half of each metric of the maps over the run's nodules."""
    latents_sha256: dict[int, str] = field(default_factory=dict)
    random_limits: Limits = field(default_factory=dict)
    """The limits of the maps by the same models with random weights, where `evaluate` has kept such maps."""
    label_rule: str = "median"
    """How one malignancy comes from the readers' ratings: `median` or `mean`."""
    is_refitted: bool = False
    """Whether a part of each model learnt from its validation nodules too, once its epoch was chosen."""
    summary: dict[str, Any] = field(default_factory=dict)


DOCUMENTS = ("report", "export")
"""Stages that may share an output folder; they refuse one that holds DATA, a run or what else."""
SCAN = ("slice_thickness_mm", "volume_mm3")
"""Columns of the cohort table that a report shows where it has them."""


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
    measures: Measures
    """Metrics of this nodule's maps by target; empty without `explainers.csv`."""
    record: NoduleRecord | None
    control: Measures = field(default_factory=dict)
    """The same of a random map."""
    calibrated: Calibrated = field(default_factory=Calibrated)
    scan: dict[str, float] = field(default_factory=dict)
    """What the cohort table says of the scan and the nodule beyond the readings: a key of `SCAN` by name."""

    @property
    def mass(self) -> dict[str, tuple[float, float | None]]:
        """Relevance mass inside the consensus and its chance level, per target that has one."""
        return {key: (own[MASS], own.get(CHANCE)) for key, own in self.measures.items() if MASS in own}

    @property
    def is_synthetic(self) -> bool:
        """Whether the crop is a phantom's."""
        return self.record is not None and quality.SYNTHETIC in self.record.flags


def _summary(path: Path) -> dict[str, Any]:
    stored = read_json(path) if path.exists() else {}
    if not isinstance(stored, dict):
        raise LidcCdamError(f"{path} must be a JSON object; delete it and run `lidc-cdam crossval` again.")
    return stored


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
    rows = [row for row in rows_of(predictions) if SAFE_NAME.fullmatch(row[1])]
    scales = read_scales(run, method, rows)
    others = [name for name in methods_with_maps(run, sorted({fold for fold, _ in rows})) if name != method]
    measured = read_measures(run, (method, CONTROL))
    calibration = calibrate(run, predictions, keys)
    protocol, shared = _splits(config)
    record, rule = _training_record(run), _label_rule(folder)
    facts = Run(
        folder=run,
        data=folder,
        method=method,
        targets=tuple(keys),
        backbone=str(config.get("backbone", "")),
        limits=scales.limits,
        mapped=scales.mapped,
        protocol=protocol,
        shared_patients=shared,
        spread={key: float(predictions[f"{key}_true"].std(ddof=0)) for key in keys},
        config_sha256=provenance.sha256(run / artifacts.CONFIG),
        model_sha256=_digests(run, predictions, "model.safetensors"),
        commit=record.get("commit"),
        versions=record.get("versions", {}),
        consensus_level=dataset.consensus_level,
        shown=(*shown_words(config), *label_words(rule)),
        label_rule=rule or "median",
        is_refitted=config.get("side_head") == "kernel",
        summary=_summary(run / artifacts.SUMMARY),
        views=tuple(config["views"]),
        beside={name: read_scales(run, name, rows).limits for name in others[:MOST_METHODS]},
        held=calibration.held,
        calibrated_on=calibration.calibrated_on,
        typical=measured.typical(method),
        latents_sha256=_digests(run, predictions, artifacts.LATENTS),
        random_limits=read_random_scales(run, method, rows).limits,
    )
    cases = []
    cohort = artifacts.read_cohort(folder)
    readings = dict(iter(artifacts.read_readings(folder).groupby("nodule_id")))
    for row in predictions.to_dict("records"):
        nodule = row["nodule_id"]
        cases.append(
            Case(
                nodule_id=nodule,
                patient_id=row["patient_id"],
                fold=int(row["fold"]),
                **_from_cohort(cohort, nodule),
                readings=_readings(readings.get(nodule)),
                predicted=_finite(row, facts.targets, "predicted"),
                true=_finite(row, facts.targets, "true"),
                measures=measured.of(method, nodule),
                record=dataset.nodules.get(nodule),
                control=measured.of(CONTROL, nodule),
                calibrated=calibration.nodules[nodule],
            )
        )
    return facts, cases


def chosen_nodules(known: Sequence[str], asked: Sequence[str] | None, run: Path) -> list[str]:
    """The nodules that a command works on: those asked for, each once, or all.

    Args:
        known: the run's test nodules.
        asked: values of --nodules; None takes all.
        run: folder of the run, for the error.

    Raises:
        LidcCdamError: one of them is no test nodule.
    """
    unknown = [nodule for nodule in asked or () if nodule not in known]
    if unknown:
        raise LidcCdamError(
            f"--nodules must be test nodules of {run} (see its {artifacts.PREDICTIONS}); got {', '.join(unknown)}."
        )
    return list(known if asked is None else dict.fromkeys(asked))


def _from_cohort(cohort: pd.DataFrame, nodule: str) -> dict[str, Any]:
    """A nodule's label, the readers' median malignancy and what the table says of its scan."""
    if nodule not in cohort.index:
        return {"label": None, "malignancy": None}
    row: dict[Any, Any] = cohort.loc[nodule].to_dict()
    scan = {name: float(row[name]) for name in SCAN if not pd.isna(row.get(name))}
    label = None if pd.isna(row["label"]) else int(row["label"])
    return {"label": label, "malignancy": float(row["malignancy"]), "scan": scan}


def _data_of(run: Path, config: dict[str, Any]) -> Path:
    named = Path(config["data"])
    if not named.is_dir():
        raise LidcCdamError(
            f"{run / artifacts.CONFIG} must name the folder of the crops under `data`, but {named} is no folder here; "
            f"give it with --data."
        )
    return named


def _label_rule(data: Path) -> str:
    """The cohort's rule as its record says; a folder without one has the usual rule; empty where it cannot be read."""
    try:
        record = provenance.read_record(data, "cohort") or {}
    except LidcCdamError:
        return ""
    return str(record.get("config", {}).get("selection", {}).get("label_rule", "median"))


def label_words(rule: str) -> list[str]:
    """What every result must say of labels that come from another figure than the readers' median."""
    if rule == "median":
        return []
    if not rule:
        return [
            f"Which of the readers' figures decides benign and malignant is not known, because {provenance.FILE} of "
            f"the data cannot be read; these pages say median."
        ]
    return [
        f"Benign and malignant stand for the readers' {rule} malignancy below and above 3 in this cohort, also where "
        f"these pages say median."
    ]


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


def _digests(run: Path, predictions: pd.DataFrame, name: str) -> dict[int, str]:
    """By fold: digest of one of its files, where it has it."""
    paths = {int(fold): artifacts.fold_folder(run, int(fold)) / name for fold in sorted(set(predictions["fold"]))}
    return {fold: provenance.sha256(path) for fold, path in paths.items() if path.exists()}


def _finite(row: Mapping[Any, Any], keys: Sequence[str], kind: str) -> dict[str, float]:
    values = {key: float(row.get(f"{key}_{kind}", math.nan)) for key in keys}
    return {key: value for key, value in values.items() if math.isfinite(value)}


def _readings(table: pd.DataFrame | None) -> tuple[dict[str, float], ...]:
    if table is None:
        return ()
    return tuple({key: float(row[key]) for key in TARGETS if not pd.isna(row[key])} for row in table.to_dict("records"))


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
        methods = (run.method, *run.beside)
        paths = (
            crop_files.crop_path(run.data, case.nodule_id),
            crop_files.mask_path(run.data, case.nodule_id),
            crop_files.reader_masks_path(run.data, case.nodule_id),
            *(artifacts.maps_path(run.folder, case.fold, name, case.nodule_id) for name in methods),
            random_maps_path(run.folder, case.fold, run.method, case.nodule_id),
        )
        for path in paths:
            digest.update(path.read_bytes() if path.exists() else b"missing")
        volumes = volume_folder(run.folder, case.fold, run.method, case.nodule_id)
        for target in volume_targets(volumes):
            digest.update(target.encode() + volume_path(volumes, target).read_bytes())
    return digest.hexdigest()
