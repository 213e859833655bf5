"""Self-distillation without labels (DINO): from any crop, a student learns what a teacher answers to a large one.

Caron et al., Emerging Properties in Self-Supervised Vision Transformers (ICCV 2021). Student and teacher are a backbone
with a projection head; the teacher is a running mean of the student. With teacher outputs t of the large crops, student
outputs s of all crops, the running centre c and temperatures tau:

    loss = mean over pairs (large crop a, other crop b) of  - softmax((t_a - c) / tau_t) . log softmax(s_b / tau_s)
    teacher <- m teacher + (1 - m) student,   c <- 0.9 c + 0.1 mean(t)
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import Format
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from training.schedules import warm_cosine

CENTRE_MOMENTUM = 0.9
WARM_UP = 0.1
"""Share of the steps over which the rate rises."""
HIDDEN, BOTTLENECK = 512, 128
"""Widths of the projection head; a quarter of and half the paper's, as the data are a thousandth of its images."""
GLOBAL_CROPS = 2


class Projection(nn.Module):
    """The head of student and teacher: three layers, then unit vectors against `out` prototypes of unit length."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, BOTTLENECK)
        )
        self.prototypes = nn.Linear(BOTTLENECK, out, bias=False)

    def forward(self, latents: Float[Tensor, "image latent"]) -> Float[Tensor, "image prototype"]:
        """Cosines between each image and each prototype."""
        return F.linear(F.normalize(self.layers(latents), dim=-1), F.normalize(self.prototypes.weight, dim=-1))


class Pair(nn.Module):
    """A backbone and its projection."""

    def __init__(self, backbone: VisionTransformer, out: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection = Projection(backbone.num_features, out)

    def forward(self, crops: Sequence[Float[Tensor, "image channel _ _"]]) -> Float[Tensor, "crop image prototype"]:
        """Outputs of crops; those of one size go through the backbone together."""
        outputs: list[Tensor] = []
        for size in dict.fromkeys(crop.shape[-1] for crop in crops):
            same = [crop for crop in crops if crop.shape[-1] == size]
            answers: Tensor = self.projection(self.backbone(torch.cat(same)))
            outputs += list(answers.chunk(len(same)))
        return torch.stack(outputs)


def dino_loss(
    student: Float[Tensor, "crop image prototype"],
    teacher: Float[Tensor, "large image prototype"],
    centre: Float[Tensor, " prototype"],
    student_temperature: float,
    teacher_temperature: float,
) -> Float[Tensor, ""]:
    """Mean cross-entropy over pairs of a large crop (teacher) and another crop (student); large crops come first."""
    wanted = F.softmax((teacher - centre) / teacher_temperature, dim=-1).detach()
    answered = F.log_softmax(student / student_temperature, dim=-1)
    losses = -torch.einsum("anp,bnp->abn", wanted, answered).mean(-1)
    other = ~torch.eye(len(teacher), len(student), dtype=torch.bool, device=losses.device)
    return losses[other].mean()


def accept_any_size(backbone: VisionTransformer) -> None:
    """Let a backbone take images of any size that its patches divide; position embeddings are resampled as needed."""
    backbone.dynamic_img_size = True
    embed = backbone.patch_embed
    embed.strict_img_size, embed.flatten, embed.output_fmt = False, False, Format.NHWC


class DinoTask(pl.LightningModule):
    """Student, teacher and centre, as Lightning trains them."""

    centre: Tensor

    def __init__(self, backbone: VisionTransformer, settings: Any, steps: int) -> None:
        """Start the teacher as the student's copy.

        Args:
            backbone: what learns; made to take images of any size.
            settings: a `pretrain.PretrainSettings`.
            steps: optimiser steps of the whole training.
        """
        super().__init__()
        accept_any_size(backbone)
        self.student = Pair(backbone, settings.prototypes)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(settings.prototypes))
        self._settings = settings
        self._steps = steps

    def training_step(self, batch: Sequence[Tensor], index: int) -> Tensor:
        """Loss of one batch of crops, the two large ones first."""
        chosen = self._settings
        with torch.no_grad():
            teacher = self.teacher(batch[:GLOBAL_CROPS])
        student = self.student(batch)
        loss = dino_loss(student, teacher, self.centre, chosen.student_temperature, chosen.teacher_temperature)
        mean = teacher.mean((0, 1))
        self.centre.lerp_(mean.to(self.centre), 1 - CENTRE_MOMENTUM)
        # Both collapses show here: one answer for every image has no spread between images, an even one no certainty.
        self.log_dict(
            {"loss": loss, "spread": teacher.std(1).mean()}, on_step=False, on_epoch=True, batch_size=len(batch[0])
        )
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        """The teacher follows the student, ever more slowly."""
        done = self.global_step / max(1, self._steps)
        momentum = 1 - (1 - self._settings.momentum) * 0.5 * (1 + math.cos(math.pi * done))
        with torch.no_grad():
            for mean, now in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                mean.lerp_(now, 1 - momentum)

    def configure_optimizers(self) -> Any:
        """AdamW with a cosine schedule after a warm-up over a tenth of the steps."""
        matrices = [p for p in self.student.parameters() if p.ndim >= 2]
        others = [p for p in self.student.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": self._settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        optimiser = torch.optim.AdamW(groups, lr=self._settings.max_lr)
        schedule = LambdaLR(optimiser, lambda step: warm_cosine(step, self._steps, WARM_UP))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
