import pytest
import torch
from timm.layers.diff_attention import DiffAttention

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain import explain
from lidc_cdam.explain.softmax import attention_layers, check_class_token, softmax_matrices


def test_every_block_gives_its_matrix_and_the_outputs_stay_the_same(any_model, make_images):
    images = make_images(any_model)
    layers = attention_layers(any_model)
    with torch.no_grad():
        expected = any_model(images)
        with softmax_matrices(any_model, layers) as matrices:
            outputs = any_model(images)
    torch.testing.assert_close(outputs, expected)
    tokens = any_model.backbone.num_prefix_tokens + any_model.backbone.patch_embed.num_patches
    assert [matrix.shape for matrix in matrices] == [(3, 3, tokens, tokens)] * 2
    for matrix in matrices:
        torch.testing.assert_close(matrix.sum(-1), torch.ones(3, 3, tokens, dtype=torch.float64))
        assert float(matrix.min()) >= 0


def test_a_matrix_can_be_exchanged(model, make_images):
    images, layers = make_images(model), attention_layers(model)
    with torch.no_grad(), softmax_matrices(model, layers, torch.zeros_like):
        without_attention = model(images)
    for block in model.backbone.blocks:
        torch.nn.init.zeros_(block.attn.proj.weight)
    torch.testing.assert_close(without_attention, model(images).detach())


def test_fused_attention_comes_back(model, make_images):
    layers = attention_layers(model)
    layers[1].fused_attn = False
    images = make_images(model)
    model.backbone.norm.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), softmax_matrices(model, layers):
        model(images)
    assert [layer.fused_attn for layer in layers] == [True, False]
    assert not any(layer.attn_drop._forward_hooks for layer in layers)


def test_attention_of_another_kind_is_refused(make_model, make_images):
    model = make_model(attn_layer=DiffAttention, num_heads=2, embed_dim=16)
    with pytest.raises(
        LidcCdamError, match="needs the softmax matrix of every attention layer, which VisionTransformer"
    ):
        explain(model, make_images(model), method="attention")
    del model.backbone.blocks[0].attn.attn_drop
    with pytest.raises(LidcCdamError, match="does not let be read; use --method cdam"):
        explain(model, make_images(model), method="rollout")


@pytest.mark.parametrize("options", [{"global_pool": "avg"}, {"global_pool": "avg", "class_token": False}])
def test_models_that_pool_their_patches_have_no_row_of_the_class_token(make_model, options):
    with pytest.raises(LidcCdamError, match=r"does not read a \[CLS\] token alone .* use --method cdam or gradcam"):
        check_class_token(make_model(**options))


def test_registers_without_a_class_token_are_refused(make_model):
    with pytest.raises(LidcCdamError, match=r"does not read a \[CLS\] token alone"):
        check_class_token(make_model(class_token=False, reg_tokens=2, global_pool="avg"))
