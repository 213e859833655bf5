"""The work of the `evaluate` step: what one call measures, and the part of it that a worker takes, one nodule."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int16
from torch import Tensor

from lidc_cdam.artifacts import fold_folder, maps_path, read_cohort, read_maps
from lidc_cdam.channels import Channels
from lidc_cdam.crop_files import read_crop
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain.registry import EXPLAINERS, explain
from lidc_cdam.geometry import Grid
from lidc_cdam.intensity import STATISTICS, Statistics, was_read
from lidc_cdam.metrics.boxes import BoxDrops, box_drops
from lidc_cdam.metrics.measures import FAMILIES, Case, Map, Outlines, check_maps
from lidc_cdam.metrics.parts import DROPS, GALLERY, evaluation_folder, part_path, read_drops, write_arrays, write_drops
from lidc_cdam.metrics.parts import write_part as write_found
from lidc_cdam.metrics.sanity import fresh_model
from lidc_cdam.metrics.settings import Measurement
from lidc_cdam.model import WEIGHTS, NoduleModel, best_device

Scores = Float[Tensor, "target view row column"]
KEPT = 8
"""Models that a worker keeps: all folds of a run, where maps are compared between them."""


@dataclass(frozen=True)
class Task:
    """What to measure, the same for every fold."""

    run: Path
    data: Path
    grid: Grid
    channels: Channels
    views: tuple[str, ...]
    level: float
    """Share of the readers that a voxel of the consensus needs."""
    measurement: Measurement
    options: Mapping[str, Mapping[str, Any]]
    """Settings of each method, as its stored maps were made."""
    folds: tuple[int, ...]
    other_runs: Mapping[str, Path]
    """By metric: another run whose maps are compared."""
    batch_size: int


@dataclass(frozen=True)
class Failure:
    """A part that could not be measured."""

    nodule_id: str
    method: str
    family: str
    reason: str


@dataclass(frozen=True)
class Job:
    """What is to be measured of one nodule."""

    task: Task
    fold: int
    nodule_id: str
    parts: tuple[tuple[str, str], ...]
    """Method and family, methods together."""


@dataclass(frozen=True)
class Outcome:
    """What came of a job."""

    job: Job
    failures: tuple[Failure, ...] = field(default=())


def run_job(job: Job) -> Outcome:
    """Measure one nodule and write a part for each method and family; a failure is a value."""
    try:
        nodule = _Nodule(job.task, job.fold, job.nodule_id)
        case = nodule.case()
    except LidcCdamError as error:
        return failed(job, error)
    failures = []
    for method in dict.fromkeys(method for method, _ in job.parts):
        families = [family for other, family in job.parts if other == method]
        try:
            given = nodule.map_by(method, case)
        except LidcCdamError as error:
            failures += [Failure(job.nodule_id, method, family, str(error)) for family in families]
            continue
        for family in families:
            path = part_path(job.task.run, job.fold, family, method, job.nodule_id)
            try:
                if family == GALLERY:
                    write_arrays(path, scores=given.scores[:, 0].float().cpu().numpy())
                else:
                    found = FAMILIES[family].measure(case, given)
                    write_found(path, case.model.targets, job.task.views, job.task.grid.central, found)
            except LidcCdamError as error:
                failures.append(Failure(job.nodule_id, method, family, str(error)))
    return Outcome(job, tuple(failures))


def failed(job: Job, error: LidcCdamError) -> Outcome:
    """The outcome of a job of which nothing could be measured."""
    return Outcome(job, tuple(Failure(job.nodule_id, method, family, str(error)) for method, family in job.parts))


def forget_models() -> None:
    """Let go of what this process keeps between jobs."""
    _load.cache_clear()
    _load_fresh.cache_clear()
    _readers.cache_clear()


class _Nodule:
    """One nodule of a task: its images as each model sees them, its maps by each method."""

    def __init__(self, task: Task, fold: int, nodule_id: str) -> None:
        self._task, self._fold, self._nodule_id = task, fold, nodule_id
        self._planes = _planes(task, nodule_id)

    def case(self) -> Case:
        """What every method's maps are measured by."""
        task, (model, images) = self._task, self._seen(self._task.run, self._fold)
        crop = read_crop(task.data, self._nodule_id)
        readers = readers_of(task.data, self._nodule_id)
        outlines = Outlines.of(crop, was_read(crop.hu), readers, task.views, task.level, model.image_size)
        boxes = cache(partial(self._drops, model, images))
        fresh = partial(load_fresh, task.run, self._fold, task.measurement.seed)
        return Case(model, images, outlines, task.measurement, boxes, fresh, task.batch_size)

    def map_by(self, method: str, case: Case) -> Map:
        """Maps by one method: the stored ones on the token grid, or made here on the pixels."""
        task, explainer = self._task, EXPLAINERS[method]
        if explainer.native == "token":
            scores = _stored(task, self._fold, method, self._nodule_id, case.model).to(case.images.device)
        else:
            scores = self._explain(method, task.run, self._fold, "native")
        check_maps(scores, case.model.image_size)
        again = partial(self._maps_of, method, case.images, statistics=self._statistics(task.run, self._fold))
        others = [number for number in task.folds if number != self._fold]
        return Map(
            method,
            scores,
            explainer.targeted,
            self._options(method, self._statistics(task.run, self._fold)),
            again,
            lambda: [self._explain(method, task.run, number, "token") for number in others],
            {name: partial(self._explain, method, run, self._fold, "token") for name, run in task.other_runs.items()},
        )

    def _drops(self, model: NoduleModel, images: Tensor) -> BoxDrops:
        """Outputs without boxes, from the file that an earlier method has left."""
        path = evaluation_folder(self._task.run, self._fold) / DROPS / f"{self._nodule_id}.npz"
        if path.exists():
            return read_drops(path)
        chosen = self._task.measurement
        seed = chosen.seed_of(self._nodule_id)
        found = box_drops(
            model, images, chosen.box_sides, chosen.boxes, seed, chosen.blur_sigma, chosen.fill, self._task.batch_size
        )
        write_drops(path, found)
        return found

    def _seen(self, run: Path, fold: int) -> tuple[NoduleModel, Float[Tensor, "view channel height width"]]:
        """A model and the nodule's images as it sees them."""
        model, statistics = load(run, fold)
        planes = torch.from_numpy(self._planes).to(next(model.parameters()).device)
        return model, statistics.intensity.apply(planes, model.image_size)

    def _statistics(self, run: Path, fold: int) -> Statistics:
        return load(run, fold)[1]

    def _explain(self, method: str, run: Path, fold: int, resolution: str) -> Scores:
        model, images = self._seen(run, fold)
        return self._maps_of(method, images, model, self._statistics(run, fold), resolution)

    def _maps_of(
        self, method: str, images: Tensor, model: NoduleModel, statistics: Statistics, resolution: str = "token"
    ) -> Scores:
        options = self._options(method, statistics)
        return explain(model, images, None, method, resolution, **options).movedim(0, 1)

    def _options(self, method: str, statistics: Statistics) -> dict[str, Any]:
        """The method's settings, with what it takes from the fold: the value of black, the size of a batch."""
        usual = {"batch_size": self._task.batch_size, "baseline": statistics.intensity.black}
        known = EXPLAINERS[method].options
        return {name: value for name, value in usual.items() if name in known} | dict(self._task.options[method])


