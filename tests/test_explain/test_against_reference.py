"""The fast explanation code against the slow literal twins, and the twins against each other."""

from collections.abc import Callable

import pytest
import torch
from reference import (
    Cut,
    PlainModel,
    Read,
    attention_scores,
    attention_weights,
    cdam_scores,
    cdam_scores_by_differences,
    closed_form,
    cut,
    head_projection,
    head_rows,
    integrated_cdam_scores,
    latent_of,
    output_of,
    random_images,
    random_vit,
    randomise,
    similarity_to,
    smooth_cdam_scores,
    smooth_cdam_sigma,
)
from torch import Tensor, nn

from lidc_cdam.explain import explain
from lidc_cdam.explain.cdam import cdam, integrated_cdam, smooth_cdam
from lidc_cdam.model import NoduleModel

VARIANTS = {
    "plain": {},
    "registers": {"reg_tokens": 2},
    "registers_no_embed_class": {"reg_tokens": 3, "no_embed_class": True},
    "layer_scale": {"init_values": 0.1},
    "three_heads_wide": {"num_heads": 4, "image_size": (16, 24)},
    "no_qkv_bias": {"qkv_bias": False},
    "one_block": {"depth": 1},
    "qk_norm": {"qk_norm": True},
    "mean_pooling": {"global_pool": "avg"},
    "mean_pooling_registers": {"global_pool": "avg", "reg_tokens": 2, "qk_norm": True, "init_values": 0.1},
}
"""Options of timm's VisionTransformer, each a way in which backbones differ."""
CLOSED = [name for name, options in VARIANTS.items() if "qk_norm" not in options and "global_pool" not in options]
"""Variants on which the closed form holds."""


def make_head(kind: str, seed: int, outputs: int = 3) -> nn.Module:
    if kind == "linear":
        return randomise(nn.Linear(16, outputs), seed)
    return randomise(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, outputs)), seed)


def make_model(variant: str, head: str = "linear", seed: int = 0) -> tuple[PlainModel, Tensor]:
    options = dict(VARIANTS[variant])
    size = options.get("image_size", (16, 16))
    return PlainModel(random_vit(seed, **options), make_head(head, seed + 1)), random_images(2, seed + 2, size)


# --- The twins themselves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_literal_tail_gives_the_models_output(variant: str) -> None:
    model, images = make_model(variant, "mlp")
    state = cut(model, images[0])
    with torch.no_grad():
        expected = model(images)[0]
        latent = latent_of(state, state.tokens)
        found = torch.stack([output_of(model, target)(latent) for target in range(3)])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variant", ["plain", "registers", "qk_norm", "mean_pooling_registers"])
