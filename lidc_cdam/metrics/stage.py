"""The `evaluate` step: how well each method's maps point at the nodule and at what the model uses."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lidc_cdam import provenance
from lidc_cdam.artifacts import (
    EXPLAINER_COLUMNS,
    EXPLAINERS,
    FAILED_COLUMNS,
    PREDICTIONS,
    SCHEMA,
    Maps,
    fold_folder,
    maps_path,
    read_cohort,
    read_dataset,
    read_maps,
    read_predictions,
    read_table,
    write_table,
)
from lidc_cdam.channels import Channels
from lidc_cdam.crop_files import read_crop
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain import EXPLAINERS as METHODS
from lidc_cdam.explain.stage import explain_run
from lidc_cdam.files import write_json
from lidc_cdam.geometry import central_index
from lidc_cdam.intensity import STATISTICS, Statistics, was_read
from lidc_cdam.metrics.causes_stage import evaluate_causes
from lidc_cdam.metrics.claims_stage import evaluate_claims
from lidc_cdam.metrics.comparison import compare, lines_of
from lidc_cdam.metrics.intervals import REPLICATES
from lidc_cdam.metrics.measures import (
    Measurement,
    central_views,
    consensus_masks,
    measure_fidelity,
    measure_localisation,
    on_input_grid,
)
from lidc_cdam.model import WEIGHTS, NoduleModel, best_device
from lidc_cdam.progress import say, track
from lidc_cdam.runs import fold_numbers, read_config

COMPARISON = "explainers.json"
Row = dict[str, str | int | float]


@dataclass(frozen=True)
class Subject:
    """One fold's model and what it is measured on."""

    run: Path
    fold: int
    data: Path
    cohort: pd.DataFrame
    level: float
    """Share of the readers that a voxel of the consensus needs."""
    model: NoduleModel
    statistics: Statistics
    device: torch.device
    batch_size: int
    channels: Channels

    def readers(self, nodule_id: str) -> int:
        """How many readers marked the nodule."""
        if nodule_id not in self.cohort.index:
            raise LidcCdamError(
                f"{nodule_id} must be in the cohort of {self.data}, but it is not; "
                f"make {self.data} as it was when the run was trained."
            )
        return int(self.cohort["readers"][nodule_id])


def evaluate(
    run: Path,
    methods: str | list[str] = "cdam,random",
    fidelity_nodules: int | None = 20,
    steps: int = 8,
    blur_sigma: float | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
    batch_size: int = 64,
    phantom: bool = False,
    phantom_nodules: int | None = 60,
    claims: bool = False,
) -> None:
    """Measure which maps to trust.

    Each method's maps of the test nodules, at the central slice of the run's views, are measured against the readers'
    consensus (relevance mass, relevance rank, pointing game; chance beside them) and against the model (fidelity). Maps
    that are missing are made first. Writes RUN/explainers.csv, one row per nodule, method, target and metric, and
    RUN/explainers.json, means and differences to `random` with 95 % intervals over patients.

    Args:
        run: Folder of a finished run (`crossval`).
        methods: Estimators to measure, separated by commas; random is what the others are compared with.
        fidelity_nodules: Nodules of each fold whose fidelity is measured (it costs 2 x steps model calls per map); none
            takes all.
        steps: Steps of the fidelity curve from 0 to 100 % of the pixels.
        blur_sigma: Blur that replaces perturbed pixels, in pixels of the model's input; none takes 1/16 of its side.
        replicates: Bootstrap replicates of each interval.
        seed: Seed of the choice of nodules and of the bootstrap.
        batch_size: Images at a time; changes the memory, not the figures.
        phantom: For a run on phantoms (`lidc-cdam causes`): also measure maps against known causes.
        phantom_nodules: Phantoms of each fold that are asked for their causes; none takes all.
        claims: Also measure what the paper says of biomarker maps: where they are positive and negative.
    """
    if batch_size < 1 or replicates < 1:
        raise LidcCdamError(f"--batch-size and --replicates must be at least 1; got {batch_size} and {replicates}.")
    names = _methods(methods)
    measurement = Measurement(fidelity_nodules, steps, blur_sigma, seed)
    data = Path(read_config(run)["data"])
    folds = _folds(run)
    failed = fresh = 0
    for method in names:
        _explain_missing(run, method, folds, batch_size)
        for fold in folds:
            done, failures = _evaluate_fold(run, data, fold, method, measurement, batch_size)
            fresh, failed = fresh + done, failed + failures
    _pool(run, measurement, replicates)
    if failed:
        say(f"{failed} maps could not be measured; {run / 'fold_*' / 'evaluation'} names each with its reason.")
    told = f"Measured {fresh} maps" if fresh else "All maps were measured before"
    say(f"{told} ({', '.join(names)}); see {run / EXPLAINERS} and {run / COMPARISON}.")
    if phantom:
        evaluate_causes(run, names, phantom_nodules, replicates, seed, batch_size)
    if claims:
        evaluate_claims(run, names, replicates, seed)


