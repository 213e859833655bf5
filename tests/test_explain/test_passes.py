import pytest
import torch

from lidc_cdam.backbones import BACKBONES, build_backbone
from lidc_cdam.explain import EXPLAINERS, explain, passes
from lidc_cdam.explain.passes import Call, gradients
from lidc_cdam.model import NoduleModel


@pytest.mark.parametrize("name", ["dino_vits16", "dinov2_vits14_reg", "small", "tiny"])
def test_every_estimator_is_defined_on_every_kind_of_backbone(name):
    """Rows that are left out differ from these in their width, depth and weights alone."""
    side = build_backbone(name).patch_embed.patch_size[0]
    torch.manual_seed(0)
    model = NoduleModel(build_backbone(name, image_size=(2 * side, 3 * side)), ("margin", "diameter"), "mlp")
    images = torch.randn(1, 3, 2 * side, 3 * side)
    for method, explainer in EXPLAINERS.items():
        maps = explain(model, images, method=method, **({"n": 2} if "n" in explainer.options else {}))
        assert maps.shape == (1, 2, 2, 3), method
        assert torch.isfinite(maps).all(), method
        assert float(maps.abs().max()) > 0, method
    assert name in BACKBONES


def test_each_readouts_gradient_and_zero_where_there_is_none():
    first, second = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    readings = torch.stack([3 * first, first * second], 1)
    with torch.no_grad():
        (a, none), (b, c) = gradients(readings, [first, second])
    assert a.tolist() == [3, 3]
    assert none.tolist() == [0, 0]
    assert b.tolist() == c.tolist() == [1, 1]


def test_the_memory_bounds_the_images_at_a_time(model, make_images, monkeypatch):
    images = make_images(model)
    assert Call.of(model, images, None, 64, tokens="all", matrices="all").size == 64
    tokens = 2 * 17 * 12 * 16
    matrices = 2 * 17 * 17 * 3 * 3
    monkeypatch.setattr(passes, "BUDGET", 3 * (tokens + matrices))
    assert Call.of(model, images, None, 64, tokens="all", matrices="all").size == 3
    assert Call.of(model, images, None, 2, tokens="all", matrices="all").size == 2
    assert Call.of(model, images, None, 64, tokens="last").size == (3 * (tokens + matrices)) // (tokens // 2)
    monkeypatch.setattr(passes, "BUDGET", 1)
    assert Call.of(model, images, None, 64).size == 1


def test_autocast_of_the_caller_changes_nothing(model, make_images):
    images = make_images(model).float()
    model.float()
    expected = explain(model, images, method="relevance_propagation")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(explain(model, images, method="relevance_propagation"), expected)
