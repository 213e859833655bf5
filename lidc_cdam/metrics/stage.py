"""The `evaluate` step: how well each method's maps point at the nodule and at what the model uses."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lidc_cdam import provenance
from lidc_cdam.artifacts import (
    EXPLAINERS,
    FAILED,
    PREDICTIONS,
    fold_folder,
    maps_path,
    read_cohort,
    read_dataset,
    read_predictions,
)
from lidc_cdam.channels import Channels
from lidc_cdam.compute import HERE, Workers, map_items
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain import EXPLAINERS as METHODS
from lidc_cdam.explain.stage import explain_run
from lidc_cdam.files import alone, read_json
from lidc_cdam.map_files import RANDOM_WEIGHTS
from lidc_cdam.metrics.boxes import BOXES
from lidc_cdam.metrics.boxes import box_sides as checked_sides
from lidc_cdam.metrics.causes_stage import check_causes, evaluate_causes
from lidc_cdam.metrics.claims_stage import evaluate_claims
from lidc_cdam.metrics.intervals import REPLICATES
from lidc_cdam.metrics.measures import FAMILIES, OF_OTHERS, RANDOMISED, REPEATED, USUAL
from lidc_cdam.metrics.parts import (
    FAILURE_COLUMNS,
    GALLERY,
    evaluation_folder,
    part_path,
    record_failures,
)
from lidc_cdam.metrics.perturbation import Fill
from lidc_cdam.metrics.results import PICTURES, gallery_nodules, write_results
from lidc_cdam.metrics.settings import Measurement
from lidc_cdam.metrics.work import Job, Outcome, Task, failed, forget_models, run_job
from lidc_cdam.model import DESCRIPTION, WEIGHTS
from lidc_cdam.progress import say
from lidc_cdam.runs import fold_numbers, read_config


def evaluate(
    run: Path,
    methods: str | list[str] = "cdam,random",
    metrics: str | list[str] = USUAL,
    fidelity_nodules: int | None = 20,
    steps: int = 8,
    fill: Fill = "blur",
    blur_sigma: float | None = None,
    box_sides: list[int] | None = None,
    boxes: int = BOXES,
    other_run: Path | None = None,
    randomised_run: Path | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
    batch_size: int = 64,
    workers: Workers = HERE,
    phantom: bool = False,
    phantom_nodules: int | None = 60,
    claims: bool = False,
) -> None:
    """Measure which maps to trust.

    Each method's maps of the test nodules, at the central slice of the run's views, are measured against the readers
    (localisation) and against the model. Costs in model calls, for a nodule with V views, T targets and a method:
    localisation and compactness none (methods that score pixels: one explanation); fidelity 2 (steps - 1) V T; box
    sides x boxes x V **once for all methods**; randomised two explanations, sanity one per block of the model,
    repeatability one per other fold. Maps of methods that score tokens are made first where they are missing. Writes
    RUN/explainers.csv (one row per nodule, method, target and metric), RUN/explainers_curves.csv, RUN/explainers.json
    (means with 95 % intervals over patients, paired differences) and pictures in RUN/figures/explainers. What is
    measured is kept per nodule: a later call adds methods, metrics and nodules, and one that was interrupted goes on.

    Args:
        run: Folder of a finished run (`crossval`).
        methods: Estimators to measure, separated by commas, or all; random is what the others are compared with.
        metrics: Families, separated by commas, or all: localisation, compactness, fidelity, box, randomised, sanity
            (which brings randomised), repeatability, completeness.
        fidelity_nodules: Nodules of each fold of which the costly families are measured (all but localisation,
            compactness and, for methods that score tokens, randomised); none takes every nodule.
        steps: Steps of the fidelity curve from 0 to 100 % of the pixels.
        fill: What replaces pixels: blur (the paper's), mean, or linear (solved from the neighbours).
        blur_sigma: Blur that replaces perturbed pixels, in pixels of the model's input; none takes 1/16 of its side.
        box_sides: Sides of the boxes, in pixels of the model's input; none takes 1/14, 1/7, 3/14, 2/7 and 3/7 of it.
        boxes: Boxes of each side and image.
        other_run: A run with the same folds and another seed, whose maps are compared.
        randomised_run: A run trained with --permute-labels on the same folds, likewise.
        replicates: Bootstrap replicates of each interval.
        seed: Seed of the choice of nodules, of boxes and fresh weights, and of the bootstrap.
        batch_size: Images at a time; changes the memory, not the figures.
        workers: Where to work; each worker holds one model, or with repeatability those of all folds.
        phantom: For a run on phantoms (`lidc-cdam causes`): also measure maps against known causes.
        phantom_nodules: Phantoms of each fold that are asked for their causes; none takes all.
        claims: Also measure what the paper says of biomarker maps: where they are positive and negative.
    """
    if batch_size < 1 or replicates < 1:
        raise LidcCdamError(f"--batch-size and --replicates must be at least 1; got {batch_size} and {replicates}.")
    names = _chosen("--methods", methods, METHODS)
    families = _chosen("--metrics", metrics, [family for family in FAMILIES if family not in OF_OTHERS])
    sides = None if box_sides is None else tuple(box_sides)
    measurement = Measurement(fidelity_nodules, steps, fill, blur_sigma, sides, boxes, seed)
    others = {name: path for name, path in ((REPEATED, other_run), (RANDOMISED, randomised_run)) if path is not None}
    if "sanity" in families:  # its last stage, which all nodules have
        families = list(dict.fromkeys([*families, RANDOM_WEIGHTS]))
    families += others
    task = _task(run, names, measurement, others, batch_size)
    tested = {fold: _tested(run, fold) for fold in task.folds}
    if phantom:
        check_causes(run, phantom_nodules, seed)
    with alone(run, f"Another `evaluate` works on {run}; waiting for it.", ".evaluate"):
        _measure(task, names, families, tested, replicates, workers)
    if phantom:
        evaluate_causes(run, names, phantom_nodules, replicates, seed, batch_size)
    if claims:
        evaluate_claims(run, names, replicates, seed)


def _measure(
    task: Task,
    names: Sequence[str],
    families: Sequence[str],
    tested: Mapping[int, Mapping[str, str]],
    replicates: int,
    workers: Workers,
) -> None:
    """Measure what is missing, write what all of it says, and tell."""
    records = [record for fold in task.folds for record in _claim(task, fold, families, list(tested[fold]))]
    _explain_missing(task, names, tested, workers)
    records += [_claim_maps(task, fold, method) for fold in task.folds for method in names]
    jobs = _jobs(task, names, families, tested)
    outcomes = list(map_items(run_job, jobs, "Evaluating", workers, failed))
    forget_models()
    failures = _record_failures(task, outcomes, names, families)
    write_results(task.run, task.data, task.measurement, tested, replicates)
    if failures:
        place = evaluation_folder(task.run, "*") / FAILED
        say(f"{failures} parts could not be measured; {place} names each with its reason.")
    else:
        for record in records:
            record.finish(methods=names)
    done = sum(len(job.parts) for job in jobs) - failures
    told = f"Measured {done} parts" if done else "Everything was measured before"
    say(f"{told} ({', '.join(names)}: {', '.join(families)}); see {task.run / EXPLAINERS} and {task.run / PICTURES}.")


def _chosen(option: str, asked: str | list[str], known: Collection[str]) -> list[str]:
    """Names out of a list by comma; `all` is every known one."""
    words = asked.strip("[]").split(",") if isinstance(asked, str) else asked
    names = list(dict.fromkeys(name.strip() for name in words if name.strip()))
    if names == ["all"]:
        return list(known)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        got = ", ".join(map(repr, unknown)) or "none"
        raise LidcCdamError(f"{option} must name at least one of {', '.join(known)}; got {got}.")
    return names


def _task(
    run: Path, methods: Sequence[str], measurement: Measurement, others: Mapping[str, Path], batch_size: int
) -> Task:
    config = read_config(run)
    folds = fold_numbers(run, PREDICTIONS)
    if not folds:
        raise LidcCdamError(
            f"--run must be a folder with trained folds, but {run} has no fold_*/{PREDICTIONS}; "
            f"run `lidc-cdam crossval --out {run}` first."
        )
    data = Path(config["data"])
    dataset, folder = read_dataset(data), fold_folder(run, folds[0])
    checked_sides(measurement.box_sides, min(read_json(folder / DESCRIPTION)["image_size"]))
    for path in others.values():
        _check_other(run, path, folds)
    options = {method: _explained(run, folds[0], method).get("config", {}).get("options", {}) for method in methods}
    views = tuple(config["views"])
    level, channels = dataset.consensus_level, Channels.of(config)
    return Task(
        run, data, dataset.grid, channels, views, level, measurement, options, tuple(folds), dict(others), batch_size
    )


def _check_other(run: Path, other: Path, folds: Sequence[int]) -> None:
    """Another run must have looked at the same nodules in the same way, so that maps can be compared one by one."""
    ours, theirs = read_config(run), read_config(other, "--other-run or --randomised-run")
    for name in ("targets", "views", "stack", "mask_channel"):
        if ours.get(name) != theirs.get(name):
            raise LidcCdamError(
                f"--other-run and --randomised-run must be trained as {run}, with {name} = {ours.get(name)}, but "
                f"{other} has {theirs.get(name)}; train it with another seed or --permute-labels alone."
            )
    for fold in folds:
        if not (fold_folder(other, fold) / PREDICTIONS).exists() or set(_tested(other, fold)) != set(
            _tested(run, fold)
        ):
            raise LidcCdamError(
                f"--other-run and --randomised-run must have the folds of {run}, but {other} does not test the same "
                f"nodules in fold {fold}; train it with the same --splits."
            )


def _explained(run: Path, fold: int, method: str) -> dict[str, Any]:
    """The record of a method's stored maps; empty where there is none."""
    return provenance.read_record(fold_folder(run, fold), f"explain/{method}") or {}


def _tested(run: Path, fold: int) -> dict[str, str]:
    """Patient of each test nodule of a fold."""
    table = read_predictions(fold_folder(run, fold) / PREDICTIONS)
    return dict(zip(table["nodule_id"], table["patient_id"], strict=True))


def _claim(task: Task, fold: int, families: Sequence[str], nodule_ids: Sequence[str]) -> list[provenance.Record]:
    """One record for each family's settings, which all methods share."""
    source, folder = fold_folder(task.run, fold), evaluation_folder(task.run, fold)
    inputs: dict[str, Path | str] = {
        "weights": source / WEIGHTS,
        "crops": read_dataset(task.data).digest(nodule_ids),
    }
    records = []
    for family in families:
        settings = {name: getattr(task.measurement, name) for name in FAMILIES[family].settings}
        other = task.other_runs.get(family)
        more: dict[str, Path | str] = {} if other is None else {"other weights": fold_folder(other, fold) / WEIGHTS}
        records.append(provenance.begin(folder, f"evaluate/{family}", settings, {**inputs, **more}, _remedy(task)))
    return records


def _claim_maps(task: Task, fold: int, method: str) -> provenance.Record:
    """The record of the maps that are measured: the stored ones', or the settings of those made here."""
    explained = _explained(task.run, fold, method)
    maps = {name: explained.get(name) for name in ("config", "inputs")}
    if METHODS[method].native != "token":
        maps = {"config": {"options": task.options[method]}, "inputs": None}
    return provenance.begin(evaluation_folder(task.run, fold), f"evaluate/maps/{method}", maps, remedy=_remedy(task))


def _remedy(task: Task) -> str:
    return f"evaluate with the earlier settings, or delete {evaluation_folder(task.run, '*')} to begin anew"


def _explain_missing(
    task: Task, methods: Sequence[str], tested: Mapping[int, Mapping[str, str]], workers: Workers
) -> None:
    """Make the stored maps of methods that score tokens; those of pixels are made where they are measured."""
    for method in methods:
        lacking = [
            fold
            for fold, patients in tested.items()
            if not all(maps_path(task.run, fold, method, key).exists() for key in patients)
        ]
        if lacking and METHODS[method].native == "token":
            say(f"Maps by {method} are missing; making them as `lidc-cdam explain --method {method}` does.")
            options = dict(task.options[method])
            explain_run(
                task.run, method=method, folds=lacking, options=options, batch_size=task.batch_size, workers=workers
            )


def _jobs(
    task: Task, methods: Sequence[str], families: Sequence[str], tested: Mapping[int, Mapping[str, str]]
) -> list[Job]:
    """One job a nodule that lacks a part; folds follow each other, so that a worker need not change its model."""
    shown = gallery_nodules(task.data, [key for patients in tested.values() for key in patients])
    jobs = []
    for fold, patients in tested.items():
        chosen = task.measurement.sample(list(patients))
        for key in patients:
            parts = [
                (method, family)
                for method in methods
                for family in (*families, GALLERY)
                if (key in shown if family == GALLERY else key in chosen or not _is_costly(family, method))
            ]
            pending = tuple(
                (method, family)
                for method, family in parts
                if not part_path(task.run, fold, family, method, key).exists()
            )
            if pending:
                jobs.append(Job(task, fold, key, pending))
    return jobs


def _is_costly(family: str, method: str) -> bool:
    """Whether only a sample of the nodules is measured; a map of pixels with random weights costs many gradients."""
    return FAMILIES[family].sampled or (family == RANDOM_WEIGHTS and METHODS[method].native == "pixel")


def _record_failures(task: Task, outcomes: Sequence[Outcome], methods: Sequence[str], families: Sequence[str]) -> int:
    """Write each fold's `failed.csv`; return how many parts there are without figures."""
    series = read_cohort(task.data)["series_uid"]
    tried = [(method, family) for method in methods for family in (*families, GALLERY)]
    for fold in task.folds:
        failures = [failure for outcome in outcomes if outcome.job.fold == fold for failure in outcome.failures]
        rows = [
            (each.nodule_id, series.get(each.nodule_id, ""), each.reason, each.method, each.family) for each in failures
        ]
        record_failures(task.run, fold, pd.DataFrame(rows, columns=list(FAILURE_COLUMNS)), tried)
    return sum(len(outcome.failures) for outcome in outcomes)