def _methods(methods: str | list[str]) -> list[str]:
    asked = methods.strip("[]").split(",") if isinstance(methods, str) else methods
    names = list(dict.fromkeys(name.strip() for name in asked if name.strip()))
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        got = ", ".join(map(repr, unknown)) or "none"
        raise LidcCdamError(f"--methods must name at least one of {', '.join(METHODS)}; got {got}.")
    return names


def _folds(run: Path) -> list[int]:
    found = fold_numbers(run, PREDICTIONS)
    if not found:
        raise LidcCdamError(
            f"--run must be a folder with trained folds, but {run} has no fold_*/{PREDICTIONS}; "
            f"run `lidc-cdam crossval --out {run}` first."
        )
    return found


def _tested(run: Path, fold: int) -> dict[str, str]:
    """Patient of each test nodule of a fold."""
    table = read_predictions(fold_folder(run, fold) / PREDICTIONS)
    return dict(zip(table["nodule_id"], table["patient_id"], strict=True))


def _explain_missing(run: Path, method: str, folds: Sequence[int], batch_size: int) -> None:
    lacking = [
        fold for fold in folds if any(not maps_path(run, fold, method, key).exists() for key in _tested(run, fold))
    ]
    if lacking:
        say(f"Maps by {method} are missing; making them as `lidc-cdam explain --run {run} --method {method}` does.")
        explain_run(run, method=method, folds=lacking, batch_size=batch_size)


def _evaluate_fold(
    run: Path, data: Path, fold: int, method: str, measurement: Measurement, batch_size: int
) -> tuple[int, int]:
    """Measure the nodules of a fold that are not measured yet; return how many were, and how many failed."""
    patients = _tested(run, fold)
    part = _evaluation(run, fold) / f"{method}.csv"
    record = _claim(run, fold, method, measurement)
    earlier = read_table(part, EXPLAINER_COLUMNS, "evaluate") if part.exists() else pd.DataFrame(columns=["nodule_id"])
    pending = [key for key in patients if key not in set(earlier["nodule_id"])]
    if not pending:
        if not record.finished:
            record.finish(nodules=len(patients))
        return 0, 0
    subject = _subject(run, data, fold, batch_size)
    chosen = measurement.sample(list(patients))
    rows: list[Row] = []
    failures: list[Row] = []
    try:
        for nodule_id in track(pending, f"Evaluating {method}, fold {fold}"):
            identity: Row = {"nodule_id": nodule_id, "patient_id": patients[nodule_id], "fold": fold, "method": method}
            try:
                values = _measure(subject, method, nodule_id, measurement, nodule_id in chosen)
                rows += [{**identity, **value} for value in values]
            except LidcCdamError as error:
                series = subject.cohort["series_uid"].get(nodule_id, "")
                failures.append({"nodule_id": nodule_id, "series_uid": series, "reason": str(error)})
    finally:
        # An interrupt keeps what is measured; the next call goes on after it.
        _write_part(part, earlier, rows, failures)
    if not failures:
        record.finish(nodules=len(patients))
    return len(pending) - len(failures), len(failures)


def _evaluation(run: Path, fold: int) -> Path:
    return fold_folder(run, fold) / "evaluation"