def load(run: Path, fold: int) -> tuple[NoduleModel, Statistics]:
    """A fold's model, on the best device, and its statistics; a worker keeps the last few."""
    return _load(run, fold, (fold_folder(run, fold) / WEIGHTS).stat().st_mtime_ns)


@lru_cache(maxsize=KEPT)
def _load(run: Path, fold: int, changed: int) -> tuple[NoduleModel, Statistics]:
    folder = fold_folder(run, fold)
    return NoduleModel.load(folder).to(best_device()), Statistics.read(folder / STATISTICS)


def load_fresh(run: Path, fold: int, seed: int) -> NoduleModel:
    """A fold's model with every weight fresh; a worker keeps the last one."""
    return _load_fresh(run, fold, (fold_folder(run, fold) / WEIGHTS).stat().st_mtime_ns, seed)


@lru_cache(maxsize=1)
def _load_fresh(run: Path, fold: int, changed: int, seed: int) -> NoduleModel:
    return fresh_model(_load(run, fold, changed)[0], seed)


def readers_of(data: Path, nodule_id: str) -> int:
    """How many readers marked a nodule.

    Raises:
        LidcCdamError: it is not in the cohort.
    """
    readers = _readers(data)
    if nodule_id not in readers:
        raise LidcCdamError(
            f"{nodule_id} must be in the cohort of {data}, but it is not; "
            f"make {data} as it was when the run was trained."
        )
    return readers[nodule_id]


@lru_cache(maxsize=2)
def _readers(data: Path) -> dict[str, int]:
    return {str(key): int(count) for key, count in read_cohort(data)["readers"].items()}


def _planes(task: Task, nodule_id: str) -> Int16[np.ndarray, "view plane height width"]:
    source = task.channels.read(task.data, nodule_id, task.grid.side)
    return np.stack([task.channels.image(source, view, task.grid.central) for view in task.views])


def _stored(task: Task, fold: int, method: str, nodule_id: str, model: NoduleModel) -> Scores:
    """The stored maps at the central slice, which must be of this model's targets and of the run's views."""
    path = maps_path(task.run, fold, method, nodule_id)
    maps, central = read_maps(path), task.grid.central
    if maps.targets != model.targets or central not in maps.slices or maps.views != task.views:
        raise LidcCdamError(
            f"{path} must hold maps of {', '.join(model.targets)} at slice {central} of {', '.join(task.views)}, but "
            f"it holds {', '.join(maps.targets)} at {list(maps.slices)} of {', '.join(maps.views)}; delete it and run "
            f"`lidc-cdam explain` again."
        )
    return torch.from_numpy(maps.scores[:, :, maps.slices.index(central)])
