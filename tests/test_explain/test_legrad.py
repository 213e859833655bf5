import pytest
import torch

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain.legrad import legrad
from lidc_cdam.explain.softmax import attention_layers, softmax_matrices


def output_of_block(model, place, images, matrix, target):
    """s^l as a function of the matrix of block l alone: what the head makes of the mean of that block's tokens."""
    kept = []
    handle = model.backbone.blocks[place].register_forward_hook(lambda *_: kept.append(_[2]))
    with softmax_matrices(model, attention_layers(model)[place : place + 1], lambda _: matrix):
        model(images)
    handle.remove()
    backbone = model.backbone
    normed = backbone.norm(kept[0].mean(1))
    return model.head(backbone.fc_norm(normed))[:, target].sum()


def test_by_differences_of_single_weights(any_model, make_images):
    images = make_images(any_model)[:1]
    with torch.no_grad(), softmax_matrices(any_model, attention_layers(any_model)) as matrices:
        any_model(images)
    heads, tokens = matrices[0].shape[1:3]
    expected = torch.zeros(tokens, dtype=torch.float64)
    step = 1e-6
    for place, matrix in enumerate(matrices):
        with torch.no_grad():
            start = output_of_block(any_model, place, images, matrix, 1)
            for head in range(heads):
                for query in (0, tokens - 1):
                    moved = matrix.clone()
                    moved[0, head, query, 2] += step
                    slope = (output_of_block(any_model, place, images, moved, 1) - start) / step
                    expected[query] += slope.clamp(min=0)
    slopes = [
        torch.autograd.grad(output_of_block(any_model, place, images, leaf, 1), leaf)[0]
        for place, leaf in enumerate(matrix.clone().requires_grad_() for matrix in matrices)
    ]
    for query in (0, tokens - 1):
        column = sum(slope[0, :, query, 2].clamp(min=0).sum() for slope in slopes)
        torch.testing.assert_close(column, expected[query], rtol=1e-4, atol=1e-6)
    wanted = torch.stack([slope.clamp(min=0).mean((1, 2)) for slope in slopes]).mean(0)
    found = legrad(any_model, images, "margin").flatten()
    torch.testing.assert_close(found, wanted[0, any_model.backbone.num_prefix_tokens :])


def test_the_last_blocks_alone(make_model, make_images):
    model = make_model(depth=3)
    images = make_images(model)
    by_depth = [legrad(model, images, blocks=blocks) * blocks for blocks in (1, 2, 3)]
    torch.testing.assert_close(legrad(model, images) * 3, by_depth[2])
    assert (by_depth[1] >= by_depth[0] - 1e-12).all()
    assert not torch.equal(by_depth[1], by_depth[0])


@pytest.mark.parametrize(("blocks", "sentence"), [(0, "must be at least 1; got 0"), (9, "must be at most 2, .* got 9")])
def test_a_number_of_blocks_that_there_is_not(model, make_images, blocks, sentence):
    with pytest.raises(LidcCdamError, match=rf"--options.blocks {sentence}"):
        legrad(model, make_images(model), blocks=blocks)
