"""A nodule-native start: stage `pretrain` trains a backbone by DINO on crops without their labels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int16
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lidc_cdam import provenance
from lidc_cdam.artifacts import SPLITS, read_cohort, read_dataset, read_splits
from lidc_cdam.backbones import build_backbone
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import replacing, write_json
from lidc_cdam.geometry import VIEWS, central_slices, take_view
from lidc_cdam.intensity import Intensity
from lidc_cdam.progress import say
from training.augment import order_epoch
from training.data import Cubes, batch_starts, read_cubes
from training.dino import GLOBAL_CROPS, DinoTask
from training.lightning import EpochBar, build_trainer, contained, enough_memory, quiet
from training.run import check_splits

STAGE = "pretrain"
BACKBONE, HISTORY, CHECKPOINT = "backbone.safetensors", "history.json", "last.ckpt"
CROPS, INITIAL = 5, 6
"""Streams of random numbers: crops of one epoch, initial weights (the others are in `augment`, `module`, `fit`)."""
LARGE, SMALL = (0.5, 1.0), (0.15, 0.5)
"""Share of an image's area that a large and a small crop cover."""


@dataclass(frozen=True)
class PretrainSettings:
    """What learns, from which crops, for how long.

    Raises:
        LidcCdamError: a value lies outside its range.
    """

    backbone: str = "tiny"
    """Name of a vision transformer; docs/backbones.md lists them, and so does the error for a wrong one."""
    weights: str | None = None
    """Start from `hub` (the published weights), from a checkpoint file, or (none) from random weights."""
    image_size: int | None = None
    """Side of a large crop in pixels; none takes the backbone's own. Small crops have half of it."""
    views: list[str] = field(default_factory=lambda: list(VIEWS))
    """Views to draw from; axial alone for packs without margin across slices."""
    small_crops: int = 4
    """Small crops of each image beside the two large ones."""
    epochs: int = 100
    """Passes over the nodules; each draws one slice per nodule."""
    batch_size: int = 64
    """Images per step, each with all its crops."""
    max_lr: float = 5e-4
    """Highest learning rate (cosine, warm-up over a tenth)."""
    weight_decay: float = 0.04
    """Weight decay of matrices."""
    prototypes: int = 1024
    """Outputs of the projection head."""
    momentum: float = 0.99
    """Share of the teacher that stays in a step; rises to 1 over the training."""
    student_temperature: float = 0.1
    """Softmax temperature of the student."""
    teacher_temperature: float = 0.04
    """Softmax temperature of the teacher."""
    seed: int = 0
    """Seed of the initial weights, the crops and the order."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """Arithmetic of training: auto takes bf16-mixed on a GPU that has it, else 32-true."""

    def __post_init__(self) -> None:
        if not self.views or not set(self.views) <= set(VIEWS):
            got = ", ".join(map(repr, self.views)) or "none"
            raise LidcCdamError(f"--views must name at least one of {', '.join(VIEWS)}; got {got}.")
        for name, lowest in {"small_crops": 0, "epochs": 1, "batch_size": 2, "prototypes": 2, "seed": 0}.items():
            if getattr(self, name) < lowest:
                raise LidcCdamError(f"--{name.replace('_', '-')} must be at least {lowest}; got {getattr(self, name)}.")
        for name in ("max_lr", "student_temperature", "teacher_temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise LidcCdamError(f"--{name.replace('_', '-')} must be a number above 0; got {getattr(self, name)}.")
        if not 0 <= self.momentum < 1:
            raise LidcCdamError(f"--momentum must be at least 0 and below 1; got {self.momentum}.")

    @property
    def clip_gradient(self) -> float:
        """Largest norm of a step's gradient (the paper's)."""
        return 3.0


def pretrain(
    data: Path, out: Path, settings: PretrainSettings, fold: int | None = None, splits: Path | None = None
) -> None:
    """Train a backbone on crops without their labels, as a start for `train` and `crossval`.

    Writes OUT/backbone.safetensors (the teacher's), for `--weights OUT/backbone.safetensors`, and the history. With
    --fold, no image of that fold's validation and test patients is seen; without it all crops are, which a result must
    state: no label is used, but images of test patients are.

    Args:
        data: Folder of crops.
        out: Folder to write.
        settings: What learns, from which crops, for how long.
        fold: Leave out the validation and test patients of this fold, counted from 0; none uses all crops.
        splits: File of folds; DATA/splits.json by default.

    Raises:
        LidcCdamError: an input is missing or does not fit, the training diverged, or `out` holds another configuration.
    """
    names = _nodules(data, fold, splits)
    record = provenance.begin(out, STAGE, asdict(settings), {"crops": read_dataset(data).digest(names)})
    if record.finished and (out / BACKBONE).exists():
        say(f"The backbone is trained already: {out / BACKBONE}.")
        return
    history = _train(read_cubes(data, names), names, out, settings)
    last = history[-1]
    record.finish(nodules=len(names), patients_left_out=fold is not None, **last)
    (out / CHECKPOINT).unlink(missing_ok=True)
    say(
        f"{len(names)} nodules, epochs: {len(history)}; loss {last['loss']:.3f}, spread of images {last['spread']:.3f}."
    )
    say(f"Start a training from it with --backbone {settings.backbone} --weights {out / BACKBONE}.")


def _nodules(data: Path, fold: int | None, splits: Path | None) -> list[str]:
    """The extracted nodules, without those of a fold's validation and test patients."""
    names = list(read_dataset(data).nodules)
    if fold is None:
        return names
    place, cohort = splits or data / SPLITS, read_cohort(data)
    divided = read_splits(place)
    # Folds of another cohort would hide the wrong patients.
    check_splits(place, divided, data, cohort)
    folds = divided.folds
    if not 0 <= fold < len(folds):
        raise LidcCdamError(f"--fold must be one of 0 to {len(folds) - 1}, the folds of the splits; got {fold}.")
    patients = cohort["patient_id"]
    hidden = set(patients[[*folds[fold].val, *folds[fold].test]])
    kept = [name for name in names if patients[name] not in hidden]
    if not kept:
        raise LidcCdamError(f"--fold {fold} must leave nodules to train on, but every patient validates or tests.")
    return kept


def _train(cubes: Cubes, names: Sequence[str], out: Path, settings: PretrainSettings) -> list[dict[str, float]]:
    with quiet(), contained(), enough_memory("Pretraining", settings.batch_size):
        torch.manual_seed(int(np.random.SeedSequence((settings.seed, INITIAL)).generate_state(1)[0]))
        backbone = build_backbone(settings.backbone, settings.weights, settings.image_size)
        crops = CropData(cubes, names, settings, backbone.patch_embed.img_size, backbone.patch_embed.patch_size)
        task = DinoTask(backbone, settings, settings.epochs * crops.batches_per_epoch)
        keeper = _Keeper(out / CHECKPOINT)
        trainer = build_trainer(settings, [keeper, EpochBar("Pretraining")], out)
        trainer.fit(task, datamodule=crops, ckpt_path=out / CHECKPOINT if (out / CHECKPOINT).exists() else None)
    with replacing(out / BACKBONE) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in task.teacher.backbone.state_dict().items()}, temporary)
    write_json(out / HISTORY, keeper.history)
    return keeper.history


