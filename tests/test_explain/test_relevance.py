import pytest
import torch

from lidc_cdam.explain import Concept
from lidc_cdam.explain.relevance import relevance_propagation
from lidc_cdam.explain.softmax import attention_layers, softmax_matrices

CLASS_TOKEN = ("plain", "mlp", "registers", "layer_scale", "qk_norm", "not_square", "drop", "distilled")


@pytest.mark.parametrize("any_model", CLASS_TOKEN, indirect=True)
def test_relevance_is_the_row_of_the_accumulated_matrix(any_model, make_images):
    images = make_images(any_model)
    maps = relevance_propagation(any_model, images)
    for place, image in enumerate(images):
        for target in range(3):
            with softmax_matrices(any_model, attention_layers(any_model)) as matrices:
                output = any_model(image[None])[0, target]
            slopes = torch.autograd.grad(output, matrices)
            relevance = torch.eye(matrices[0].shape[-1], dtype=torch.float64)
            for matrix, slope in zip(matrices, slopes, strict=True):
                step = torch.stack([(slope[0, head] * matrix[0, head]).clamp(min=0) for head in range(3)]).mean(0)
                relevance = relevance + step @ relevance
            expected = relevance[0, any_model.backbone.num_prefix_tokens :].detach()
            torch.testing.assert_close(maps[place, target].flatten(), expected)


def test_scores_are_zero_where_no_head_looks(model, make_images):
    with torch.no_grad():
        for block in model.backbone.blocks:
            block.attn.proj.weight.zero_()
    assert not relevance_propagation(model, make_images(model)).any()


def test_the_likeness_to_a_concept_is_followed_like_an_output(model, make_images):
    images = make_images(model)
    concept = Concept("the head's own direction", model.head.weight[1].detach())
    found = relevance_propagation(model, images, [concept, "margin"])
    torch.testing.assert_close(found[:, 0], found[:, 1])
