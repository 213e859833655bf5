from functools import partial

import pytest
import torch
from torch import nn

from lidc_cdam.explain.partial_lrp import partial_lrp
from lidc_cdam.explain.softmax import attention_layers, softmax_matrices

CLASS_TOKEN = ("plain", "mlp", "registers", "layer_scale", "qk_norm", "not_square", "drop")


def z_rule(layer, given, relevance):
    """R_i = sum_j x_i w_ij / z_j R_j of a linear layer on one row; its bias keeps a share."""
    outputs = layer(given)
    return torch.stack(
        [
            sum(given[i] * layer.weight[j, i] / outputs[j] * relevance[j] for j in range(len(outputs)))
            for i in range(len(given))
        ]
    )


def through_norm(norm, given, relevance):
    """The z-rule of the linear map that a norm is at its deviation."""
    width = len(given)
    deviation = (given.var(correction=0) + norm.eps).sqrt()
    matrix = norm.weight[:, None] * (torch.eye(width) - 1 / width).to(given) / deviation
    frozen = nn.Linear(width, width).to(given)
    frozen.weight, frozen.bias = nn.Parameter(matrix), nn.Parameter(norm.bias)
    torch.testing.assert_close(frozen(given), norm(given))
    return z_rule(frozen, given, relevance)


def through_head(head, given, relevance):
    for layer, entered in reversed(list(zip(head, given, strict=True))):
        relevance = z_rule(layer, entered, relevance) if isinstance(layer, nn.Linear) else relevance
    return relevance


def by_hand(model, image, target):
    """Relevance of [CLS]'s softmax row [head, token], layer by layer, and what reaches the residual stream."""
    block, kept = model.backbone.blocks[-1], {}
    modules = {"block": block, "attn": block.attn, "norm2": block.norm2, "fc1": block.mlp.fc1, "fc2": block.mlp.fc2}
    modules |= {"act": block.mlp.act, "proj": block.attn.proj, "norm": model.backbone.norm, "qkv": block.attn.qkv}
    handles = [
        module.register_forward_hook(lambda _, given, output, name=name: kept.update({name: (given[0][0], output[0])}))
        for name, module in modules.items()
    ]
    with softmax_matrices(model, attention_layers(model)[-1:]) as matrices:
        output = model(image[None])[0]
    for handle in handles:
        handle.remove()
    head = list(model.head) if isinstance(model.head, nn.Sequential) else [model.head]
    entered = [kept["norm"][1][0]]
    for layer in head[:-1]:
        entered.append(layer(entered[-1]))
    relevance = torch.zeros_like(output)
    relevance[target] = output[target]
    relevance = through_head(head, entered, relevance)
    final = kept["norm"][0][0]
    relevance = through_norm(model.backbone.norm, final, relevance)
    middle = kept["norm2"][0][0]
    mlp = final - middle
    to_mlp, to_middle = relevance * mlp / final, relevance * middle / final
    to_hidden = z_rule(block.mlp.fc2, kept["fc2"][0][0], to_mlp)
    to_norm = z_rule(block.mlp.fc1, kept["fc1"][0][0], to_hidden)
    to_middle = to_middle + through_norm(block.norm2, middle, to_norm)
    start = kept["block"][0][0]
    to_attention = to_middle * (middle - start) / middle
    joined = kept["proj"][0][0]
    to_joined = z_rule(block.attn.proj, joined, to_attention)
    values = kept["qkv"][1].chunk(3, dim=-1)[2]
    heads = block.attn.num_heads
    width = values.shape[1] // heads
    found = []
    for place in range(heads):
        part = slice(place * width, (place + 1) * width)
        row = matrices[0][0, place, 0]
        shares = row[:, None] * values[:, part] / joined[part] * to_joined[part]
        found.append(shares.sum(1))
    return torch.stack(found).detach(), to_joined.sum().detach()


@pytest.mark.parametrize("any_model", CLASS_TOKEN, indirect=True)
def test_against_relevance_layer_by_layer(any_model, make_images):
    images = make_images(any_model)[:2]
    maps, signed = partial_lrp(any_model, images), partial_lrp(any_model, images, signed=True)
    prefix = any_model.backbone.num_prefix_tokens
    for place, image in enumerate(images):
        for target in (0, 2):
            relevance, whole = by_hand(any_model, image, target)
            torch.testing.assert_close(relevance.sum(), whole)
            expected = relevance[:, prefix:]
            # What is divided by hand may be small, so that its rounding shows.
            close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)
            close(signed[place, target].flatten(), expected.mean(0))
            close(maps[place, target].flatten(), expected.clamp(min=0).mean(0))
