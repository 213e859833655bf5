"""One fold's training as Lightning sees it: loss, validation, optimiser."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from lidc_cdam.intensity import Intensity
from lidc_cdam.model import NoduleModel
from lidc_cdam.vocabulary import MALIGNANCY
from training.devices import mean_over_processes, place, rows_of_all, sum_over_processes
from training.inference import mean_over_views
from training.schedules import build_optimiser
from training.settings import TrainingSettings

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"huber": F.huber_loss, "mse": F.mse_loss}
DROPOUT = 3
"""Stream of random numbers of one step's dropout (`augment` has the others)."""


def target_loss(
    outputs: Float[Tensor, "image target"], wanted: Float[Tensor, "image target"], keys: Sequence[str], kind: str
) -> Float[Tensor, ""]:
    """Binary cross-entropy on malignancy's logit, `kind` on z-scores; the mean of the two where a model has both.

    Where several processes share a batch, the mean of their losses is the loss of the whole batch, and so the mean of
    their gradients its gradient: each counts as much as it has answers.

    Args:
        outputs: on the model's own scale.
        wanted: label 0 / 1 or z-score; NaN for malignancy where it is undecided, which does not count.
        keys: targets in output order.
        kind: a key of `LOSSES`.
    """
    logits, scores = _columns(keys)
    parts = []
    if logits:
        answers, labels = outputs[:, logits], wanted[:, logits]
        decided = ~labels.isnan()
        # A batch without one decided nodule adds nothing: the sum of none, over what is above 0.
        losses = F.binary_cross_entropy_with_logits(answers[decided], labels[decided], reduction="sum")
        parts.append(losses / mean_over_processes(decided.sum().float()).clamp(min=1e-6))
    if scores:
        share = torch.tensor(float(len(outputs)), device=outputs.device)
        parts.append(LOSSES[kind](outputs[:, scores], wanted[:, scores]) * (share / mean_over_processes(share)))
    return torch.stack(parts).mean()


def validation_metrics(
    outputs: Float[Tensor, "nodule target"], wanted: Float[Tensor, "nodule target"], keys: Sequence[str]
) -> dict[str, float]:
    """`val_auc` of malignancy and `val_z_mse` of the biomarkers, those that the model has; NaN without both classes."""
    logits, scores = _columns(keys)
    found = {}
    if logits:
        labels = wanted[:, logits].flatten().int()
        both = bool(labels.any()) and not bool(labels.all())
        found["val_auc"] = float(binary_auroc(outputs[:, logits].flatten(), labels)) if both else float("nan")
    if scores:
        found["val_z_mse"] = float(F.mse_loss(outputs[:, scores], wanted[:, scores]))
    return found


def _columns(keys: Sequence[str]) -> tuple[list[int], list[int]]:
    """Columns of logits and of z-scores."""
    logits = [index for index, key in enumerate(keys) if key == MALIGNANCY.key]
    return logits, [index for index in range(len(keys)) if index not in logits]


class NoduleTask(pl.LightningModule):
    """A `NoduleModel` and how one fold trains it."""

    def __init__(self, model: NoduleModel, intensity: Intensity, settings: TrainingSettings, steps: int) -> None:
        """Take a model to training.

        Args:
            model: what learns; its trainable parameters are those that require a gradient.
            intensity: the fold's.
            settings: loss, optimiser, schedule, seed.
            steps: optimiser steps of the whole training.
        """
        super().__init__()
        self.model = model
        # A part of the module, so that it goes into the checkpoint with the rest.
        self.averaged = copy.deepcopy(model).requires_grad_(False) if settings.average else None
        self._intensity = intensity
        self._settings = settings
        self._steps = steps
        self._answers: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: Sequence[Tensor], index: int) -> Tensor:
        """Loss of one batch: planes [image, plane, row, column], numbers beside them (`data.Part`), what to answer."""
        images_hu, features, wanted = batch
        # Dropout of a step depends on (seed, epoch, step) and the process alone, so a resumed run drops the same.
        step = (self._settings.seed, self.current_epoch, index, DROPOUT)
        stream = np.random.SeedSequence((*step, place()) if place() else step)
        torch.manual_seed(int(stream.generate_state(1)[0]))
        images = self._intensity.apply(images_hu, self.model.image_size)
        if self._settings.side_head == "kernel":
            outputs = self.model(images).float() + features
        else:
            outputs = self.model(images, features if self.model.features else None).float()
        loss = target_loss(outputs, wanted, self.model.targets, self._settings.loss)
        whole = sum_over_processes(len(wanted), wanted.device)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=whole, sync_dist=True)
        return loss

    @property
    def chosen(self) -> NoduleModel:
        """What is validated and kept: the running mean of the weights where there is one."""
        return self.model if self.averaged is None else self.averaged

    def on_train_batch_end(self, *_: Any) -> None:
        """Let the running mean follow; at first it follows faster, so that it does not remember the start."""
        if self.averaged is not None:
            stays = min(float(self._settings.average or 0), (1 + self.global_step) / (10 + self.global_step))
            with torch.no_grad():
                for mean, now in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
                    mean.lerp_(now, 1 - stays)

    def validation_step(self, batch: Sequence[Tensor], index: int) -> None:
        """Answers for one batch: planes [nodule, view, plane, row, column], numbers, what to answer."""
        images_hu, features, wanted = batch
        outputs = mean_over_views(self.chosen, self._intensity, images_hu, self.model.image_size, features)
        self._answers.append((outputs, wanted))

    def on_validation_epoch_end(self) -> None:
        """Loss and metrics over all validation nodules at once."""
        outputs, wanted = (rows_of_all(torch.cat(part)) for part in zip(*self._answers, strict=True))
        self._answers.clear()
        keys = self.model.targets
        self.log("val_loss", target_loss(outputs, wanted, keys, self._settings.loss))
        self.log_dict(validation_metrics(outputs, wanted, keys))

    def configure_optimizers(self) -> Any:
        """Optimiser, and its schedule by step."""
        optimiser, schedule = build_optimiser(self.model, self._settings, self._steps)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
