"""Cubes and labels of a folder's nodules in memory, and the images that one fold trains and validates on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from jaxtyping import Float32, Float64, Int16
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from lidc_cdam.artifacts import Fold, read_dataset
from lidc_cdam.channels import SLICE, Channels, Source
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.geometry import USUAL, Grid, central_index, central_slices, take_view
from lidc_cdam.intensity import FeatureScaling, Intensity, Scaling, Statistics
from lidc_cdam.kernel import KernelHead
from lidc_cdam.progress import track
from lidc_cdam.vocabulary import MALIGNANCY, Target
from training.augment import ViewDraw, apply_draw, draw_epoch, order_epoch
from training.devices import place, processes
from training.kernel import fit_kernel
from training.radiomics import read_features
from training.settings import PLAIN, Shown, TrainingSettings


@dataclass(frozen=True)
class Cubes:
    """Nodules in memory, and what their images show of them."""

    sources: Mapping[str, Source]
    """By `nodule_id`: HU, and the consensus mask where it is shown."""
    channels: Channels = SLICE
    features: pd.DataFrame | None = None
    """Numbers beside the image (radiomics) by `nodule_id`, where the model reads some."""

    def evaluation_image(self, nodule_id: str, view: str) -> Int16[np.ndarray, "plane row column"]:
        """A nodule's image at the central slice."""
        source = self.sources[nodule_id]
        return self.channels.image(source, view, central_index(source.shape[1]))

    def scaled_features(
        self, nodule_ids: Sequence[str], scaling: FeatureScaling | None
    ) -> Float32[np.ndarray, "nodule feature"]:
        """What the model reads beside the image; no column where it reads nothing."""
        if self.features is None or scaling is None:
            return np.zeros((len(nodule_ids), 0), dtype=np.float32)
        return scaling.apply(self.features.loc[list(nodule_ids), list(scaling.names)].to_numpy(dtype=np.float64))


def read_cubes(data: Path, nodule_ids: Sequence[str], shown: Shown = PLAIN, cache: Path | None = None) -> Cubes:
    """Nodules' cubes; 64 KiB each for 32 voxels a side, so that the whole of LIDC-IDRI fits in memory.

    Args:
        data: folder of crops.
        nodule_ids: which.
        shown: what a model is shown of them.
        cache: folder that keeps radiomics; the folder of crops by default.

    Raises:
        LidcCdamError: a crop is missing or damaged, or has another side than the folder's `dataset.json` says.
    """
    side = read_dataset(data).grid.side
    sources = {key: shown.channels.read(data, key, side) for key in track(nodule_ids, "Reading crops")}
    features = read_features(data, nodule_ids, cache or data) if shown.radiomics else None
    return Cubes(sources, shown.channels, features)


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
            f"make the cohort again with `lidc-cdam cohort`, then run `lidc-cdam split` again."
        )
    return values


def evaluation_images(
    cubes: Cubes, nodule_ids: Sequence[str], views: Sequence[str]
) -> Int16[np.ndarray, "nodule view plane row column"]:
    """The views at the central slice that evaluation averages over: HU, and a mask (0 or 1) where it is shown."""
    return np.stack([np.stack([cubes.evaluation_image(key, view) for view in views]) for key in nodule_ids])


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
        cubes: at least the training nodules.
        train: the training nodules.
        truth: their values, in the same order.
        targets: columns of `truth`.
        views: views that training draws from.
        grid: of the cubes.
    """
    slices = central_slices(grid.side)
    images = [take_view(cubes.sources[key][0], view, index) for key in train for view in views for index in slices]
    keys = tuple(target.key for target in targets)
    features = cubes.features
    beside = (
        None
        if features is None
        else FeatureScaling.fit(list(map(str, features.columns)), features.loc[list(train)].to_numpy())
    )
    return Statistics(Intensity.fit(np.stack(images)), Scaling.fit(keys, truth), grid, beside)


@dataclass(frozen=True)
class Part:
    """One role of a fold: nodules and what the model should answer."""

    nodule_ids: tuple[str, ...]
    wanted: Float32[np.ndarray, "nodule target"]
    """On the model's own scale (label 0 / 1, z-score)."""
    features: Float32[np.ndarray, "nodule feature"]
    """Numbers beside the image; perhaps none. In training beside a kernel, what that answers without the nodule's
    patient."""


Example = tuple[Tensor, Tensor, Tensor]
"""HU image or images, numbers beside it, what to answer."""


class DrawnImages(Dataset[Example]):
    """The images of one epoch: one draw per nodule."""

    def __init__(self, cubes: Cubes, part: Part, draws: Sequence[ViewDraw]) -> None:
        self._cubes = cubes
        self._part = part
        self._draws = draws

    def __len__(self) -> int:
        return len(self._part.nodule_ids)

    def __getitem__(self, index: int) -> Example:
        """Planes [plane, row, column], numbers, what to answer."""
        part, draw = self._part, self._draws[index]
        source = self._cubes.sources[part.nodule_ids[index]]
        channels = self._cubes.channels
        image = apply_draw(channels.image(source, draw.view, draw.slice_index), draw, channels.slices)
        parts = (np.ascontiguousarray(image), part.features[index], part.wanted[index])
        return tuple(torch.from_numpy(array) for array in parts)  # type: ignore[return-value]


