"""The `explain` step: maps of a run's test nodules, or of other nodules, as files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lidc_cdam import provenance
from lidc_cdam.artifacts import (
    CONFIG,
    FAILED,
    FAILED_COLUMNS,
    PREDICTIONS,
    Maps,
    fold_folder,
    maps_path,
    read_cohort,
    read_dataset,
    read_predictions,
    write_maps,
    write_table,
)
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain.registry import explain, find_explainer
from lidc_cdam.geometry import VIEWS, Grid, take_view
from lidc_cdam.intensity import STATISTICS, Statistics, read_cube, stack_images
from lidc_cdam.model import DESCRIPTION, WEIGHTS, NoduleModel, best_device
from lidc_cdam.progress import say, track
from lidc_cdam.runs import fold_numbers, read_config
from lidc_cdam.vocabulary import resolve_targets


@dataclass(frozen=True)
class Task:
    """What to explain, the same for every fold."""

    data: Path
    out: Path
    method: str
    views: tuple[str, ...]
    slices: tuple[int, ...]
    options: Mapping[str, Any]
    batch_size: int
    grid: Grid
    """Of the cubes in `data`."""

    def missing(self, fold: int, nodule_ids: Sequence[str]) -> list[str]:
        """The nodules without maps."""
        return [key for key in nodule_ids if not maps_path(self.out, fold, self.method, key).exists()]


def explain_run(
    run: Path,
    method: str = "cdam",
    data: Path | None = None,
    out: Path | None = None,
    folds: list[int] | None = None,
    slices: tuple[int, ...] | None = None,
    options: dict[str, Any] | None = None,
    batch_size: int = 64,
) -> None:
    """Write signed maps for every target of a run.

    Each fold's model explains that fold's test nodules, in the run's views. The maps are raw, on the model's own scale
    (a logit for malignancy, a z-score for a biomarker) and token grid: OUT/fold_k/maps/<method>/<nodule_id>.npz.

    Args:
        run: Folder of a finished run (`crossval`).
        method: Estimator, such as cdam, smooth_cdam, integrated_cdam, random or centre.
        data: Folder of other crops; every model of the run explains all of its nodules. Needs --out.
        out: Where to write; the run's own folder by default.
        folds: Folds to explain; all by default.
        slices: Slices of each view, counted from 0 along its axis; none takes the central one, 16 of 32.
        options: The estimator's own settings, such as {"n": 20}.
        batch_size: Images at a time; changes the memory, not the maps.
    """
    task = _task(run, method, data, out, slices, options or {}, batch_size)
    failures: list[dict[str, str]] = []
    counts = {"written": 0, "present": 0}
    for fold in _folds(run, folds):
        nodule_ids = _nodules(run, fold, data)
        missing = task.missing(fold, nodule_ids)
        record = _begin(task, run, fold, nodule_ids)
        if missing:
            failed = _explain_fold(task, run, fold, missing)
            _record_failures(task, fold, failed)
            failures += failed
        if not task.missing(fold, nodule_ids) and not record.finished:
            record.finish(nodules=len(nodule_ids))
        counts["written"] += len(missing) - len(task.missing(fold, missing))
        counts["present"] += len(nodule_ids) - len(missing)
    _tell(task, counts, failures)


def _task(
    run: Path,
    method: str,
    data: Path | None,
    out: Path | None,
    slices: Sequence[int] | None,
    options: Mapping[str, Any],
    batch_size: int,
) -> Task:
    find_explainer(method, tuple(options))
    if data is not None and (out is None or out.resolve() == run.resolve()):
        raise LidcCdamError(
            f"--data {data} names other nodules than the run's own, so their maps must not go into {run}; "
            f"give --out another folder."
        )
    if batch_size < 1:
        raise LidcCdamError(f"--batch-size must be at least 1 image; got {batch_size}.")
    config = read_config(run)
    views = tuple(config["views"])
    unknown = [view for view in views if view not in VIEWS]
    if unknown or not views:
        raise LidcCdamError(f"{run / CONFIG} must name views out of {', '.join(VIEWS)}; got {unknown or 'none'}.")
    source = Path(config["data"]) if data is None else data
    grid = read_dataset(source).grid
    chosen = (grid.central,) if slices is None else tuple(dict.fromkeys(slices))
    if not chosen or not all(0 <= index < grid.side for index in chosen):
        raise LidcCdamError(f"--slices must be at least one index from 0 to {grid.side - 1}; got {list(chosen)}.")
    return Task(source, out or run, method, views, chosen, options, batch_size, grid)


def _folds(run: Path, asked: Sequence[int] | None) -> list[int]:
    """The folds that hold a model, or those of them that were asked for."""
    present = fold_numbers(run, WEIGHTS)
    if not present:
        raise LidcCdamError(
            f"--run {run} must hold trained folds (fold_0/{WEIGHTS}, ...), but there is none; "
            f"run `lidc-cdam crossval` first."
        )
    absent = [fold for fold in asked or () if fold not in present]
    if absent:
        raise LidcCdamError(f"--folds must be among the folds trained in {run}, {present}; got {absent}.")
    return present if asked is None else list(dict.fromkeys(asked))


def _nodules(run: Path, fold: int, data: Path | None) -> list[str]:
    """The fold's test nodules, which its predictions list; or all nodules of other data."""
    if data is not None:
        return list(read_dataset(data).nodules)
    return list(read_predictions(fold_folder(run, fold) / PREDICTIONS)["nodule_id"])