@dataclass(frozen=True)
class CropDraw:
    """One crop of an image: a square, turned, mirrored, and its grey values changed."""

    share: float
    """Of the image's area."""
    place: tuple[float, float]
    """Of the free room above and to the left, 0 to 1."""
    quarter_turns: int
    mirrored: bool
    gain: float
    offset: float
    """Of the normalised grey value."""


def draw_crop(generator: np.random.Generator, shares: tuple[float, float]) -> CropDraw:
    """Draw one crop; always eight numbers."""
    numbers = generator.random(8)
    return CropDraw(
        share=float(shares[0] + (shares[1] - shares[0]) * numbers[0]),
        place=(float(numbers[1]), float(numbers[2])),
        quarter_turns=int(numbers[3] * 4),
        mirrored=bool(numbers[4] < 0.5),
        gain=float(0.8 + 0.4 * numbers[5]),
        offset=float(0.4 * numbers[6] - 0.2),
    )


def apply_crop(image: Float32[Tensor, "3 row column"], draw: CropDraw, size: int) -> Float32[Tensor, "3 size size"]:
    """The drawn crop of a normalised square image, resized to `size` pixels (bilinear, antialiased)."""
    full = image.shape[-1]
    side = max(2, round(full * math.sqrt(draw.share)))
    top, left = (round(place * (full - side)) for place in draw.place)
    part = image[:, top : top + side, left : left + side]
    part = F.interpolate(part[None], (size, size), mode="bilinear", align_corners=False, antialias=True)[0]
    turned = torch.rot90(part.flip(-1) if draw.mirrored else part, draw.quarter_turns, (-2, -1))
    return turned * draw.gain + draw.offset