class EvaluationImages(Dataset[Example]):
    """All views of each nodule at the central slice."""

    def __init__(self, cubes: Cubes, part: Part, views: Sequence[str]) -> None:
        self._images = torch.from_numpy(evaluation_images(cubes, part.nodule_ids, views))
        self._features, self._wanted = torch.from_numpy(part.features), torch.from_numpy(part.wanted)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        """Planes [view, plane, row, column], numbers, what to answer."""
        return self._images[index], self._features[index], self._wanted[index]


def batch_starts(count: int, size: int) -> range:
    """Where batches begin; nodules that fill less than half a batch at the end wait for the next epoch's order."""
    return range(0, max(1, count - (size - 1) // 2), size)


def _dealt(
    truth: Float64[np.ndarray, "nodule target"], settings: TrainingSettings
) -> Float64[np.ndarray, "nodule target"]:
    """The values as they are or, with `permute_labels`, each nodule's given to another one."""
    if not settings.permute_labels:
        return truth
    return np.random.default_rng(settings.seed).permutation(truth)


class FoldData(pl.LightningDataModule):
    """Training and validation images of one fold; the test nodules are not in it."""

    def __init__(
        self, cubes: Cubes, cohort: pd.DataFrame, fold: Fold, settings: TrainingSettings, grid: Grid = USUAL
    ) -> None:
        super().__init__()
        targets = settings.resolved_targets
        truth = _dealt(read_truth(cohort, fold.train, targets, settings.indeterminate), settings)
        self.statistics = fit_statistics(cubes, fold.train, truth, targets, settings.views, grid)
        self._cubes = cubes
        self._settings = settings
        self.train = self._part(fold.train, truth)
        self.val = self._part(fold.val, _dealt(read_truth(cohort, fold.val, targets), settings))
        self.kernel: KernelHead | None = None
        """The second head that training stands on, where it is fitted beforehand."""
        self.final_kernel: KernelHead | None = None
        """The same, fitted on the validation nodules too: for use once the epoch is chosen."""
        if settings.side_head == "kernel":
            self._fit_kernels(cohort["patient_id"])

    def _part(self, nodule_ids: Sequence[str], truth: Float64[np.ndarray, "nodule target"]) -> Part:
        wanted = self.statistics.scaling.to_model(truth).astype(np.float32)
        features = self._cubes.scaled_features(nodule_ids, self.statistics.features)
        return Part(tuple(nodule_ids), wanted, features)

    def check_shares(self, devices: int) -> None:
        """Every batch, and the validation nodules, must have an image for each of several devices.

        Raises:
            LidcCdamError: there are too many devices.
        """
        count, size = len(self.train.nodule_ids), self._settings.batch_size
        least = min(*(min(size, count - start) for start in self._starts()), len(self.val.nodule_ids))
        if devices > least:
            raise LidcCdamError(
                f"--devices must be at most {least}, the images of this fold's smallest batch; got {devices}."
            )

    def _fit_kernels(self, patient_of: pd.Series) -> None:
        """Fit the head that training stands on, and the one that also learns from the validation nodules."""
        parts = (self.train, self.val)
        keys = self.statistics.scaling.keys
        features, wanted = (np.concatenate([getattr(part, name) for part in parts]) for name in ("features", "wanted"))
        patients = patient_of[[*self.train.nodule_ids, *self.val.nodule_ids]].tolist()
        count = len(self.train.nodule_ids)
        known = fit_kernel(self.train.features, self.train.wanted, patients[:count], keys)
        self.kernel, self.final_kernel = known.head, fit_kernel(features, wanted, patients, keys).head
        self.train = replace(self.train, features=known.held_out)

    @property
    def batches_per_epoch(self) -> int:
        """Optimiser steps of one epoch."""
        return len(self._starts())

    def _starts(self) -> range:
        return batch_starts(len(self.train.nodule_ids), self._settings.batch_size)

    def train_dataloader(self) -> "DataLoader[Example]":
        """This epoch's images in this epoch's order; Lightning asks again before each epoch."""
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        chosen, count = self._settings, len(self.train.nodule_ids)
        draws = draw_epoch(chosen.seed, epoch, count, chosen.views, chosen.variation, self.statistics.grid.side)
        order = order_epoch(chosen.seed, epoch, count)
        batches = [order[start : start + chosen.batch_size] for start in self._starts()]
        shares = [batch[place() :: processes()].tolist() for batch in batches]
        return DataLoader(DrawnImages(self._cubes, self.train, draws), batch_sampler=shares)

    def val_dataloader(self) -> "DataLoader[Example]":
        """All views of the validation nodules, in the split's order; of several processes, each has its share."""
        images = EvaluationImages(self._cubes, self.val, self._settings.views)
        share = Subset(images, range(place(), len(images), processes()))
        return DataLoader(share, self._settings.batch_size)
