"""The closed form against gradients through the whole model, for every kind of vision transformer that timm builds."""

import re

import pytest
import timm
import torch
from captum.attr import LayerGradientXActivation
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from vit_kinds import AUTOGRAD, CLOSED, KINDS

from lidc_cdam.backbones import BACKBONES, build_backbone
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain import Concept, Contrast
from lidc_cdam.explain.by_autograd import ByAutograd
from lidc_cdam.explain.cdam import cdam, decompose, integrated_cdam, method_used, obstacle, smooth_cdam
from lidc_cdam.explain.closed_form import ClosedForm, Projections, Row, why_not
from lidc_cdam.explain.last_block import LastBlock
from lidc_cdam.explain.noise import Noise
from lidc_cdam.explain.targets import SIMILARITIES
from lidc_cdam.model import NoduleModel

EXACT, SINGLE = 1e-12, 1e-5
"""Largest error allowed, relative to the largest score, in double and single precision."""


def through_the_whole_model(model, images, read=lambda model, latents: model.head(latents)):
    """sum_j T_ij df_c/dT_ij by one backward pass per readout through the model as it stands, nothing cut."""
    caught = []
    handle = model.backbone.blocks[-1].norm1.register_forward_hook(lambda module, given, output: caught.append(output))
    readings = read(model, model.embed(images))
    handle.remove()
    gradients = [torch.autograd.grad(column.sum(), caught[0], retain_graph=True)[0] for column in readings.T]
    scores = torch.stack([(caught[0] * gradient).sum(-1) for gradient in gradients], 1)
    return scores[..., model.backbone.num_prefix_tokens :].detach()


def error(found, expected):
    """Largest difference, relative to the largest score."""
    assert found.shape == expected.shape
    assert expected.abs().max() > 0
    return float((found - expected).abs().max() / expected.abs().max())


def forms(model, images):
    """The same estimators twice: in closed form and by autograd."""
    cut = LastBlock(model)
    entry = cut.enter(images)
    assert why_not(cut, entry) is None
    outputs = len(model.targets)
    return ClosedForm(cut, entry, model.head, outputs), ByAutograd(cut, entry, model.head)


# --- Every kind of model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_maps_are_the_definition_through_the_whole_model(make_model, make_images, kind):
    model = make_model(**KINDS[kind])
    images = make_images(model, 2)
    expected = through_the_whole_model(model, images)
    assert error(cdam(model, images).flatten(2), expected) < EXACT
    single = cdam(model.float(), images.float()).double()
    assert error(single.flatten(2), expected) < SINGLE


@pytest.mark.parametrize("kind", CLOSED)
def test_where_the_closed_form_holds_it_is_used(make_model, kind):
    model = make_model(**CLOSED[kind])
    assert obstacle(model) is None
    assert method_used(model) == "closed form"


@pytest.mark.parametrize("kind", AUTOGRAD)
def test_where_it_does_not_the_reason_is_given(make_model, make_images, kind):
    options, reason = AUTOGRAD[kind]
    model = make_model(**options)
    assert reason in obstacle(model)
    assert method_used(model) == "autograd"
    with pytest.raises(LidcCdamError, match=f"Only maps with a closed form can be decomposed, .*{reason}.*--method"):
        decompose(model, make_images(model, 1))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", ["plain", "eva", "rotary"])
def test_fused_attention_or_not(make_model, make_images, kind, fused):
    model = make_model(**KINDS[kind])
    for block in model.backbone.blocks:
        block.attn.fused_attn = fused
    images = make_images(model, 2)
    assert error(cdam(model, images).flatten(2), through_the_whole_model(model, images)) < EXACT
    assert all(block.attn.fused_attn is fused for block in model.backbone.blocks)


def test_numbers_have_the_last_word(model, make_images):
    """A hook that halves what attention returns is seen by no look at the modules."""
    images = make_images(model, 2)
    handle = model.backbone.blocks[-1].attn.register_forward_hook(lambda module, given, output: output / 2)
    assert "something else" in obstacle(model)
    assert error(cdam(model, images).flatten(2), through_the_whole_model(model, images)) < EXACT
    handle.remove()
    assert obstacle(model) is None