def _claim(run: Path, fold: int, method: str, measurement: Measurement) -> provenance.Record:
    """One record for the settings, which all methods share, and one for the method's maps."""
    source, folder = fold_folder(run, fold), _evaluation(run, fold)
    remedy = f"evaluate with the earlier settings, or delete {run / 'fold_*' / 'evaluation'} to begin anew"
    explained = provenance.read_record(source, f"explain/{method}") or {}
    provenance.begin(folder, "evaluate", vars(measurement), {"weights": source / WEIGHTS}, remedy)
    maps = {name: explained.get(name) for name in ("config", "inputs")}
    return provenance.begin(folder, f"evaluate/{method}", maps, remedy=remedy)


def _subject(run: Path, data: Path, fold: int, batch_size: int) -> Subject:
    folder = fold_folder(run, fold)
    device = best_device()
    model = NoduleModel.load(folder).to(device)
    statistics = Statistics.read(folder / STATISTICS)
    level = read_dataset(data).consensus_level
    return Subject(
        run, fold, data, read_cohort(data), level, model, statistics, device, batch_size, Channels.of(read_config(run))
    )


def _measure(subject: Subject, method: str, nodule_id: str, measurement: Measurement, with_fidelity: bool) -> list[Row]:
    """Every figure of one nodule's maps by one method."""
    path = maps_path(subject.run, subject.fold, method, nodule_id)
    maps = read_maps(path)
    crop = read_crop(subject.data, nodule_id)
    scores = _central_scores(path, maps, subject.model, central_index(len(crop.hu)))
    size = subject.model.image_size
    masks = on_input_grid(consensus_masks(crop, subject.readers(nodule_id), maps.views, subject.level), size)
    read = on_input_grid(central_views(was_read(crop.hu), maps.views), size)
    figures = measure_localisation(scores, masks, read)
    if with_fidelity:
        source = subject.channels.read(subject.data, nodule_id, len(crop.hu))
        shown = [subject.channels.image(source, view, central_index(len(crop.hu))) for view in maps.views]
        images = subject.statistics.intensity.apply(torch.from_numpy(np.stack(shown)).to(subject.device), size)
        on_device = scores.to(subject.device)
        figures |= measure_fidelity(subject.model, images, on_device, measurement, subject.batch_size)
    return [
        {"target": target, "metric": metric, "value": float(values[index])}
        for index, target in enumerate(maps.targets)
        for metric, values in figures.items()
    ]


def _central_scores(
    path: Path, maps: Maps, model: NoduleModel, central: int
) -> Float[Tensor, "target view row column"]:
    """The maps at the central slice, which must be of this model's targets."""
    if maps.targets != model.targets or central not in maps.slices:
        raise LidcCdamError(
            f"{path} must hold maps of {', '.join(model.targets)} at slice {central}, but it holds "
            f"{', '.join(maps.targets)} at {maps.slices}; delete it and run `lidc-cdam explain` again."
        )
    return torch.from_numpy(maps.scores[:, :, maps.slices.index(central)])


def _write_part(
    part: Path,
    earlier: pd.DataFrame,
    rows: Sequence[Row],
    failures: Sequence[Row],
) -> None:
    if rows:
        tables = [table for table in (earlier, pd.DataFrame(rows)) if len(table)]
        write_table(part, pd.concat(tables, ignore_index=True), EXPLAINER_COLUMNS)
    path = part.with_name(f"failed_{part.name}")
    if failures:
        write_table(path, pd.DataFrame(failures), FAILED_COLUMNS)
    else:
        path.unlink(missing_ok=True)


def _pool(run: Path, measurement: Measurement, replicates: int) -> None:
    """Write `explainers.csv` and `explainers.json` over all folds and methods measured so far."""
    parts = [
        path
        for fold in _folds(run)
        for path in sorted(_evaluation(run, fold).glob("*.csv"))
        if not path.name.startswith("failed_")
    ]
    if not parts:
        raise LidcCdamError(
            f"No map of {run} could be measured; {run / 'fold_*' / 'evaluation'} names each nodule with its reason."
        )
    table = pd.concat([read_table(path, EXPLAINER_COLUMNS, "evaluate") for path in parts], ignore_index=True)
    comparison = compare(table, replicates, measurement.seed)
    write_table(run / EXPLAINERS, table, EXPLAINER_COLUMNS)
    write_json(run / COMPARISON, {"schema": SCHEMA, "settings": vars(measurement), **comparison})
    for line in lines_of(comparison):
        say(line)