def _begin(task: Task, run: Path, fold: int, nodule_ids: Sequence[str]) -> provenance.Record:
    config = {"views": task.views, "slices": task.slices, "options": dict(task.options)}
    source = fold_folder(run, fold)
    inputs: dict[str, Path | str] = {name: source / name for name in (WEIGHTS, DESCRIPTION, STATISTICS)}
    for name in inputs:
        if not (source / name).is_file():
            raise LidcCdamError(f"{source / name} is missing; train the fold again.")
    inputs["crops"] = read_dataset(task.data).digest(nodule_ids)
    return provenance.begin(fold_folder(task.out, fold), f"explain/{task.method}", config, inputs)


def _load(task: Task, run: Path, fold: int) -> tuple[NoduleModel, Statistics]:
    """A fold's model and statistics, which must belong to the run's task."""
    folder = fold_folder(run, fold)
    model, statistics = NoduleModel.load(folder), Statistics.read(folder / STATISTICS)
    statistics.require_grid(task.data, task.grid)
    config = read_config(run)
    expected = tuple(target.key for target in resolve_targets(config.get("targets", list(model.targets))))
    for name, keys in ((DESCRIPTION, model.targets), (STATISTICS, statistics.scaling.keys)):
        if keys != expected:
            raise LidcCdamError(
                f"{folder / name} must belong to the run's targets {', '.join(expected)}, but it is of another task "
                f"({', '.join(keys)}); train the fold again."
            )
    return model, statistics


def _explain_fold(task: Task, run: Path, fold: int, nodule_ids: Sequence[str]) -> list[dict[str, str]]:
    """Write the maps of the named nodules; return the rows of those that could not be read."""
    model, statistics = _load(task, run, fold)
    device = best_device()
    model.to(device)
    series = read_cohort(task.data)["series_uid"]
    step = max(1, task.batch_size // (len(task.views) * len(task.slices)))
    failed = []
    starts = range(0, len(nodule_ids), step)
    for start in track(starts, f"Explaining fold {fold} ({task.method})"):
        images: dict[str, Tensor] = {}
        for nodule_id in nodule_ids[start : start + step]:
            try:
                images[nodule_id] = _images_hu(task, nodule_id)
            except LidcCdamError as error:
                uid = series.get(nodule_id, "")
                failed.append({"nodule_id": nodule_id, "series_uid": uid, "reason": str(error)})
        if images:
            _write(task, fold, model, statistics, images, device)
    return failed


def _images_hu(task: Task, nodule_id: str) -> Float[Tensor, "image row column"]:
    """The nodule's images, HU: the views, and in each of them the slices."""
    cube = read_cube(task.data, nodule_id, task.grid.side)
    return stack_images([take_view(cube, view, index) for view in task.views for index in task.slices]).float()


def _write(
    task: Task,
    fold: int,
    model: NoduleModel,
    statistics: Statistics,
    images_hu: Mapping[str, Float[Tensor, "image row column"]],
    device: torch.device,
) -> None:
    images = statistics.intensity.apply(torch.cat(list(images_hu.values())).to(device), model.image_size)
    scores = explain(model, images, method=task.method, **task.options).float().cpu()
    _, targets, rows, columns = scores.shape
    shape = (len(images_hu), len(task.views), len(task.slices), targets, rows, columns)
    for nodule_id, nodule in zip(images_hu, scores.reshape(shape).movedim(3, 1), strict=True):
        maps = Maps(nodule.numpy(), model.targets, task.views, task.slices)
        write_maps(maps_path(task.out, fold, task.method, nodule_id), maps)


def _record_failures(task: Task, fold: int, failed: Sequence[Mapping[str, str]]) -> None:
    """`OUT/fold_k/maps/<method>/failed.csv`: one row per nodule that has no maps; absent where all have."""
    path = maps_path(task.out, fold, task.method, "any").parent / FAILED
    if failed:
        write_table(path, pd.DataFrame(failed), FAILED_COLUMNS)
    else:
        path.unlink(missing_ok=True)


def _tell(task: Task, counts: Mapping[str, int], failures: Sequence[Mapping[str, str]]) -> None:
    place = task.out / "fold_*" / "maps" / task.method
    if failures and not counts["written"] + counts["present"]:
        raise LidcCdamError(f"None of {len(failures)} nodules could be explained; the first: {failures[0]['reason']}")
    if failures:
        say(f"Could not explain {len(failures)} of the nodules; {place / FAILED} names each with its reason.")
    if not counts["written"] and not failures:
        say(f"All {counts['present']} nodules have their maps in {place}; nothing to do.")
    else:
        say(f"Wrote {task.method} maps of {counts['written']} nodules ({counts['present']} were there) to {place}.")