def test_another_linear_layer_is_not_taken_for_plain(model, make_images):
    class Doubled(nn.Linear):
        def forward(self, tokens):
            return 2 * super().forward(tokens)

    attention = model.backbone.blocks[-1].attn
    attention.qkv.__class__ = Doubled
    assert "`qkv`, a Doubled" in obstacle(model)
    images = make_images(model, 2)
    assert error(cdam(model, images).flatten(2), through_the_whole_model(model, images)) < EXACT


def test_other_sizes_than_the_models_where_it_takes_them(make_model):
    model = make_model(dynamic_img_size=True)
    images = torch.randn(2, 3, 24, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    maps = cdam(model, images)
    assert maps.shape == (2, 3, 6, 8)
    assert error(maps.flatten(2), through_the_whole_model(model, images)) < EXACT
    with pytest.raises(
        LidcCdamError, match=r"a height that 4 divides and a width that 4 divides, .* got \[2, 3, 24, 30"
    ):
        cdam(model, images[..., :30])


def shallow(name):
    """A backbone of the table with two blocks and few patches: its own width, heads, registers and layer scale."""
    row = BACKBONES[name]
    size = 4 * (row.arguments.get("patch_size") or int(re.search(r"patch(\d+)", row.architecture)[1]))
    arguments = dict(row.arguments) | {"depth": 2, "img_size": size}
    return timm.create_model(row.architecture, num_classes=0, **arguments)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone(name):
    torch.manual_seed(0)
    model = NoduleModel(shallow(name), ("malignancy", "margin"), "mlp").double().eval()
    images = torch.randn(1, 3, *model.image_size, dtype=torch.float64)
    expected = through_the_whole_model(model, images)
    assert method_used(model) == "closed form"
    assert error(cdam(model, images).flatten(2), expected) < EXACT
    assert error(cdam(model.float(), images.float()).flatten(2).double(), expected) < SINGLE


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_in_full(name):
    torch.manual_seed(0)
    model = NoduleModel(build_backbone(name), ("malignancy", "margin"), "mlp").eval()
    images = torch.randn(1, 3, *model.image_size)
    assert error(cdam(model, images).flatten(2), through_the_whole_model(model, images)) < SINGLE


# --- Every estimator and target ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLOSED)
def test_every_estimator_equals_its_definition_on_all_tokens(make_model, make_images, kind):
    """[CLS] and registers too: its own row moves the query."""
    model = make_model(**CLOSED[kind])
    closed, definition = forms(model, make_images(model))
    for antithetic in (False, True):
        noise = Noise(4, 0.3, 5, antithetic)
        assert error(closed.smooth(noise), definition.smooth(noise)) < EXACT
    assert error(closed.scores(), definition.scores()) < EXACT
    assert error(closed.integrated(3), definition.integrated(3)) < EXACT


@pytest.mark.parametrize("budget", [1, 300, 2**21])
def test_the_parts_of_the_work_change_nothing(model, make_images, budget, monkeypatch):
    closed, definition = forms(model, make_images(model))
    monkeypatch.setattr("lidc_cdam.explain.closed_form.BUDGET", budget)
    monkeypatch.setattr("lidc_cdam.explain.closed_form.TAIL_ROWS", budget)
    assert error(closed.integrated(7), definition.integrated(7)) < EXACT
    assert error(closed.smooth(Noise(5)), definition.smooth(Noise(5))) < EXACT


def test_many_targets_take_the_other_way_through_the_values(model, make_images):
    """With more readouts than a head is wide, W_V T is computed once."""
    model.targets = tuple(f"output {index}" for index in range(40))
    model.head = nn.Linear(12, 40).double()
    closed, definition = forms(model, make_images(model))
    assert error(closed.scores(), definition.scores()) < EXACT
    value, shift = closed.paths()
    assert error((value + shift).sum(2), definition.scores()) < EXACT


@pytest.mark.parametrize("method", [cdam, smooth_cdam, integrated_cdam])
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("kind", ["registers", "qk_norm", "mean_pooling"])
def test_concepts(make_model, make_images, kind, similarity, method):
    model = make_model(**KINDS[kind])
    images = make_images(model, 4)
    concept = Concept.from_images(model, images[2:], "two", similarity)
    torch.testing.assert_close(concept.latent, model.embed(images[2:]).mean(0).detach())
    same = {"dot": lambda z, c: z @ c, "cosine": nn.CosineSimilarity(), "distance": lambda z, c: -(z - c).norm(dim=1)}
    expected = through_the_whole_model(
        model, images[:2], lambda model, latents: same[similarity](latents, concept.latent)[:, None]
    )
    options = {cdam: {}, smooth_cdam: {"n": 1, "sigma": 0.0}, integrated_cdam: {"n": 1}}[method]
    assert error(method(model, images[:2], concept, **options).flatten(2), expected) < EXACT


@pytest.mark.parametrize("kind", ["plain", "qk_norm"])
def test_single_precision_of_every_target_and_estimator(make_model, make_images, kind):
    model = make_model(**KINDS[kind])
    images = make_images(model)
    concept = Concept.from_images(model, images, "all", "cosine")
    targets = ["margin", concept, Contrast({"diameter": 2, "margin": -0.5})]
    for method, options in ((cdam, {}), (smooth_cdam, {"n": 3}), (integrated_cdam, {"n": 3})):
        expected = method(model.double(), images, targets, **options)
        single = method(model.float(), images.float(), targets, **options)
        assert single.dtype is torch.float32
        for index in range(3):
            assert error(single[:, index].double(), expected[:, index]) < SINGLE


@pytest.mark.parametrize("kind", ["plain", "mlp_head", "rotary"])
def test_bfloat16(make_model, make_images, kind):
    model = make_model(**KINDS[kind])
    images = make_images(model)
    expected = cdam(model, images)
    maps = cdam(model.bfloat16(), images.bfloat16())
    assert torch.isfinite(maps).all()
    assert torch.corrcoef(torch.stack([maps.flatten().double(), expected.flatten()]))[0, 1] > 0.95


def test_autocast_changes_the_forward_pass_alone(make_model, make_images):
    model = make_model(**KINDS["mlp_head"]).float()
    images = make_images(model).float()
    expected = cdam(model, images)
    with torch.autocast("cpu", torch.bfloat16):
        maps = cdam(model, images)
    assert maps.dtype is torch.float32
    assert 0 < error(maps, expected) < 0.1


@pytest.mark.parametrize("kind", ["registers", "layer_scale", "rotary", "distilled"])
def test_captum_agrees(make_model, make_images, kind):
    model = make_model(**KINDS[kind])
    images = make_images(model)
    maps = cdam(model, images)
    foreign = LayerGradientXActivation(model, model.backbone.blocks[-1].norm1)
    for target in range(3):
        expected = foreign.attribute(images, target=target).sum(-1)[:, model.backbone.num_prefix_tokens :]
        assert error(maps[:, target].flatten(1), expected.detach()) < EXACT


# --- What follows from it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLOSED)
def test_the_decomposition_adds_up(make_model, make_images, kind):
    model = make_model(**CLOSED[kind])
    images = make_images(model, 2)
    targets = ["margin", Contrast({"margin": 1, "diameter": -2})]
    parts = decompose(model, images, targets)
    heads = model.backbone.blocks[-1].attn.num_heads
    assert parts.value.shape == (2, 2, heads, *model.backbone.patch_embed.grid_size)
    assert error(parts.maps, cdam(model, images, targets)) < EXACT
    assert parts.value.abs().max() > 1e-3
    assert parts.shift.abs().max() > 1e-3


def test_the_value_path_is_what_is_left_when_attention_is_held(model, make_images):
    """With the softmax's weights taken as constants, autograd gives the first path and nothing of the second."""
    images = make_images(model, 1)
    attention = model.backbone.blocks[-1].attn
    attention.fused_attn = False
    softmax = torch.Tensor.softmax
    parts = decompose(model, images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "softmax", lambda self, *given, **named: softmax(self, *given, **named).detach())
        expected = through_the_whole_model(model, images)
    assert error(parts.value.sum(2).flatten(2), expected) < EXACT


def test_integrated_is_complete(make_model, make_images):
    """The sum over all tokens tends to f(T) - f(0); a right Riemann sum's error falls as 1 / n."""
    model = make_model(reg_tokens=2, init_values=0.3, head="mlp")
    closed, _ = forms(model, make_images(model))
    cut = LastBlock(model)
    entry = cut.enter(make_images(model))
    with torch.no_grad():
        rise = entry.outputs - cut.tail(torch.zeros_like(entry.tokens), entry)
    errors = [(closed.integrated(n).sum(2) - rise).abs().max() for n in (50, 400)]
    assert errors[1] < errors[0] / 6
    assert errors[1] < 0.02 * rise.abs().max()


@pytest.mark.parametrize("muted", [(0, 1, 2), (1,)])
def test_zero_attention_implies_zero_score_head_by_head(model, make_images, muted):
    """Eq. 9: a token that a head gives no weight has no score through that head, whatever its values are."""
    cut = LastBlock(model)
    entry = cut.enter(make_images(model, 1))
    layer = Projections.of(cut.attention)
    query = torch.einsum("hdc,c->hd", layer.query, entry.tokens[0, 0]) + layer.query_bias
    pulls = torch.einsum("hd,hdc->hc", query, layer.key)
    wanted = torch.tensor([[-4000.0 if head in muted else 0.0] for head in range(3)], dtype=torch.float64)
    entry.tokens[0, 5] = torch.linalg.lstsq(pulls, wanted).solution[:, 0]
    row = Row.of(layer, entry.tokens, torch.ones(1, dtype=torch.float64))
    value, shift = ClosedForm(cut, entry, model.head, 3).paths()
    for head in range(3):
        assert (row.weights[0, 0, head, 5] == 0) == (head in muted)
        for path in (value, shift):
            assert (path[0, :, head, 5] == 0).all() == (head in muted)
    gradients = cut.gradients(entry.tokens, entry, model.head)
    assert ((gradients[:, 0, 5] * entry.tokens[0, 5]).sum(-1) == 0).all() == (len(muted) == 3)


@st.composite
def worlds(draw):
    """A random small vision transformer and two images."""
    heads = draw(st.integers(1, 3))
    options = {
        "embed_dim": heads * draw(st.integers(2, 5)),
        "num_heads": heads,
        "depth": draw(st.integers(1, 2)),
        "reg_tokens": draw(st.integers(0, 2)),
        "init_values": draw(st.sampled_from([None, 0.3])),
        "qkv_bias": draw(st.booleans()),
        "qk_norm": draw(st.booleans()),
        "img_size": (4 * draw(st.integers(1, 3)), 4 * draw(st.integers(1, 3))),
        "seed": draw(st.integers(0, 2**16)),
    }
    method = draw(st.sampled_from([(cdam, {}), (smooth_cdam, {"n": 2}), (integrated_cdam, {"n": 2})]))
    return options, method


@settings(max_examples=25, deadline=None)
@given(world=worlds(), factor=st.floats(-3, 3), order=st.permutations(range(3)))
def test_properties(make_model_once, world, factor, order):
    """Linear in the head, equivariant to the order of targets and images, blind to a bias."""
    options, (method, settings_) = world
    model = make_model_once(**options)
    images = torch.randn(2, 3, *model.image_size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    maps = method(model, images, **settings_)
    scale = maps.abs().max()

    def close(found, expected):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=float(1e-11 * (1 + scale)))

    close(method(model, images, [model.targets[index] for index in order], **settings_), maps[:, order])
    close(method(model, images.flip(0), **settings_), maps.flip(0))
    contrast = Contrast({"margin": factor, "diameter": 1})
    close(method(model, images, contrast, **settings_)[:, 0], factor * maps[:, 1] + maps[:, 2])
    with torch.no_grad():
        model.head.weight[0] = factor * model.head.weight[1] + model.head.weight[2]
        model.head.bias.add_(7)
    close(method(model, images, "malignancy", **settings_)[:, 0], factor * maps[:, 1] + maps[:, 2])
