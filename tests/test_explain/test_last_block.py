import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock
from torch import nn

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain.cdam import cdam
from lidc_cdam.explain.last_block import LastBlock


def test_the_tail_of_the_models_own_tokens_is_the_model(any_model, make_images):
    images = make_images(any_model)
    cut = LastBlock(any_model)
    with torch.no_grad():
        entry = cut.enter(images)
        torch.testing.assert_close(cut.tail(entry.tokens, entry), any_model(images), rtol=1e-12, atol=1e-12)
        assert torch.equal(entry.outputs, any_model(images))
        expected = any_model.backbone.blocks[-1].norm1(entry.residual)
    assert torch.equal(entry.tokens, expected)
    assert cut.prefix == any_model.backbone.num_prefix_tokens


def test_gradients_are_finite_differences_of_the_tail(any_model, make_images):
    cut = LastBlock(any_model)
    entry = cut.enter(make_images(any_model))
    gradients = cut.gradients(entry.tokens, entry, lambda latents: any_model.head(latents)[:, [2, 0]])
    step = 1e-6 * torch.randn(entry.tokens.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        rise = (cut.tail(entry.tokens + step, entry) - cut.tail(entry.tokens - step, entry)) / 2
    predicted = (gradients * step).sum((2, 3)).T
    torch.testing.assert_close(predicted, rise[:, [2, 0]], rtol=1e-5, atol=1e-12)


def test_the_residual_stream_is_held_fixed(model, make_images):
    """With the attention's projection at zero, T cannot reach the output although x does."""
    attention = model.backbone.blocks[-1].attn
    nn.init.zeros_(attention.proj.weight)
    cut = LastBlock(model)
    entry = cut.enter(make_images(model))
    assert torch.equal(cut.gradients(entry.tokens, entry, model.head), torch.zeros(3, *entry.tokens.shape).double())


@pytest.mark.parametrize(("name", "missing"), [("resnet10t", ".blocks"), ("swin_tiny_patch4_window7_224", ".blocks")])
def test_other_networks_are_refused(model, name, missing):
    model.backbone = timm.create_model(name, num_classes=0)
    with pytest.raises(
        LidcCdamError, match=rf"need a vision transformer as timm builds it, but .* lacks \{missing}.* use --backbone "
    ):
        LastBlock(model)
    with pytest.raises(LidcCdamError, match=r"lacks .*; use --backbone with one of dino_vits8, .*, tiny\."):
        cdam(model, torch.zeros(1, 3, 16, 16, dtype=torch.float64))


def test_a_block_without_attention_is_refused(model):
    model.backbone.blocks[-1] = nn.Sequential(nn.Linear(12, 12))
    with pytest.raises(LidcCdamError, match=r"lacks .blocks\[-1\].norm1, .blocks\[-1\].attn"):
        LastBlock(model)


def test_parallel_blocks_are_refused(make_model):
    with pytest.raises(LidcCdamError, match=r"lacks .blocks\[-1\].norm1"):
        LastBlock(make_model(block_fn=ParallelScalingBlock))


def test_a_norm_after_the_attention_is_refused(make_model, make_images):
    model = make_model(block_fn=ResPostBlock)
    with pytest.raises(LidcCdamError, match="put `norm1` right before `attn`"):
        LastBlock(model).enter(make_images(model))
    with pytest.raises(LidcCdamError, match="put `norm1` right before `attn`"):
        cdam(model, make_images(model))


def test_something_after_the_blocks_is_refused(model, make_images):
    original = model.backbone.forward_features
    model.backbone.forward_features = lambda images: 2 * original(images)
    with pytest.raises(LidcCdamError, match="computes something else"):
        cdam(model, make_images(model))


def test_a_backbone_of_another_family_passes_its_extra_arguments(model):
    """EVA gives its blocks rotary embeddings."""
    torch.manual_seed(0)
    model.backbone = timm.models.Eva(
        img_size=16, patch_size=4, embed_dim=12, depth=2, num_heads=3, num_classes=0, use_rot_pos_emb=True
    ).double()
    model.eval()
    cut = LastBlock(model)
    entry = cut.enter(torch.randn(2, 3, 16, 16, dtype=torch.float64))
    assert cut.gradients(entry.tokens, entry, model.head).abs().sum() > 0
