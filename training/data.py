"""Cubes and labels of a folder's nodules in memory, and the images that one fold trains and validates on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from jaxtyping import Float32, Float64, Int16
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lidc_cdam.artifacts import Fold, read_dataset
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.geometry import USUAL, Grid, central_index, central_slices, take_view
from lidc_cdam.intensity import Intensity, Scaling, Statistics, read_cube
from lidc_cdam.progress import track
from lidc_cdam.vocabulary import MALIGNANCY, Target
from training.augment import ViewDraw, apply_view, draw_epoch, order_epoch
from training.settings import TrainingSettings

Cubes = Mapping[str, Int16[np.ndarray, "slice row column"]]
"""HU cubes by `nodule_id`."""


def read_cubes(data: Path, nodule_ids: Sequence[str]) -> Cubes:
    """The nodules' HU cubes; 64 KiB each for 32 voxels a side, so that the whole of LIDC-IDRI fits in memory.

    Raises:
        LidcCdamError: a crop is missing or damaged, or has another side than the folder's `dataset.json` says.
    """
    side = read_dataset(data).grid.side
    return {nodule_id: read_cube(data, nodule_id, side) for nodule_id in track(nodule_ids, "Reading crops")}


def column_of(target: Target) -> str:
    """The cohort's column that holds a target's truth."""
    return "label" if target is MALIGNANCY else target.key


def read_truth(
    cohort: pd.DataFrame, nodule_ids: Sequence[str], targets: Sequence[Target], undecided: bool = False
) -> Float64[np.ndarray, "nodule target"]:
    """The readers' values (label 0 / 1, mean rating, mm) of nodules.

    Args:
        cohort: the cohort table, indexed by nodule.
        nodule_ids: which.
        targets: columns of the result.
        undecided: whether a nodule may have no malignancy label, which is then NaN.

    Raises:
        LidcCdamError: a nodule is not in the cohort or has no value.
    """
    missing = [nodule_id for nodule_id in nodule_ids if nodule_id not in cohort.index]
    if missing:
        raise LidcCdamError(
            f"The splits must name nodules of the cohort, but {missing[0]} is not in it; run `lidc-cdam split` again."
        )
    values = cohort.loc[list(nodule_ids), [column_of(target) for target in targets]].to_numpy(dtype=np.float64)
    wrong = np.isnan(values)
    if undecided:
        wrong &= [target is not MALIGNANCY for target in targets]
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise LidcCdamError(
            f"Every nodule of the splits must have a value for {targets[column].key}, but {nodule_ids[row]} has none; "
            f"run `lidc-cdam split` again."
        )
    return values


def evaluation_images(
    cubes: Cubes, nodule_ids: Sequence[str], views: Sequence[str]
) -> Int16[np.ndarray, "nodule view row column"]:
    """The views at the central slice that evaluation averages over, HU."""
    chosen = (cubes[key] for key in nodule_ids)
    return np.stack([np.stack([take_view(cube, view, central_index(len(cube))) for view in views]) for cube in chosen])


def fit_statistics(
    cubes: Cubes,
    train: Sequence[str],
    truth: Float64[np.ndarray, "nodule target"],
    targets: Sequence[Target],
    views: Sequence[str],
    grid: Grid = USUAL,
) -> Statistics:
    """Grey values and label scales of a fold's training part, and of nothing else.

    Args:
        cubes: HU cubes by nodule.
        train: the training nodules.
        truth: their values, in the same order.
        targets: columns of `truth`.
        views: views that training draws from.
        grid: of the cubes.
    """
    slices = central_slices(grid.side)
    images = [take_view(cubes[key], view, index) for key in train for view in views for index in slices]
    keys = tuple(target.key for target in targets)
    return Statistics(Intensity.fit(np.stack(images)), Scaling.fit(keys, truth), grid)


@dataclass(frozen=True)
class Part:
    """One role of a fold: nodules and what the model should answer."""

    nodule_ids: tuple[str, ...]
    wanted: Float32[np.ndarray, "nodule target"]
    """On the model's own scale (label 0 / 1, z-score)."""


class DrawnImages(Dataset[tuple[Tensor, Tensor]]):
    """The images of one epoch: one draw per nodule."""

    def __init__(self, cubes: Cubes, part: Part, draws: Sequence[ViewDraw]) -> None:
        self._cubes = cubes
        self._part = part
        self._draws = draws

    def __len__(self) -> int:
        return len(self._part.nodule_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """HU image [row, column] and what to answer."""
        image = apply_view(self._cubes[self._part.nodule_ids[index]], self._draws[index])
        return torch.from_numpy(np.ascontiguousarray(image)), torch.from_numpy(self._part.wanted[index])


class EvaluationImages(Dataset[tuple[Tensor, Tensor]]):
    """All views of each nodule at the central slice."""

    def __init__(self, cubes: Cubes, part: Part, views: Sequence[str]) -> None:
        self._images = torch.from_numpy(evaluation_images(cubes, part.nodule_ids, views))
        self._wanted = torch.from_numpy(part.wanted)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """HU images [view, row, column] and what to answer."""
        return self._images[index], self._wanted[index]


class FoldData(pl.LightningDataModule):
    """Training and validation images of one fold; the test nodules are not in it."""

    def __init__(
        self, cubes: Cubes, cohort: pd.DataFrame, fold: Fold, settings: TrainingSettings, grid: Grid = USUAL
    ) -> None:
        super().__init__()
        targets = settings.resolved_targets
        truth = read_truth(cohort, fold.train, targets, settings.indeterminate)
        self.statistics = fit_statistics(cubes, fold.train, truth, targets, settings.views, grid)
        scaling = self.statistics.scaling
        self.train = Part(fold.train, scaling.to_model(truth).astype(np.float32))
        self.val = Part(fold.val, scaling.to_model(read_truth(cohort, fold.val, targets)).astype(np.float32))
        self._cubes = cubes
        self._settings = settings

    @property
    def batches_per_epoch(self) -> int:
        """Optimiser steps of one epoch."""
        return len(self._starts())

    def _starts(self) -> range:
        """Where batches begin; nodules that fill less than half a batch at the end wait for the next epoch's order."""
        count, size = len(self.train.nodule_ids), self._settings.batch_size
        return range(0, max(1, count - (size - 1) // 2), size)

    def train_dataloader(self) -> "DataLoader[tuple[Tensor, Tensor]]":
        """This epoch's images in this epoch's order; Lightning asks again before each epoch."""
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        chosen, count = self._settings, len(self.train.nodule_ids)
        draws = draw_epoch(chosen.seed, epoch, count, chosen.views, chosen.flips, self.statistics.grid.side)
        order = order_epoch(chosen.seed, epoch, count)
        batches = [order[start : start + chosen.batch_size].tolist() for start in self._starts()]
        return DataLoader(DrawnImages(self._cubes, self.train, draws), batch_sampler=batches)

    def val_dataloader(self) -> "DataLoader[tuple[Tensor, Tensor]]":
        """All views of the validation nodules, in the split's order."""
        return DataLoader(EvaluationImages(self._cubes, self.val, self._settings.views), self._settings.batch_size)
