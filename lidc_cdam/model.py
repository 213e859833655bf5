"""The model: a vision transformer and a head with one output per target."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from lidc_cdam.artifacts import SCHEMA, check_schema
from lidc_cdam.backbones import build_backbone
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import read_json, replacing, write_json
from lidc_cdam.kernel import KernelHead
from lidc_cdam.vocabulary import TARGETS
from lidc_cdam.weights import read_tensors

HEADS = ("linear", "mlp")
WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
SIDE_WIDTH = 64
"""Of the head that reads numbers beside the image."""
Kind = TypeVar("Kind", bound="NoduleModel")


def best_device() -> torch.device:
    """A GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class NoduleModel(nn.Module):
    """A backbone's final [CLS] latent, and a head that reads every target from it.

    Outputs are on the model's own scale: a logit for malignancy, a z-score for a biomarker
    (`intensity.Scaling` turns them into what a person reads).
    """

    kind: ClassVar[str] = "nodules"
    """What is shown to the model, which its description keeps."""

    def __init__(
        self,
        backbone: nn.Module,
        targets: Sequence[str],
        head: str = "linear",
        backbone_name: str | None = None,
        features: int = 0,
        kernel: KernelHead | None = None,
    ) -> None:
        """Put a fresh head on a backbone.

        Args:
            backbone: a timm vision transformer without a classifier (`build_backbone`).
            targets: keys of `vocabulary.TARGETS`, in output order.
            head: `linear`, or `mlp` (linear, ReLU, linear, as wide as the latent; the paper's for biomarkers).
            backbone_name: key of `BACKBONES`, which `save` needs; known already if `build_backbone` made the backbone.
            features: how many numbers beside the image (radiomics) a second head reads, whose outputs are added.
            kernel: that second head, fitted already; by default a small network that learns with the rest.

        Raises:
            LidcCdamError: an unknown target, a repeated one or none, or an unknown head.
        """
        super().__init__()
        self.targets = self._checked(targets)
        if head not in HEADS:
            raise LidcCdamError(f"--head must be one of {', '.join(HEADS)}; got {head!r}.")
        self.head_kind = head
        self.backbone_name: str | None = backbone_name or getattr(backbone, "backbone_name", None)
        self.backbone: Any = backbone  # a timm ViT, whose attributes no type checker knows
        width: Any = backbone.num_features
        self.head = _head(head, width, len(self.targets))
        self.features = features
        self.side_head: nn.Module | None = kernel or (_side_head(features, len(self.targets)) if features else None)

    def _checked(self, targets: Sequence[str]) -> tuple[str, ...]:
        """The targets as a tuple, if a model of this kind can have them."""
        return _checked_targets(targets)

    @property
    def channels(self) -> int:
        """Channels of the input."""
        return int(self.backbone.patch_embed.proj.in_channels)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the input, pixels."""
        height, width = self.backbone.patch_embed.img_size
        return int(height), int(width)

    def embed(self, images: Float[Tensor, "image channel row column"]) -> Float[Tensor, "image latent"]:
        """The final [CLS] latent z: after the last norm, before the head (pooled tokens where there is no [CLS])."""
        return self.pool(self.backbone.forward_features(images))

    def pool(self, tokens: Float[Tensor, "image token channel"]) -> Float[Tensor, "image latent"]:
        """The latent that the head reads, from the backbone's final tokens."""
        latent: Tensor = self.backbone.forward_head(tokens, pre_logits=True)
        return latent

    def forward(
        self, images: Float[Tensor, "image channel row column"], features: Float[Tensor, "image feature"] | None = None
    ) -> Float[Tensor, "image target"]:
        """Outputs on the model's own scale (logit, z-score).

        Args:
            images: normalised images of the size `image_size` (`intensity.Intensity.apply`).
            features: scaled numbers beside the image (`intensity.FeatureScaling.apply`), for a model that reads some;
                without them the outputs are the image's part alone, which is what maps explain.
        """
        outputs: Tensor = self.head(self.embed(images))
        if self.side_head is not None and features is not None:
            outputs = outputs + self.side_head(features)
        return outputs

    def save(self, folder: Path | str) -> None:
        """Write `model.safetensors` and `model.json`, each whole or not at all.

        Raises:
            LidcCdamError: the backbone is no row of `BACKBONES`, so that no one could build it again.
        """
        folder = Path(folder)
        if self.backbone_name is None:
            raise LidcCdamError(
                f"A model saved to {folder} must name its backbone; build it with `build_backbone` "
                f"or pass `backbone_name`."
            )
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        try:
            with replacing(folder / WEIGHTS) as temporary:
                save_file(state, temporary)
        except SafetensorError as error:
            raise LidcCdamError(
                f"{folder / WEIGHTS} could not be written ({error}); free space there, then run the step again."
            ) from error
        write_json(folder / DESCRIPTION, self._description())

    def _description(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "backbone": self.backbone_name,
            "image_size": list(self.image_size),
            "targets": list(self.targets),
            "head": self.head_kind,
            "dropout": self.backbone.head_drop.p,
            "channels": self.channels,
            "features": self.features,
            "support": len(self.side_head.support) if isinstance(self.side_head, KernelHead) else 0,
        }

    @classmethod
    def _described(cls: type[Kind], stored: Any) -> Kind:
        """A model as its description says, without its weights."""
        height, width = stored["image_size"]
        channels = stored.get("channels", 3)
        backbone = build_backbone(stored["backbone"], None, (height, width), stored["dropout"], channels)
        features, support = stored.get("features", 0), stored.get("support", 0)
        kernel = KernelHead(support, features, len(stored["targets"])) if support else None
        return cls(backbone, stored["targets"], stored["head"], features=features, kernel=kernel)

    @classmethod
    def load(cls: type[Kind], folder: Path | str) -> Kind:
        """The model that `save` wrote, on the CPU and in evaluation mode; its outputs are the same to the last bit.

        Raises:
            LidcCdamError: a file is missing or damaged, or the two do not belong together.
        """
        folder = Path(folder)
        path = folder / DESCRIPTION
        stored = read_json(path)
        check_schema(path, stored)
        if stored.get("kind", NoduleModel.kind) != cls.kind:
            raise LidcCdamError(f"{path} must describe a model of {cls.kind}, but it is one of {stored['kind']}.")
        try:
            # On "meta" tensors have no values yet: random ones that the file replaces would take longest of all.
            with torch.device("meta"):
                model = cls._described(stored)
        except (KeyError, TypeError, ValueError) as error:
            raise LidcCdamError(
                f"{path} must describe a model as training wrote it, but it does not ({error!r}); train the fold again."
            ) from error
        state = read_tensors(folder / WEIGHTS)
        model.to_empty(device="cpu")
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise LidcCdamError(
                f"{folder / WEIGHTS} must hold the model that {path} describes ({stored['backbone']}, "
                f"{len(model.targets)} targets), but its tensors differ; train the fold again."
            ) from error
        return model.eval()


def _checked_targets(targets: Sequence[str]) -> tuple[str, ...]:
    keys = (targets,) if isinstance(targets, str) else tuple(targets)
    wrong = [key for key in keys if key not in TARGETS]
    if wrong or not keys or len(set(keys)) < len(keys):
        raise LidcCdamError(
            f"A model's targets must be different keys out of {', '.join(TARGETS)}; got {', '.join(keys) or 'none'}."
        )
    return keys


def _side_head(features: int, outputs: int) -> nn.Module:
    """A small network with much dropout, because radiomics are many and nodules few; it starts by adding nothing."""
    last = nn.Linear(SIDE_WIDTH, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Dropout(0.2), nn.Linear(features, SIDE_WIDTH), nn.GELU(), nn.Dropout(0.3), last)


def _head(kind: str, width: int, outputs: int) -> nn.Module:
    last = nn.Linear(width, outputs)
    head = last if kind == "linear" else nn.Sequential(nn.Linear(width, width), nn.ReLU(), last)
    # A small start keeps the first predictions near the mean, so that a fine-tuned backbone is not shaken at once.
    nn.init.trunc_normal_(last.weight, std=0.02)
    nn.init.zeros_(last.bias)
    return head
