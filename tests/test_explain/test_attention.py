import pytest
import torch

from lidc_cdam.explain.attention import attention, rollout
from lidc_cdam.explain.last_block import LastBlock

CLASS_TOKEN = ("plain", "registers", "layer_scale", "qk_norm", "not_square", "drop", "distilled")


def tokens_of_blocks(model, images):
    """What enters every attention layer."""
    found = []
    handles = [block.norm1.register_forward_hook(lambda *_: found.append(_[2])) for block in model.backbone.blocks]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return found


def by_hand(layer, tokens):
    """Mean over heads of softmax(Q K^T / sqrt(d)), head by head."""
    matrices = []
    queries, keys, _ = layer.qkv(tokens).chunk(3, dim=-1)
    width = queries.shape[-1] // layer.num_heads
    for head in range(layer.num_heads):
        part = slice(head * width, (head + 1) * width)
        query, key = layer.q_norm(queries[..., part]), layer.k_norm(keys[..., part])
        matrices.append((query @ key.mT / width**0.5).softmax(-1))
    return torch.stack(matrices).mean(0).detach()


@pytest.mark.parametrize("any_model", CLASS_TOKEN, indirect=True)
def test_attention_is_the_class_tokens_row_of_the_last_softmax(any_model, make_images):
    images = make_images(any_model)
    layer, tokens = any_model.backbone.blocks[-1].attn, tokens_of_blocks(any_model, images)[-1]
    expected = by_hand(layer, tokens)[:, 0]
    torch.testing.assert_close(expected.sum(-1), torch.ones(3, dtype=torch.float64))
    maps = attention(any_model, images)
    torch.testing.assert_close(maps[:, 1].flatten(1), expected[:, any_model.backbone.num_prefix_tokens :])


@pytest.mark.parametrize("any_model", CLASS_TOKEN, indirect=True)
def test_rollout_is_the_product_of_matrices(any_model, make_images):
    images = make_images(any_model)
    blocks = zip(any_model.backbone.blocks, tokens_of_blocks(any_model, images), strict=True)
    product = None
    for block, tokens in blocks:
        matrix = by_hand(block.attn, tokens)
        mixed = 0.5 * matrix + 0.5 * torch.eye(matrix.shape[-1], dtype=torch.float64)
        mixed = mixed / mixed.sum(-1, keepdim=True)
        product = mixed if product is None else mixed @ product
    expected = product[:, 0, LastBlock(any_model).prefix :]
    torch.testing.assert_close(rollout(any_model, images)[:, 2].flatten(1), expected)


def test_with_one_block_rollout_is_half_of_the_attention(make_model, make_images):
    model = make_model(depth=1)
    images = make_images(model)
    torch.testing.assert_close(rollout(model, images), 0.5 * attention(model, images))
