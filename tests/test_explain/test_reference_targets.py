"""The twins of concepts, contrasts and paths, held against each other and against numbers known beforehand."""

import pytest
import torch
from reference import (
    PlainModel,
    cdam_scores,
    cdam_scores_by_differences,
    closed_form,
    cut,
    integrated_cdam_scores,
    latent_of,
    output_of,
    random_images,
    random_vit,
    randomise,
    smooth_cdam_scores,
)
from reference_targets import (
    antithetic,
    contrast,
    cosine_similarity,
    decomposed_scores,
    dot_similarity,
    integrated_scores_of_block_input,
    mean_latent,
    moved_block_input,
    negative_distance,
    smooth_scores_of_block_input,
)
from torch import Tensor, nn

VARIANTS = {
    "plain": {},
    "registers": {"reg_tokens": 2, "init_values": 0.1},
    "qk_norm": {"qk_norm": True},
    "mean_pooling": {"global_pool": "avg"},
}


def make_model(variant: str) -> tuple[PlainModel, Tensor]:
    head = randomise(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)), 1)
    return PlainModel(random_vit(0, **VARIANTS[variant]), head), random_images(4, 2)


@pytest.mark.parametrize("similarity", [dot_similarity, cosine_similarity, negative_distance])
@pytest.mark.parametrize("variant", ["plain", "mean_pooling"])
def test_concept_scores_are_the_change_of_the_similarity(variant, similarity):
    model, images = make_model(variant)
    with torch.no_grad():
        read = similarity(mean_latent(list(model.backbone(images[1:]))))
    state = cut(model, images[0])
    expected = cdam_scores_by_differences(state, read)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(cdam_scores(state, read), expected, rtol=1e-6, atol=1e-7)


def test_similarities_of_a_latent_worked_out_by_hand():
    latent, concept = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])
    assert dot_similarity(concept)(latent) == 8
    torch.testing.assert_close(cosine_similarity(concept)(latent), torch.tensor(0.8))
    torch.testing.assert_close(negative_distance(concept)(latent), -torch.tensor(13.0).sqrt())
    assert torch.equal(mean_latent([latent, concept]), torch.tensor([1.5, 3.0]))


def test_the_map_of_a_contrast_is_the_contrast_of_maps():
    model, images = make_model("registers")
    state = cut(model, images[0])
    reads = {name: output_of(model, index) for index, name in enumerate("abc")}
    weights = {"a": 1.0, "c": -0.5}
    expected = sum(weight * cdam_scores(state, reads[name]) for name, weight in weights.items())
    torch.testing.assert_close(cdam_scores(state, contrast(reads, weights)), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_paths_and_heads_add_up_to_the_map(variant):
    model, images = make_model(variant)
    state, read = cut(model, images[0]), output_of(model, 1)
    torch.testing.assert_close(decomposed_scores(state, read).total, cdam_scores(state, read), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("variant", ["plain", "registers"])
def test_paths_of_patches_are_the_terms_of_the_closed_form(variant):
    model, images = make_model(variant)
    state, read = cut(model, images[0]), output_of(model, 1)
    form, paths = closed_form(state, read), decomposed_scores(state, read)
    assert form.shift[:, 1:].abs().max() > 1e-3
    torch.testing.assert_close(paths.value[:, 1:], form.value[:, 1:], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(paths.shift[:, 1:], form.shift[:, 1:], rtol=1e-9, atol=1e-11)


def test_pairs_of_noise_cancel_what_is_odd():
    """To second order the mean over a pair has no part linear in the noise; that of two draws has."""
    model, images = make_model("plain")
    state, read = cut(model, images[0]), output_of(model, 0)
    draws = 1e-3 * torch.randn(2, *state.tokens.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    noise = antithetic(draws, 4)
    assert torch.equal(noise, torch.stack([draws[0], -draws[0], draws[1], -draws[1]]))
    plain = cdam_scores(state, read)
    paired, alone = (smooth_cdam_scores(state, read, part) - plain for part in (noise[:2], noise[::2]))
    assert paired.norm() < 0.05 * alone.norm()


def test_completeness_fails_where_the_blocks_input_moves():
    """SCIENCE.md 5: LayerNorm takes the path's scale away, so that T never leaves its end; the definition completes."""
    model, images = make_model("plain")
    state, read = cut(model, images[0]), output_of(model, 1)
    torch.testing.assert_close(moved_block_input(state, 0.3 * state.residual).tokens, state.tokens, rtol=1e-3, atol=0)
    with torch.no_grad():
        change = read(latent_of(state, state.tokens)) - read(latent_of(state, 0 * state.tokens))
    moved, complete = (
        scores(state, read, 40).sum() for scores in (integrated_scores_of_block_input, integrated_cdam_scores)
    )
    assert abs(complete - change) < 0.1 * abs(change)
    assert abs(moved - change) > 0.5 * abs(change)


def test_smooth_scores_of_the_blocks_input_start_from_the_vanilla_map():
    model, images = make_model("plain")
    state, read = cut(model, images[0]), output_of(model, 0)
    noise = torch.randn(2, *state.tokens.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    vanilla = cdam_scores(state, read)
    torch.testing.assert_close(smooth_scores_of_block_input(state, read, 0 * noise), vanilla, rtol=1e-10, atol=1e-12)
    moved = smooth_scores_of_block_input(state, read, 0.3 * noise)
    assert not torch.allclose(moved, smooth_cdam_scores(state, read, 0.3 * noise), rtol=1e-2)
