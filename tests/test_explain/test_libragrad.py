from contextlib import ExitStack

import pytest
import torch
from torch import nn

from lidc_cdam.explain.inputs import undisturbed
from lidc_cdam.explain.libragrad import libragrad, token_scores
from lidc_cdam.explain.passes import Call

LINEAR_HEADS = (
    "plain",
    "mlp",
    "registers",
    "layer_scale",
    "qk_norm",
    "not_square",
    "drop",
    "distilled",
    "mean_pooling",
)


class Frozen:
    """A model whose attention weights, deviations and gates stay those of the first image that it saw.

    Everything is put in place by hand: no line of the tested code takes part.
    """

    def __init__(self, model, image):
        self.model, self.kept, self.first = model, {}, True
        self.tokens = None
        self.stack = ExitStack()
        for module in model.modules():
            if isinstance(module, nn.LayerNorm) and module.normalized_shape == (12,):
                self.hook(module, self.norm)
            elif isinstance(module, nn.GELU | nn.ReLU):
                self.hook(module, self.gate)
        for block in model.backbone.blocks:
            block.attn.fused_attn = False
            self.hook(block.attn.attn_drop, self.weights)
        start = model.backbone.blocks[0].register_forward_pre_hook(self.enter)
        self.stack.callback(start.remove)
        with torch.no_grad():
            self.output = model(image[None])[0]
        self.image, self.first = image, False

    def hook(self, module, function):
        self.stack.callback(module.register_forward_hook(function).remove)

    def enter(self, module, given):
        if self.first:
            self.tokens = given[0].clone()
            return given
        return (self.moved,)

    def norm(self, module, given, output):
        x = given[0]
        if self.first:
            self.kept[module] = (x.var(-1, correction=0, keepdim=True) + module.eps).sqrt()
        return module.weight * (x - x.mean(-1, keepdim=True)) / self.kept[module] + module.bias

    def gate(self, module, given, output):
        if self.first:
            self.kept[module] = output / given[0]
        return self.kept[module] * given[0]

    def weights(self, module, given, output):
        return self.kept.setdefault(module, output)

    def __call__(self, tokens):
        self.moved = tokens
        with torch.no_grad():
            return self.model(self.image[None])[0]


@pytest.mark.parametrize("any_model", LINEAR_HEADS, indirect=True)
def test_a_score_is_what_the_frozen_model_loses_with_the_token(any_model, make_images):
    image = make_images(any_model)[0]
    maps = libragrad(any_model, image[None])
    frozen = Frozen(any_model, image)
    with frozen.stack:
        prefix = any_model.backbone.num_prefix_tokens
        for place in (0, 5, maps[0, 0].numel() - 1):
            without = frozen.tokens.clone()
            without[0, prefix + place] = 0
            lost = frozen.output - frozen(without)
            torch.testing.assert_close(maps[0].flatten(1)[:, place], lost, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("any_model", LINEAR_HEADS, indirect=True)
def test_with_biases_the_scores_of_all_tokens_add_up_to_the_output(any_model, make_images):
    images = make_images(any_model)
    with undisturbed(any_model):
        call = Call.of(any_model, images, None, 8)
        (chunk,) = call.chunks()
        whole = token_scores(call, chunk, biases=True).sum(2)
        latents = any_model.embed(images)
        head = any_model.head if isinstance(any_model.head, nn.Linear) else None
        outputs = any_model(images)
    after_pooling = outputs - whole
    if head is not None and isinstance(any_model.backbone.fc_norm, nn.Identity):
        torch.testing.assert_close(after_pooling, head.bias.detach().expand_as(after_pooling))
        torch.testing.assert_close(whole, latents @ head.weight.T.detach())
    maps = libragrad(any_model, images, biases=True)
    assert not torch.allclose(maps, libragrad(any_model, images))
