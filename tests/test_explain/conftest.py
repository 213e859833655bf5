"""Tiny random vision transformers of every kind that a timm backbone can be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from lidc_cdam.model import NoduleModel

TARGETS = ("malignancy", "margin", "diameter")

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mlp": {"head": "mlp"},
    "registers": {"reg_tokens": 3, "no_embed_class": True},
    "layer_scale": {"init_values": 0.3},
    "qk_norm": {"qk_norm": True},
    "not_square": {"img_size": (16, 24)},
    "mean_pooling": {"global_pool": "avg", "class_token": False},
    "drop": {"drop_path_rate": 0.3, "drop_rate": 0.3, "attn_drop_rate": 0.3},
    "distilled": {"kind": VisionTransformerDistilled},
}


def build_model(
    kind: Callable[..., Any] = VisionTransformer, head: str = "linear", seed: int = 0, **options: Any
) -> NoduleModel:
    """A double-precision model whose every parameter is random and large enough to matter."""
    torch.manual_seed(seed)
    dimensions = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3, "num_classes": 0}
    model = NoduleModel(kind(**dimensions | options), TARGETS, head)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.double().eval()


@pytest.fixture(params=KINDS)
def any_model(request: pytest.FixtureRequest) -> NoduleModel:
    return build_model(**KINDS[request.param])


@pytest.fixture
def model() -> NoduleModel:
    return build_model()


@pytest.fixture
def make_model() -> Callable[..., NoduleModel]:
    return build_model


@pytest.fixture(scope="session")
def make_model_once() -> Callable[..., NoduleModel]:
    """`make_model` for tests that hypothesis calls many times."""
    return build_model


@pytest.fixture
def make_images() -> Callable[..., Tensor]:
    def make(model: NoduleModel, count: int = 3) -> Tensor:
        generator = torch.Generator().manual_seed(7)
        return torch.randn(count, 3, *model.image_size, generator=generator, dtype=torch.float64)

    return make
