"""The `explain` step: maps or volumes of a run's test nodules, or of other nodules, as files."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lidc_cdam import provenance
from lidc_cdam.artifacts import (
    FAILED,
    FAILED_COLUMNS,
    PREDICTIONS,
    fold_folder,
    read_cohort,
    read_dataset,
    read_predictions,
    write_table,
)
from lidc_cdam.channels import Channels
from lidc_cdam.compute import HERE, Workers, map_items
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain.cdam import CLOSED_FORM
from lidc_cdam.explain.registry import find_explainer
from lidc_cdam.explain.volume import Upsampling
from lidc_cdam.explain.work import (
    Failure,
    Job,
    MapTask,
    Outcome,
    Task,
    VolumeTask,
    forget_fold,
    form_used,
    jobs_of,
    run_job,
)
from lidc_cdam.files import read_json
from lidc_cdam.geometry import VIEWS, Grid
from lidc_cdam.intensity import STATISTICS, Statistics
from lidc_cdam.model import DESCRIPTION, WEIGHTS
from lidc_cdam.progress import say
from lidc_cdam.runs import fold_numbers, read_config
from lidc_cdam.vocabulary import resolve_targets


def explain_run(
    run: Path,
    method: str = "cdam",
    data: Path | None = None,
    out: Path | None = None,
    folds: list[int] | None = None,
    targets: list[str] | None = None,
    views: list[str] | None = None,
    slices: tuple[int, ...] | None = None,
    volume: bool = False,
    upsampling: Upsampling = "nearest",
    options: dict[str, Any] | None = None,
    batch_size: int = 64,
    workers: Workers = HERE,
) -> None:
    """Write signed maps for every target of a run.

    Each fold's model explains that fold's test nodules. The scores are raw, on the model's own scale (a logit for
    malignancy, a z-score for a biomarker). Maps lie on the model's token grid:
    OUT/fold_k/maps/<method>/<nodule_id>.npz. With --volume every slice of every view is explained, and the maps become
    volumes on the crop's grid: OUT/fold_k/volumes/<method>/<nodule_id>/<target>.nii.gz, the mean over the views, to
    open over the crop in a viewer, and <target>.npz, one volume per view.

    Args:
        run: Folder of a finished run (`crossval`).
        method: Estimator: cdam, smooth_cdam, integrated_cdam, attention, rollout, input_gradient, smoothgrad,
            integrated_gradients, gradcam, relevance_propagation, partial_lrp, legrad, libragrad, random or centre.
        data: Folder of other crops; every model of the run explains all of its nodules. Needs --out.
        out: Where to write; the run's own folder by default.
        folds: Folds to explain; all by default.
        targets: Targets of the run to explain, such as margin,diameter; all by default. Volumes of further targets can
            be added later.
        views: Views to explain; by default the run's own, with --volume axial, coronal and sagittal.
        slices: Slices of each view, counted from 0 along its axis; none takes the central one, 16 of 32. Not with
            --volume.
        volume: Explain every slice and write volumes instead of maps.
        upsampling: How a volume takes token scores to voxels: nearest, the token under the voxel's centre; area, the
            mean of the tokens that it touches, by their share.
        options: The estimator's own settings, such as {"n": 20}.
        batch_size: Images at a time; changes the memory, not the maps.
        workers: Where to work; each worker holds one model.
    """
    settings = options or {}
    _check(method, settings, slices, volume, upsampling, batch_size)
    source, place = _folders(run, data, out)
    numbers = _folds(run, folds)
    whole = _run_targets(run, numbers[0])
    keys, names = _chosen_targets(whole, targets), _views(run, views, volume)
    grid, channels = read_dataset(source).grid, Channels.of(read_config(run))
    claim: dict[str, Any] = {"views": names, "options": settings}
    task: Task
    if volume:
        claim |= {"upsampling": upsampling}
        every = tuple(range(grid.side))
        task = VolumeTask(
            run, source, place, method, keys, names, every, grid, channels, settings, batch_size, claim, upsampling
        )
    else:
        chosen = _slices(slices, grid)
        claim |= {"slices": chosen} | ({} if keys == whole else {"targets": keys})
        task = MapTask(run, source, place, method, keys, names, chosen, grid, channels, settings, batch_size, claim)
    _explain(task, [_begin(task, whole, fold, data) for fold in numbers], workers)


@dataclass(frozen=True)
class Part:
    """One fold of a call."""

    fold: int
    nodule_ids: list[str]
    missing: list[str]
    record: provenance.Record
    jobs: list[Job]
    model_digest: str


def _check(
    method: str,
    options: dict[str, Any],
    slices: Sequence[int] | None,
    volume: bool,
    upsampling: Upsampling,
    batch_size: int,
) -> None:
    find_explainer(method, options)
    if batch_size < 1:
        raise LidcCdamError(f"--batch-size must be at least 1 image; got {batch_size}.")
    if volume and slices is not None:
        raise LidcCdamError(f"--volume explains every slice, so it does not go with --slices {list(slices)}; drop one.")
    if upsampling != "nearest" and not volume:
        raise LidcCdamError(
            f"--upsampling {upsampling} makes volumes of maps, which stay on the token grid without it; add --volume."
        )


def _slices(asked: Sequence[int] | None, grid: Grid) -> tuple[int, ...]:
    """The slices of each view that are explained: the central one, or those that were asked for."""
    chosen = (grid.central,) if asked is None else tuple(dict.fromkeys(asked))
    if not chosen or not all(0 <= index < grid.side for index in chosen):
        raise LidcCdamError(f"--slices must be at least one index from 0 to {grid.side - 1}; got {list(chosen)}.")
    return chosen


def _folders(run: Path, data: Path | None, out: Path | None) -> tuple[Path, Path]:
    """The folder of crops and the folder to write to."""
    if data is not None and (out is None or out.resolve() == run.resolve()):
        raise LidcCdamError(
            f"--data {data} names other nodules than the run's own, so their maps must not go into {run}; "
            f"give --out another folder."
        )
    return Path(read_config(run)["data"]) if data is None else data, out or run


def _folds(run: Path, asked: Sequence[int] | None) -> list[int]:
    """The folds that hold a model, or those of them that were asked for."""
    present = fold_numbers(run, WEIGHTS)
    if not present:
        raise LidcCdamError(
            f"--run {run} must hold trained folds (fold_0/{WEIGHTS}, ...), but there is none; "
            f"run `lidc-cdam crossval` first."
        )
    absent = [fold for fold in asked or () if fold not in present]
    if absent or asked == []:
        raise LidcCdamError(f"--folds must be among the folds trained in {run}, {present}; got {absent or 'none'}.")
    return present if asked is None else list(dict.fromkeys(asked))


def _run_targets(run: Path, fold: int) -> tuple[str, ...]:
    """The targets that the run's configuration names, or else those of a fold's model."""
    config = read_config(run)
    if "targets" in config:
        return tuple(target.key for target in resolve_targets(config["targets"]))
    return _targets_of(fold_folder(run, fold) / DESCRIPTION)


def _targets_of(path: Path) -> tuple[str, ...]:
    """The targets in a model's description."""
    stored = read_json(path)
    return tuple(stored.get("targets", ())) if isinstance(stored, dict) else ()


