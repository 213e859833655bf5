"""The work of the `explain` step: what one call writes, and the parts of it that a worker takes."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from lidc_cdam.artifacts import Maps, fold_folder, maps_path, write_maps
from lidc_cdam.channels import Channels
from lidc_cdam.crop_files import read_crop
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain.cdam import AUTOGRAD, MOVED, method_used
from lidc_cdam.explain.inputs import in_chunks
from lidc_cdam.explain.registry import EXPLAINERS, explain
from lidc_cdam.explain.volume import Upsampling, merge_slices
from lidc_cdam.geometry import Grid
from lidc_cdam.intensity import STATISTICS, Statistics
from lidc_cdam.map_files import (
    Volume,
    crop_digest,
    explained_crop,
    volume_folder,
    volume_path,
    volume_views_path,
    write_volume,
)
from lidc_cdam.model import NoduleModel, best_device

Scores = Float[Tensor, "target view slice row column"]
Failure = tuple[str, str]
"""A nodule that has no maps, and why."""
CDAM_METHODS = ("cdam", "smooth_cdam", "integrated_cdam")
"""Estimators that are computed in closed form or with gradients, as the model allows."""


@dataclass(frozen=True)
class Task(ABC):
    """What to explain and what to write, the same for every fold."""

    run: Path
    data: Path
    out: Path
    method: str
    targets: tuple[str, ...]
    """Keys, in the model's order."""
    views: tuple[str, ...]
    slices: tuple[int, ...]
    grid: Grid
    """Of the cubes in `data`."""
    channels: Channels
    """Of the run's images."""
    options: Mapping[str, Any]
    batch_size: int
    claim: Mapping[str, Any]
    """The settings that decide the files' content, for the folder's provenance."""

    kind: ClassVar[str]
    """What is written, in one word."""
    stage: ClassVar[str]
    """Name of the step in the folder's provenance, before the method's."""
    folder: ClassVar[str]
    """Folder under `fold_k` that holds what is written."""

    def place(self, fold: int | str) -> Path:
        """Folder of a fold's files."""
        return self.out / f"fold_{fold}" / self.folder / self.method

    @abstractmethod
    def files(self, fold: int, nodule_id: str) -> list[Path]:
        """The files that a nodule must have."""

    @abstractmethod
    def arrays(self, fold: int, nodule_id: str) -> list[Path]:
        """The files that a nodule has, of any target, which name the crop that they were made from."""

    @abstractmethod
    def write(self, fold: int, nodule_id: str, scores: Scores) -> None:
        """Write a nodule's files, or those that are missing."""

    def missing(self, fold: int, nodule_ids: Sequence[str]) -> list[str]:
        """The nodules that lack a file."""
        return [key for key in nodule_ids if not all(path.exists() for path in self.files(fold, key))]

    def check_crops(self, fold: int, nodule_ids: Sequence[str]) -> None:
        """Refuse to go on where files were made from other crops than the data folder holds now.

        Raises:
            LidcCdamError: the first such nodule.
        """
        for nodule_id in nodule_ids:
            now = crop_digest(self.data, nodule_id)
            for path in self.arrays(fold, nodule_id):
                if now and explained_crop(path) not in (None, now):
                    raise LidcCdamError(
                        f"{path} explains another crop of {nodule_id} than {self.data} holds now; delete "
                        f"{self.place('*')} to explain the new crops, or choose another --out."
                    )


@dataclass(frozen=True)
class MapTask(Task):
    """Maps of some slices on the token grid."""

    kind = "maps"
    stage = "explain"
    folder = "maps"

    def files(self, fold: int, nodule_id: str) -> list[Path]:
        """`<nodule_id>.npz`."""
        return [maps_path(self.out, fold, self.method, nodule_id)]

    def arrays(self, fold: int, nodule_id: str) -> list[Path]:
        """The same, if it is there."""
        return [path for path in self.files(fold, nodule_id) if path.exists()]

    def write(self, fold: int, nodule_id: str, scores: Scores) -> None:
        """Write all targets into one file."""
        digest = crop_digest(self.data, nodule_id) or ""
        maps = Maps(scores.numpy(), self.targets, self.views, self.slices, digest)
        write_maps(maps_path(self.out, fold, self.method, nodule_id), maps)


@dataclass(frozen=True)
class VolumeTask(Task):
    """Volumes of all slices on the crop's grid; each target has its own files, so that targets can be added."""

    upsampling: Upsampling = "nearest"

    kind = "volumes"
    stage = "explain --volume"
    folder = "volumes"

    def files(self, fold: int, nodule_id: str) -> list[Path]:
        """Two per target: one volume per view, and their mean."""
        folder = volume_folder(self.out, fold, self.method, nodule_id)
        return [path(folder, target) for target in self.targets for path in (volume_views_path, volume_path)]

    def arrays(self, fold: int, nodule_id: str) -> list[Path]:
        """The volumes per view that are there, also of targets that an earlier call asked for."""
        return sorted(volume_folder(self.out, fold, self.method, nodule_id).glob("[!.]*.npz"))

    @property
    def bytes_per_nodule(self) -> int:
        """Most that a nodule's files take: float32 on the crop's grid, for each target every view and their mean."""
        return 4 * len(self.slices) ** 3 * len(self.targets) * (len(self.views) + 1)

    def write(self, fold: int, nodule_id: str, scores: Scores) -> None:
        """Write the targets that are missing."""
        folder = volume_folder(self.out, fold, self.method, nodule_id)
        digest, crop = crop_digest(self.data, nodule_id) or "", read_crop(self.data, nodule_id)
        merged = merge_slices(scores.numpy(), self.views, self.upsampling)
        for target, volumes in zip(self.targets, merged, strict=True):
            if not (volume_path(folder, target).exists() and volume_views_path(folder, target).exists()):
                note = f"{self.method} scores of {target}, raw; research use only"
                volume = Volume(volumes, self.views, crop.origin_mm, crop.spacing_mm, digest)
                write_volume(folder, target, volume, note)