def test_gradient_and_differences_agree(variant: str) -> None:
    model, images = make_model(variant, "mlp")
    state = cut(model, images[0])
    by_gradient = cdam_scores(state, output_of(model, 1))
    by_differences = cdam_scores_by_differences(state, output_of(model, 1))
    assert by_gradient.abs().max() > 1e-3
    torch.testing.assert_close(by_differences, by_gradient, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("variant", CLOSED)
def test_the_closed_form_equals_the_definition(variant: str) -> None:
    model, images = make_model(variant, "mlp")
    state = cut(model, images[1])
    for target in range(2):
        form = closed_form(state, output_of(model, target))
        expected = cdam_scores(state, output_of(model, target))[1:]
        found = (form.value + form.shift).sum(dim=0)[1:]
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("variant", ["qk_norm", "mean_pooling"])
def test_the_closed_form_fails_where_the_text_says_so(variant: str) -> None:
    model, images = make_model(variant)
    state = cut(model, images[0])
    form = closed_form(state, output_of(model, 0))
    difference = (form.value + form.shift).sum(dim=0)[1:] - cdam_scores(state, output_of(model, 0))[1:]
    assert difference.abs().max() > 1e-3


def test_integrated_scores_of_all_tokens_add_up_to_the_change_of_the_output() -> None:
    model, images = make_model("registers", "mlp")
    state, read = cut(model, images[0]), output_of(model, 0)
    with torch.no_grad():
        ends = [read(latent_of(state, share * state.tokens)) for share in (1.0, 0.0)]
    gaps = [abs(integrated_cdam_scores(state, read, n).sum() - (ends[0] - ends[1])) for n in (5, 40)]
    assert abs(ends[0] - ends[1]) > 0.1
    assert gaps[1] < 0.1 * abs(ends[0] - ends[1])
    assert gaps[1] < gaps[0] / 4


def test_concept_scores_follow_the_same_closed_form() -> None:
    """Eq. 3 and 4: the similarity of latents in place of an output."""
    model, images = make_model("registers")
    with torch.no_grad():
        examples = list(model.backbone(random_images(3, 9)))
    state, read = cut(model, images[0]), similarity_to(examples)
    form, expected = closed_form(state, read), cdam_scores(state, read)
    torch.testing.assert_close((form.value + form.shift).sum(dim=0)[1:], expected[1:], rtol=1e-9, atol=1e-11)


def test_attention_scores_are_the_mean_of_timms_softmax_rows() -> None:
    model, images = make_model("qk_norm")
    state, attn = cut(model, images[0]), model.backbone.blocks[-1].attn
    with torch.no_grad():
        qkv = attn.qkv(state.tokens).reshape(len(state.tokens), 3, attn.num_heads, attn.head_dim)
        query, key = attn.q_norm(qkv[:, 0]), attn.k_norm(qkv[:, 1])
        expected = (torch.einsum("hd,nhd->hn", query[0], key) / attn.head_dim**0.5).softmax(dim=1).mean(dim=0)
    torch.testing.assert_close(attention_scores(state), expected)


def token_without_attention(state: object, token: int, heads: list[int]) -> Tensor:
    """T with one row moved so that [CLS] gives it no attention at all in the named heads."""
    attn = state.block.attn
    pulls = []
    for head in range(attn.num_heads):
        query = head_rows(attn, state.tokens, 0, head)[0]
        pulls.append(head_projection(attn, 1, head)[0].T @ query)
    wanted = torch.tensor([-4000.0 if head in heads else 0.0 for head in range(len(pulls))], dtype=torch.float64)
    tokens = state.tokens.clone()
    tokens[token] = torch.linalg.lstsq(torch.stack(pulls), wanted[:, None]).solution[:, 0]
    return tokens.detach()


@pytest.mark.parametrize("heads", [[0, 1], [0]])
def test_zero_attention_implies_zero_score_head_by_head(heads: list[int]) -> None:
    """Eq. 9, with the definition (autograd), not only with the closed form."""
    model, images = make_model("plain", "mlp")
    state = cut(model, images[0])
    tokens = token_without_attention(state, 5, heads)
    moved = type(state)(state.model, state.residual, tokens, state.grid)
    for head in heads:
        assert attention_weights(state.block.attn, tokens, head, 0)[5] == 0
    for target in range(3):
        form = closed_form(moved, output_of(model, target))
        assert all(form.value[head, 5] == 0 and form.shift[head, 5] == 0 for head in heads)
        score = cdam_scores(moved, output_of(model, target))[5]
        torch.testing.assert_close(score, (form.value + form.shift).sum(dim=0)[5], rtol=1e-9, atol=1e-12)
        assert (score == 0) == (len(heads) == 2)


def test_muting_a_token_moves_no_weight_of_the_other_heads() -> None:
    model, images = make_model("plain")
    state, read = cut(model, images[0]), output_of(model, 0)
    form, muted = closed_form(state, read), closed_form(state, read, mute={0: [3, 7]})
    assert torch.equal(muted.attention[1], form.attention[1])
    assert (muted.value[0, [3, 7]] == 0).all()
    assert (muted.shift[0, [3, 7]] == 0).all()
    torch.testing.assert_close(muted.attention.sum(dim=1), torch.ones(2, dtype=torch.float64))


# --- The fast code ----------------------------------------------------------------------------------------------------

TARGETS = ("malignancy", "spiculation", "diameter")


def make_nodule_model(variant: str, head: str = "linear", seed: int = 0) -> tuple[NoduleModel, Tensor]:
    options = dict(VARIANTS[variant])
    size = options.get("image_size", (16, 16))
    model = NoduleModel(random_vit(seed, **options), TARGETS, head)
    randomise(model.head, seed + 1)
    return model.double().eval(), random_images(2, seed + 2, size)


def twin_maps(model: NoduleModel, images: Tensor, scores: Callable[[Cut, Read], Tensor]) -> Tensor:
    """Maps [image target row column] of the twin, one image and one target at a time."""
    maps = []
    for image in images:
        state = cut(model, image)
        maps.append(torch.stack([state.on_grid(scores(state, output_of(model, c))) for c in range(len(TARGETS))]))
    return torch.stack(maps).detach()


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_cdam_equals_its_twin(variant: str, head: str) -> None:
    model, images = make_nodule_model(variant, head)
    expected = twin_maps(model, images, cdam_scores)
    assert_same(cdam(model, images), expected)
    assert_same(explain(model, images, ["diameter", "malignancy"]), expected[:, [2, 0]])


@pytest.mark.parametrize("variant", ["plain", "registers", "qk_norm", "mean_pooling", "layer_scale"])
def test_integrated_cdam_equals_its_twin(variant: str) -> None:
    model, images = make_nodule_model(variant, "mlp")
    expected = twin_maps(model, images, lambda state, read: integrated_cdam_scores(state, read, 3))
    assert_same(integrated_cdam(model, images, n=3), expected)


@pytest.mark.parametrize("sigma", [None, 0.3])
@pytest.mark.parametrize("variant", ["plain", "registers", "mean_pooling"])
def test_smooth_cdam_equals_its_twin(variant: str, sigma: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []
    draw = torch.randn

    def recorded(*arguments: object, **named: object) -> Tensor:
        drawn.append(draw(*arguments, **named))
        return drawn[-1]

    model, images = make_nodule_model(variant, "mlp")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", recorded)
        found = smooth_cdam(model, images, n=3, sigma=sigma, seed=5)

    def expected(state: Cut, read: Read) -> Tensor:
        noise = torch.cat([part.double().flatten() for part in drawn]).reshape(3, *state.tokens.shape)
        return smooth_cdam_scores(state, read, (smooth_cdam_sigma(state) if sigma is None else sigma) * noise)

    assert_same(found, twin_maps(model, images, expected))


def test_the_noise_vanishes_with_sigma_and_repeats_with_its_seed() -> None:
    model, images = make_nodule_model("plain")
    plain = cdam(model, images)
    torch.testing.assert_close(smooth_cdam(model, images, n=2, sigma=0.0), plain)
    assert not torch.allclose(smooth_cdam(model, images, n=2), plain, rtol=1e-3)
    torch.testing.assert_close(smooth_cdam(model, images, seed=1, n=2), smooth_cdam(model, images, seed=1, n=2))


@pytest.mark.parametrize("method", ["cdam", "smooth_cdam", "integrated_cdam"])
def test_an_images_map_does_not_depend_on_its_batch(method: str) -> None:
    model, images = make_nodule_model("registers", "mlp")
    together, options = explain(model, images, method=method), {"method": method, "batch_size": 1}
    torch.testing.assert_close(explain(model, images, **options), together, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(explain(model, images.flip(0), **options).flip(0), together, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("method", ["cdam", "smooth_cdam", "integrated_cdam"])
def test_maps_are_linear_in_a_linear_heads_row_and_keep_its_sign(method: str) -> None:
    model, images = make_nodule_model("plain")
    before = explain(model, images, method=method)
    with torch.no_grad():
        model.head.weight[1] *= -2
        model.head.bias += 7
    after = explain(model, images, method=method)
    torch.testing.assert_close(after[:, 1], -2 * before[:, 1], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(after[:, [0, 2]], before[:, [0, 2]], rtol=1e-8, atol=1e-9)


def test_single_precision_agrees_with_the_twin() -> None:
    model, images = make_nodule_model("registers", "mlp")
    expected = twin_maps(model, images, cdam_scores)
    found = cdam(model.float(), images.float()).double()
    assert float((found - expected).abs().max() / expected.abs().max()) < 2e-5


def test_without_a_query_only_the_value_path_is_left() -> None:
    model, images = make_nodule_model("one_block")
    block = model.backbone.blocks[-1]
    # A query of zero gives uniform attention that no key can shift.
    with torch.no_grad():
        block.attn.qkv.weight[:16] = 0
        block.attn.qkv.bias[:16] = 0
    state = cut(model, images[0])
    form = closed_form(state, output_of(model, 0))
    assert (form.shift == 0).all()
    assert_same(cdam(model, images[:1], "malignancy")[0, 0], state.on_grid(form.value.sum(dim=0)))


@pytest.mark.parametrize("variant", ["plain", "registers"])
def test_a_token_without_attention_has_no_score(variant: str) -> None:
    """Eq. 9: with keys so large that each head looks at one token, every other patch scores exactly zero."""
    model, images = make_nodule_model(variant, "mlp")
    attn = model.backbone.blocks[-1].attn
    with torch.no_grad():
        attn.qkv.weight[16:32] *= 1e5
    seen = []
    for image in images:
        state = cut(model, image)
        weights = [attention_weights(attn, state.tokens, head, 0) for head in range(attn.num_heads)]
        seen.append(state.on_grid(torch.stack(weights).sum(dim=0)) > 0)
    maps = cdam(model, images)
    unseen = ~torch.stack(seen)[:, None].expand_as(maps)
    assert unseen.any()
    assert (maps[unseen] == 0).all()