def _chosen_targets(whole: tuple[str, ...], asked: Sequence[str] | None) -> tuple[str, ...]:
    """The asked ones of the run's targets, in the model's order."""
    if asked is None:
        return whole
    keys = {target.key for target in resolve_targets(asked)}
    others = sorted(keys - set(whole))
    if others:
        raise LidcCdamError(f"--targets must be among this run's targets, {', '.join(whole)}; got {', '.join(others)}.")
    return tuple(key for key in whole if key in keys)


def _views(run: Path, asked: Sequence[str] | None, volume: bool) -> tuple[str, ...]:
    """The views to explain, in the vocabulary's order where they are asked for."""
    own = tuple(read_config(run)["views"])
    views = tuple(asked) if asked is not None else (tuple(VIEWS) if volume else own)
    unknown = [name for name in views if name not in VIEWS]
    if unknown or not views:
        raise LidcCdamError(f"--views must name views out of {', '.join(VIEWS)}; got {unknown or 'none'}.")
    strange = [name for name in views if name not in own]
    if strange:
        say(
            f"The models of {run} were trained on {' and '.join(own)} slices only; scores of {' and '.join(strange)} "
            f"slices explain images of a kind that they have not seen (--views {','.join(own)} leaves them out)."
        )
    return tuple(dict.fromkeys(views)) if asked is None else tuple(name for name in VIEWS if name in views)


def _nodules(run: Path, fold: int, data: Path | None) -> list[str]:
    """The fold's test nodules, which its predictions list; or all nodules of other data."""
    if data is not None:
        return list(read_dataset(data).nodules)
    return list(read_predictions(fold_folder(run, fold) / PREDICTIONS)["nodule_id"])