class CropImages(Dataset[list[Tensor]]):
    """The crops of one epoch: two large ones of each nodule's drawn slice, then small ones."""

    def __init__(
        self, images: Float32[Tensor, "nodule 3 row column"], draws: Sequence[Sequence[CropDraw]], size: int, small: int
    ) -> None:
        self._images, self._draws = images, draws
        self._sizes = [size] * GLOBAL_CROPS + [small] * (len(draws[0]) - GLOBAL_CROPS)

    def __len__(self) -> int:
        return len(self._draws)

    def __getitem__(self, index: int) -> list[Tensor]:
        """One nodule's crops, each [3, size, size]."""
        drawn = zip(self._draws[index], self._sizes, strict=True)
        return [apply_crop(self._images[index], draw, size) for draw, size in drawn]


class CropData(pl.LightningDataModule):
    """Crops of all nodules, drawn anew in each epoch from (seed, epoch, nodule) alone."""

    def __init__(
        self,
        cubes: Cubes,
        names: Sequence[str],
        settings: PretrainSettings,
        image_size: tuple[int, int],
        patch_size: tuple[int, int],
    ) -> None:
        super().__init__()
        self._cubes, self._names, self._settings = cubes, names, settings
        self._size = image_size[0]
        # Half the side, cut to whole patches.
        self._small = max(1, self._size // 2 // patch_size[0]) * patch_size[0]
        slices = [
            take_view(cubes.sources[name][0], view, index)
            for name in names
            for view in settings.views
            for index in central_slices(len(cubes.sources[name][0]))
        ]
        self._intensity = Intensity.fit(np.stack(slices))

    @property
    def batches_per_epoch(self) -> int:
        """Optimiser steps of one epoch."""
        return len(self._starts())

    def _starts(self) -> range:
        return batch_starts(len(self._names), self._settings.batch_size)

    def train_dataloader(self) -> "DataLoader[list[Tensor]]":
        """This epoch's crops in this epoch's order."""
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        chosen = self._settings
        images, draws = [], []
        for index, name in enumerate(self._names):
            generator = np.random.default_rng((chosen.seed, epoch, index, CROPS))
            images.append(self._slice(self._cubes.sources[name][0], generator))
            shares = [LARGE] * GLOBAL_CROPS + [SMALL] * chosen.small_crops
            draws.append([draw_crop(generator, share) for share in shares])
        stacked = self._intensity.apply(torch.from_numpy(np.stack(images)), images[0].shape)
        order = order_epoch(chosen.seed, epoch, len(self._names))
        batches = [order[start : start + chosen.batch_size].tolist() for start in self._starts()]
        return DataLoader(CropImages(stacked, draws, self._size, self._small), batch_sampler=batches)

    def _slice(self, cube: Int16[np.ndarray, "slice row column"], generator: np.random.Generator) -> np.ndarray:
        view = self._settings.views[int(generator.random() * len(self._settings.views))]
        slices = central_slices(len(cube))
        return np.ascontiguousarray(take_view(cube, view, slices[int(generator.random() * len(slices))]))


class _Keeper(pl.Callback):
    """Keeps the history, and writes all that going on needs after each epoch."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self.history: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """What goes into the checkpoint."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up what the checkpoint held."""
        self.history = list(state_dict["history"])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the epoch and write the checkpoint."""
        found = {name: float(trainer.callback_metrics[name]) for name in ("loss", "spread")}
        if not math.isfinite(found["loss"]):
            raise LidcCdamError(
                f"Pretraining must have a finite loss, but epoch {trainer.current_epoch} has none; lower --max-lr."
            )
        self.history.append({"epoch": trainer.current_epoch, **found})
        trainer.save_checkpoint(self._path)