@dataclass(frozen=True)
class Outcome:
    """What came of a job."""

    fold: int
    failures: tuple[Failure, ...]
    """Nodules that could not be read."""
    method_used: str = ""
    """How the scores were computed, for an estimator that has two ways; empty if none were."""


@dataclass(frozen=True)
class Job:
    """Nodules of one fold that are explained in one go."""

    task: Task
    fold: int
    nodule_ids: tuple[str, ...]
    model_digest: str
    """Of the fold's files, so that a worker keeps no model that has been replaced."""


def jobs_of(task: Task, fold: int, nodule_ids: Sequence[str], model_digest: str) -> Iterator[Job]:
    """A fold's nodules in parts of about `batch_size` images, without the parts that have all their files.

    The parts depend neither on the number of workers nor on where an earlier call stopped: the same images meet in one
    batch, and the same bytes come out.
    """
    step = max(1, task.batch_size // (len(task.views) * len(task.slices)))
    for start in range(0, len(nodule_ids), step):
        part = tuple(nodule_ids[start : start + step])
        if task.missing(fold, part):
            yield Job(task, fold, part, model_digest)


def run_job(job: Job) -> Outcome:
    """Explain a job's nodules and write what is missing."""
    task, fold = job.task, job.fold
    missing = task.missing(fold, job.nodule_ids)
    images: dict[str, Tensor] = {}
    failures: list[Failure] = []
    for nodule_id in job.nodule_ids:
        try:
            images[nodule_id] = _images_hu(task, nodule_id)
        except LidcCdamError as error:
            if nodule_id in missing:
                failures.append((nodule_id, str(error)))
    if not any(nodule_id in images for nodule_id in missing):
        return Outcome(fold, tuple(failures))
    model, statistics = load_fold(task.run, fold, job.model_digest)
    scores = _explain(task, model, statistics, torch.cat(list(images.values())))
    shape = (len(images), len(task.views), len(task.slices), *scores.shape[1:])
    for nodule_id, nodule in zip(images, scores.reshape(shape).movedim(3, 1), strict=True):
        if nodule_id in missing:
            task.write(fold, nodule_id, nodule)
    return Outcome(fold, tuple(failures), form_used(task, fold, job.model_digest))


@lru_cache(maxsize=1)
def load_fold(run: Path, fold: int, digest: str) -> tuple[NoduleModel, Statistics]:
    """A fold's model, on the best device, and its statistics; a worker keeps the last one.

    Args:
        run: folder of the run.
        fold: its number.
        digest: `model_digest` of its files, which tells a new model from the one that is kept.
    """
    folder = fold_folder(run, fold)
    model = NoduleModel.load(folder).to(best_device())
    return model, Statistics.read(folder / STATISTICS)


@lru_cache(maxsize=1)
def form_of_fold(run: Path, fold: int, digest: str) -> str:
    """How CDAM is computed on the model of `load_fold`."""
    return method_used(load_fold(run, fold, digest)[0])


def forget_fold() -> None:
    """Let go of what this process keeps between jobs."""
    load_fold.cache_clear()
    form_of_fold.cache_clear()


def form_used(task: Task, fold: int, digest: str) -> str:
    """How a task's scores are computed on a fold's model; empty for an estimator that has one way."""
    if task.method not in CDAM_METHODS:
        return ""
    if task.options.get("perturb", MOVED[0]) != MOVED[0]:
        return AUTOGRAD
    return form_of_fold(task.run, fold, digest)


def _images_hu(task: Task, nodule_id: str) -> Float[Tensor, "image plane height width"]:
    """The nodule's images, as planes: the views, and in each of them the slices."""
    source = task.channels.read(task.data, nodule_id, task.grid.side)
    images = [task.channels.image(source, view, index) for view in task.views for index in task.slices]
    return torch.from_numpy(np.stack(images)).float()


def _explain(
    task: Task, model: NoduleModel, statistics: Statistics, images_hu: Float[Tensor, "image plane height width"]
) -> Float32[Tensor, "image target row column"]:
    device = next(model.parameters()).device
    options = dict(task.options)
    defaults = {"batch_size": task.batch_size, "baseline": statistics.intensity.black}
    for name in set(defaults) & set(EXPLAINERS[task.method].options):
        options.setdefault(name, defaults[name])
    parts = []
    for chunk in in_chunks(images_hu, task.batch_size):
        images = statistics.intensity.apply(chunk.to(device), model.image_size)
        parts.append(explain(model, images, task.targets, task.method, **options).float().cpu())
    return torch.cat(parts)
