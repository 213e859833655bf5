"""Every setting that decides a training: one record, shared by `train` and `crossval`; its fields are their options."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lidc_cdam.backbones import BACKBONES
from lidc_cdam.channels import SLICE, Channels
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.geometry import VIEWS
from lidc_cdam.vocabulary import MALIGNANCY, Target, resolve_targets
from training.augment import Variation


@dataclass(frozen=True)
class Shown:
    """What a model is shown of a nodule: the channels of its images, and perhaps radiomics beside them."""

    channels: Channels = SLICE
    radiomics: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Shown":
        """That of a run's `config.yaml`."""
        return cls(Channels.of(config), bool(config.get("radiomics", False)))


PLAIN = Shown()
"""One slice, nothing beside it."""


@dataclass(frozen=True)
class TrainingSettings:
    """What to predict, with which model, learnt how.

    Raises:
        LidcCdamError: a value lies outside its range or names nothing known.
    """

    targets: str | list[str] = "malignancy"
    """What to predict: malignancy, biomarkers (all eight), joint (all nine), or keys such as margin,diameter."""
    backbone: str = "tiny"
    """Name of a vision transformer; docs/backbones.md lists them, and so does the error for a wrong one."""
    weights: str | None = None
    """Start from `hub` (the published weights), from a checkpoint file, or (none) from random weights."""
    image_size: int | None = None
    """Side of the model's input in pixels; none takes the backbone's own."""
    head: Literal["linear", "mlp"] = "linear"
    """Head on the [CLS] token: linear, or mlp (linear, ReLU, linear)."""
    dropout: float = 0.0
    """Share of activations dropped in the backbone during training, 0 to below 1."""
    trainable_layers: int | None = None
    """Parameter tensors of the backbone that learn, counted from its end; none trains all, 0 only the head."""
    views: list[str] = field(default_factory=lambda: list(VIEWS))
    """Views drawn in training and averaged in evaluation; axial alone for packs without margin across slices."""
    indeterminate: bool = False
    """Whether biomarkers are also learnt from nodules of undecided malignancy (the readers' median is 3), of patients
    that neither validate nor test."""
    stack: Literal["slice", "adjacent"] = "slice"
    """Grey channels of the input: slice, three times the same; adjacent, the slice and a neighbour on either side."""
    stack_step: int = 3
    """Slices between the channels of adjacent, at least 1."""
    mask_channel: bool = False
    """Whether a fourth channel shows the readers' consensus, so that new nodules must be outlined before they can be
    predicted; every result must say so."""
    radiomics: bool = False
    """Whether a second head adds what the radiomics of the readers' consensus say; maps then explain the image's part
    alone, and every result must say so."""
    side_head: Literal["mlp", "kernel"] = "mlp"
    """What reads radiomics: mlp, a small network that learns along with the image's part; kernel, kernel ridge
    regression, fitted beforehand, so that the image's part learns what radiomics leave to say."""
    flips: bool = False
    """Whether training also mirrors images at random (the paper only turns them)."""
    shift: int = 0
    """Largest shift of a training image along its rows and columns, voxels; its border is mirrored tissue."""
    grey_jitter: float = 0.0
    """Largest change of a training image's grey values: a gain of 1 plus or minus this, and as much of 500 HU."""
    average: float | None = None
    """Share of a running mean of the weights that stays in a step, such as 0.99; the mean is validated and kept. None
    keeps the weights themselves."""
    epochs: int = 50
    """Passes over the training nodules; each draws one image per nodule."""
    batch_size: int = 32
    """Images per step."""
    optimiser: Literal["adam", "adamw"] = "adamw"
    """Optimiser; adamw decays weight matrices only."""
    max_lr: float = 1e-3
    """Highest learning rate of the schedule."""
    layer_decay: float | None = None
    """Rate of a block as a share of the next one's, above 0 to 1, so that early blocks learn less; none is one rate."""
    schedule: Literal["cosine", "cyclic_triangular2", "exponential"] = "cosine"
    """Learning rate over the steps: cosine (after a linear warm-up), cyclic_triangular2 or exponential."""
    warm_up: float = 0.1
    """Share of all steps over which the cosine schedule rises."""
    cycles: int = 2
    """Cycles of the cyclic schedule."""
    weight_decay: float = 0.05
    """Weight decay."""
    clip_gradient: float | None = None
    """Largest norm of a step's gradient; none does not clip."""
    loss: Literal["huber", "mse"] = "huber"
    """Loss of the z-scored biomarkers; malignancy always has binary cross-entropy on logits."""
    patience: int | None = None
    """Stop after this many epochs without a better validation loss; none trains all epochs."""
    permute_labels: bool = False
    """Whether the nodules' values are dealt out anew at random before training and validation: a control whose maps
    mean nothing, for `evaluate --randomised-run`."""
    seed: int = 0
    """Seed of the initial weights, the draws, the order and the dropout."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """Arithmetic of training: auto takes bf16-mixed on a GPU that has it, else 32-true. Predictions are float32."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", [target.key for target in resolve_targets(self.targets)])
        object.__setattr__(self, "views", list(dict.fromkeys(self.views)))
        if str(self.weights).lower() in ("none", "null"):
            object.__setattr__(self, "weights", None)
        if self.backbone not in BACKBONES:
            raise LidcCdamError(f"--backbone must be one of {', '.join(BACKBONES)}; got {self.backbone!r}.")
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                known = ", ".join(get_args(hint))
                raise LidcCdamError(f"--{_flag(name)} must be one of {known}; got {getattr(self, name)!r}.")
        if not self.views or not set(self.views) <= set(VIEWS):
            got = ", ".join(map(repr, self.views)) or "none"
            raise LidcCdamError(f"--views must name at least one of {', '.join(VIEWS)}; got {got}.")
        for name in ("dropout", "warm_up", "grey_jitter"):
            if not 0 <= getattr(self, name) < 1:
                raise LidcCdamError(f"--{_flag(name)} must be at least 0 and below 1; got {getattr(self, name)}.")
        if self.average is not None and not 0 < self.average < 1:
            raise LidcCdamError(f"--average must be above 0 and below 1; got {self.average}.")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise LidcCdamError(f"--layer-decay must be above 0 and at most 1; got {self.layer_decay}.")
        if self.indeterminate and self.targets == [MALIGNANCY.key]:
            raise LidcCdamError("--indeterminate needs a biomarker among --targets; got malignancy alone.")
        if self.side_head == "kernel" and not self.radiomics:
            raise LidcCdamError("--side-head kernel needs radiomics to read; add --radiomics true.")
        for name in ("max_lr", "clip_gradient"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise LidcCdamError(f"--{_flag(name)} must be a number above 0; got {value}.")
        least = dict.fromkeys(("epochs", "batch_size", "stack_step", "cycles", "patience", "image_size"), 1)
        for name, lowest in (least | dict.fromkeys(("trainable_layers", "weight_decay", "seed", "shift"), 0)).items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise LidcCdamError(f"--{_flag(name)} must be at least {lowest}; got {value}.")

    @property
    def resolved_targets(self) -> tuple[Target, ...]:
        """The targets' records in output order."""
        return resolve_targets(self.targets)

    @property
    def shown(self) -> "Shown":
        """What the model is shown of a nodule."""
        return Shown(Channels(self.stack, self.stack_step, self.mask_channel), self.radiomics)

    @property
    def variation(self) -> Variation:
        """How much training varies an image."""
        return Variation(self.flips, self.shift, self.grey_jitter)

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values, targets resolved to their keys.

        `permute_labels` is named only where it is on, so that runs from before it was there go on.
        """
        settings = asdict(self)
        if not self.permute_labels:
            del settings["permute_labels"]
        return settings


def _flag(name: str) -> str:
    return name.replace("_", "-")