def _begin(task: Task, whole: tuple[str, ...], fold: int, data: Path | None) -> Part:
    """Claim a fold's folder and say what is missing there."""
    nodule_ids = _nodules(task.run, fold, data)
    inputs = _model_digests(task, fold, whole)
    model_digest = provenance.sha256_of(inputs)
    jobs = list(jobs_of(task, fold, nodule_ids, model_digest))
    task.check_crops(fold, nodule_ids)
    inputs["crops"] = read_dataset(task.data).digest(nodule_ids)
    folder, stage = fold_folder(task.out, fold), f"{task.stage}/{task.method}"
    record = provenance.begin(folder, stage, task.claim, inputs)
    if jobs and record.finished:
        provenance.reopen(folder, stage)
    return Part(fold, nodule_ids, task.missing(fold, nodule_ids), record, jobs, model_digest)


def _model_digests(task: Task, fold: int, expected: tuple[str, ...]) -> dict[str, Path | str]:
    """Digests of a fold's model and statistics, which must belong to the run's task and to cubes of this size."""
    folder = fold_folder(task.run, fold)
    for name in (WEIGHTS, DESCRIPTION, STATISTICS):
        if not (folder / name).is_file():
            raise LidcCdamError(f"{folder / name} is missing; train the fold again.")
    statistics = Statistics.read(folder / STATISTICS)
    statistics.require_grid(task.data, task.grid)
    scaled = statistics.scaling.keys
    for name, keys in ((DESCRIPTION, _targets_of(folder / DESCRIPTION)), (STATISTICS, scaled)):
        if keys != expected:
            raise LidcCdamError(
                f"{folder / name} must belong to the run's targets {', '.join(expected)}, but it is of another task "
                f"({', '.join(keys)}); train the fold again."
            )
    return {name: provenance.sha256(folder / name) for name in (WEIGHTS, DESCRIPTION, STATISTICS)}


def _explain(task: Task, parts: Sequence[Part], workers: Workers) -> None:
    """Explain what is missing, and record what could not be."""
    jobs = [job for part in parts for job in part.jobs]
    if jobs:
        _say_size(task, sum(len(part.missing) for part in parts))
    try:
        outcomes = list(map_items(run_job, jobs, f"Explaining ({task.method} {task.kind})", workers))
        for part in parts:
            _finish(task, part, [outcome for outcome in outcomes if outcome.fold == part.fold])
    finally:
        forget_fold()
    _tell(task, parts, outcomes)


def _finish(task: Task, part: Part, outcomes: Sequence[Outcome]) -> None:
    """Record what came of a fold."""
    if part.jobs:
        _record_failures(task, part.fold, [failure for outcome in outcomes for failure in outcome.failures])
    if not task.missing(part.fold, part.nodule_ids) and (part.jobs or not part.record.finished):
        # A call that was killed right before this has left all its files and no outcome.
        told = next((outcome.method_used for outcome in outcomes if outcome.method_used), None)
        used = told or form_used(task, part.fold, part.model_digest)
        part.record.finish(nodules=len(part.nodule_ids), **({"method_used": used} if used else {}))


def _say_size(task: Task, nodules: int) -> None:
    """Say before hours of work how much room the files need at most."""
    if isinstance(task, VolumeTask):
        size = nodules * task.bytes_per_nodule
        free = shutil.disk_usage(fold_folder(task.out, 0).parent).free
        say(f"Volumes of {nodules} nodules take up to {size / 1e6:.1f} MB in {task.out}; {free / 1e6:.0f} MB are free.")


def _record_failures(task: Task, fold: int, failed: Sequence[Failure]) -> None:
    """`failed.csv` beside a fold's files: one row per nodule that has none; absent where all have."""
    path = task.place(fold) / FAILED
    if failed:
        series = read_cohort(task.data)["series_uid"]
        rows = [{"nodule_id": key, "series_uid": series.get(key, ""), "reason": reason} for key, reason in failed]
        write_table(path, pd.DataFrame(rows), FAILED_COLUMNS)
    else:
        path.unlink(missing_ok=True)


def _tell(task: Task, parts: Sequence[Part], outcomes: Sequence[Outcome]) -> None:
    failures = [failure for outcome in outcomes for failure in outcome.failures]
    present = sum(len(part.nodule_ids) - len(part.missing) for part in parts)
    written = sum(len(part.missing) for part in parts) - sum(
        len(task.missing(part.fold, part.missing)) for part in parts
    )
    place = task.place("*")
    if failures and not written + present:
        raise LidcCdamError(f"None of {len(failures)} nodules could be explained; the first: {failures[0][1]}")
    if failures:
        say(f"Could not explain {len(failures)} of the nodules; {place / FAILED} names each with its reason.")
    if not written and not failures:
        say(f"All {present} nodules have their {task.kind} in {place}; nothing to do.")
    else:
        say(f"Wrote {task.method} {task.kind} of {written} nodules ({present} were there) to {place}.")
        for used in sorted({outcome.method_used for outcome in outcomes} - {""}):
            say(f"The scores were computed {'in' if used == CLOSED_FORM else 'by'} {used}.")
