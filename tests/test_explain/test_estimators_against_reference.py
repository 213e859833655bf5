"""The estimators beside CDAM: the twins against hand-made cases and foreign oracles, `explain` against the twins."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients
from reference import Read, attention_scores, cut, output_of, random_images, random_vit, randomise
from reference_estimators import (
    LIBRA,
    Rules,
    Trace,
    attention,
    attention_relevance,
    gradcam,
    held_gelu,
    held_layer_norm,
    image_gradient,
    input_gradient,
    integrated_gradients,
    legrad,
    libra_completeness,
    libragrad,
    libragrad_of_pixels,
    mean_of_heads,
    partial_lrp,
    positive,
    relevance_propagation,
    rolled_out,
    rollout,
    smoothgrad,
    smoothgrad_sigma,
    summed_over_patches,
    trace,
    z_rule,
)
from torch import Tensor

from lidc_cdam.explain import EXPLAINERS, explain
from lidc_cdam.model import NoduleModel

TARGETS = ("malignancy", "spiculation", "diameter")
VARIANTS = {
    "plain": {},
    "registers": {"reg_tokens": 2},
    "registers_no_embed_class": {"reg_tokens": 3, "no_embed_class": True, "init_values": 0.1},
    "not_square": {"num_heads": 4, "image_size": (8, 12)},
    "no_qkv_bias": {"qkv_bias": False},
    "one_block": {"depth": 1},
    "three_blocks": {"depth": 3, "image_size": (8, 8)},
    "qk_norm": {"qk_norm": True},
    "pre_norm": {"pre_norm": True},
    "fc_norm": {"fc_norm": True},
}
"""Options of timm's VisionTransformer; all read [CLS]."""


def make_model(variant: str = "plain", head: str = "mlp", seed: int = 0) -> tuple[NoduleModel, Tensor]:
    """A model whose every parameter is random, and two images."""
    options = dict(VARIANTS[variant])
    size = options.get("image_size", (16, 16))
    model = NoduleModel(random_vit(seed, **options), TARGETS, head)
    randomise(model.head, seed + 1)
    return model.double().eval(), random_images(2, seed + 2, size)


def assert_same(found: Tensor, expected: Tensor, rtol: float = 1e-10) -> None:
    """To a share of the largest score."""
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=rtol * float(expected.abs().max()))


# --- The twins themselves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", [Rules(), LIBRA], ids=["plain", "libra"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_literal_transformer_gives_timms_latent(variant: str, rules: Rules) -> None:
    model, images = make_model(variant)
    run = trace(model, images[0], rules)
    with torch.no_grad():
        assert_same(run.latent.detach(), model.embed(images[:1])[0])
        assert_same(output_of(model, 1)(run.latent), model(images[:1])[0, 1])
    for weights in run.attention:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones_like(weights[..., 0]))


def test_the_trace_agrees_with_the_model_cut_open() -> None:
    model, images = make_model("registers")
    run, state = trace(model, images[0]), cut(model, images[0])
    assert_same(run.tokens[-1].detach(), state.tokens)
    assert_same(attention(model, images[0]), state.on_grid(attention_scores(state)))


def test_without_queries_attention_is_even() -> None:
    model, images = make_model("registers")
    qkv = model.backbone.blocks[-1].attn.qkv
    with torch.no_grad():
        qkv.weight[:16], qkv.bias[:16] = 0, 0
    torch.testing.assert_close(attention(model, images[0]), torch.full((4, 4), 1 / 19, dtype=torch.float64))


def test_rollout_of_two_hand_made_blocks() -> None:
    """Heads (1 0; .4 .6) and (0 1; 0 1) have the mean (.5 .5; .2 .8), which with I is (.75 .25; .1 .9)."""
    heads = torch.tensor([[[1.0, 0.0], [0.4, 0.6]], [[0.0, 1.0], [0.0, 1.0]]])
    torch.testing.assert_close(rolled_out([heads]), torch.tensor([[0.75, 0.25], [0.1, 0.9]]))
    torch.testing.assert_close(rolled_out([heads, heads]), torch.tensor([[0.5875, 0.4125], [0.165, 0.835]]))
    # The second block comes from the left: its [CLS] row that looks at token 1 alone hands on token 1's first row.
    second = torch.tensor([[[-1.0, 2.0], [0.0, 1.0]]])
    torch.testing.assert_close(rolled_out([heads, second])[0], torch.tensor([0.1, 0.9]))


def test_rollout_shares_one_among_all_tokens() -> None:
    model, images = make_model("three_blocks")
    found = rollout(model, images[0])
    assert found.min() > 0
    assert 0.3 < float(found.sum()) < 1


@pytest.mark.parametrize("variant", ["plain", "not_square"])
def test_gradients_of_pixels_are_captums(variant: str) -> None:
    model, images = make_model(variant)
    image, read = images[0], output_of(model, 2)
    expected = InputXGradient(model).attribute(images[:1].clone().requires_grad_(), target=2)[0].sum(0)
    assert_same(input_gradient(model, image, read), expected.detach())
    black = torch.full_like(image, -1.5)
    oracle = IntegratedGradients(model)
    expected = oracle.attribute(images[:1], black[None], target=2, n_steps=4, method="riemann_right")[0].sum(0)
    assert_same(integrated_gradients(model, image, read, black, 4), expected)


def test_integrated_gradients_become_complete() -> None:
    model, images = make_model("one_block")
    image, read = images[0], output_of(model, 0)
    black = torch.full_like(image, float(image.min()))
    with torch.no_grad():
        difference = float(read(trace(model, image).latent) - read(trace(model, black).latent))
    errors = [float(integrated_gradients(model, image, read, black, n).sum()) - difference for n in (4, 16)]
    assert abs(errors[1]) < 0.5 * abs(errors[0])
    assert abs(errors[1]) < 0.2 * abs(difference)


def test_smoothgrad_is_the_mean_of_the_gradients_around_the_image() -> None:
    model, images = make_model("one_block")
    image, read = images[0], output_of(model, 1)
    noise = torch.stack([images[1], -images[1]])
    both = image_gradient(model, image + images[1], read) + image_gradient(model, image - images[1], read)
    assert_same(smoothgrad(model, image, read, noise), both.sum(0) / 2)
    assert_same(smoothgrad(model, image, read, 0 * noise), image_gradient(model, image, read).sum(0))
    assert smoothgrad_sigma(torch.tensor([[[-2.0, 0.0], [1.0, 8.0]]])) == pytest.approx(1.5)


def test_pixels_are_summed_over_patches() -> None:
    pixels = torch.tensor([[1.0, 2.0, 0.0, 5.0], [3.0, -4.0, 0.0, 0.0]])
    torch.testing.assert_close(summed_over_patches(pixels, (1, 2)), torch.tensor([[2.0, 5.0]]))


@pytest.mark.parametrize("variant", ["plain", "registers"])
def test_gradcam_is_the_pytorch_packages_before_its_clipping(variant: str) -> None:
    package = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    model, images = make_model(variant)
    prefix = model.backbone.num_prefix_tokens

    def to_channels_first(tokens: Tensor) -> Tensor:
        return tokens[:, prefix:].reshape(len(tokens), 4, 4, -1).permute(0, 3, 1, 2)

    with package.GradCAM(model, [model.backbone.blocks[-1].norm1], reshape_transform=to_channels_first) as oracle:
        outputs = oracle.activations_and_grads(images[:1])
        targets.ClassifierOutputTarget(1)(outputs[0]).backward()
        activations, slopes = (
            parts[0].numpy()
            for parts in (oracle.activations_and_grads.activations, oracle.activations_and_grads.gradients)
        )
        raw = oracle.get_cam_image(images[:1], oracle.target_layers[0], None, activations, slopes, False)[0]
    signed = gradcam(model, images[0], output_of(model, 1), signed=True)
    assert_same(signed, torch.from_numpy(raw))
    assert signed.min() < 0
    assert_same(gradcam(model, images[0], output_of(model, 1)), signed.clamp(min=0))


def attention_slopes(model: NoduleModel, image: Tensor, block: int, output: Callable[[Trace], Tensor]) -> Tensor:
    """The output's derivative by every attention weight of a block, by central differences."""
    with torch.no_grad():
        slopes = torch.zeros_like(trace(model, image).attention[block])
        for place in range(slopes.numel()):
            values = []
            for step in (1e-4, -1e-4):
                calls = iter(range(len(model.backbone.blocks)))

                def moved(weights: Tensor, step: float = step, calls: object = calls, place: int = place) -> Tensor:
                    if next(calls) == block:
                        weights = weights.clone()
                        weights.view(-1)[place] += step
                    return weights

                values.append(output(trace(model, image, Rules(attention=moved))))
            slopes.view(-1)[place] = (values[0] - values[1]) / 2e-4
    return slopes


SMALL = {"image_size": (4, 8), "reg_tokens": 1}
"""Four tokens: [CLS], a register, two patches."""


def small_model() -> tuple[NoduleModel, Tensor]:
    model = NoduleModel(random_vit(3, **SMALL), TARGETS, "linear")
    randomise(model.head, 4)
    return model.double().eval(), random_images(1, 5, (4, 8))[0]


def test_relevance_propagation_without_any_gradient() -> None:
    """(I + A_2) (I + A_1) with A = mean_h (dA * A)^+, the slopes taken by differences."""
    model, image = small_model()
    run, read = trace(model, image), output_of(model, 1)
    relevance = torch.eye(4, dtype=torch.float64)
    for block in range(2):
        slopes = attention_slopes(model, image, block, lambda run: read(run.latent))
        mean = (slopes * run.attention[block].detach()).clamp(min=0).mean(0)
        relevance = (torch.eye(4, dtype=torch.float64) + mean) @ relevance
    assert_same(relevance_propagation(model, image, read), relevance[0, 2:].reshape(1, 2), 1e-6)


def test_legrad_without_any_gradient() -> None:
    """Every block's own output, from the mean of all its tokens, by that block's attention."""
    model, image = small_model()
    maps = []
    for block in range(2):

        def output(run: Trace, block: int = block) -> Tensor:
            return model.head(model.backbone.norm(run.streams[block + 1].mean(0)))[1]

        maps.append(attention_slopes(model, image, block, output).clamp(min=0).mean((0, 1))[2:].reshape(1, 2))
    assert_same(legrad(model, image, output_of(model, 1)), (maps[0] + maps[1]) / 2, 1e-6)
    assert_same(legrad(model, image, output_of(model, 1), layers=[1]), maps[1], 1e-6)


@pytest.mark.parametrize("variant", ["plain", "registers_no_embed_class", "qk_norm", "fc_norm"])
def test_libragrad_is_complete_and_the_plain_gradient_is_not(variant: str) -> None:
    model, images = make_model(variant)
    read = output_of(model, 0)
    found, output = libra_completeness(model, images[0], read)
    assert found == pytest.approx(output, rel=1e-9)
    plain = image_gradient(model, images[0], read)
    assert float((plain - image_gradient(model, images[0], read, LIBRA)).abs().max()) > 1e-3


def test_libragrad_of_pixels_and_of_tokens_differ_by_what_the_patches_do_not_bring() -> None:
    """Without biases and positions a patch's pixels have what its token has."""
    model, images = make_model()
    with torch.no_grad():
        model.backbone.patch_embed.proj.bias.zero_()
        model.backbone.pos_embed.zero_()
    read = output_of(model, 1)
    pixels = summed_over_patches(libragrad_of_pixels(model, images[0], read), (4, 4))
    assert_same(pixels, libragrad(model, images[0], read))


def test_the_z_rule_by_hand() -> None:
    """Outputs 1*2 + 3*1 + 1 = 6 and -1*2 + 0*1 + 0 = -2; the bias keeps a sixth of the first one's relevance."""
    inputs, weight = torch.tensor([2.0, 1.0]), torch.tensor([[1.0, 3.0], [-1.0, 0.0]])
    found = z_rule(inputs, weight, torch.tensor([6.0, -2.0]), torch.tensor([12.0, 5.0]))
    torch.testing.assert_close(found, torch.tensor([2 / 6 * 12 + 5, 3 / 6 * 12]))


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("variant", ["plain", "registers_no_embed_class", "qk_norm", "fc_norm"])
def test_relevance_is_attention_times_its_gradient_at_held_gates(variant: str, head: str) -> None:
    """The z-rule, division by division, is input times the gradient at a held deviation and gate."""
    model, images = make_model(variant, head)
    run = trace(model, images[0], Rules(held_layer_norm, held_gelu))
    slope = torch.autograd.grad(output_of(model, 1)(run.latent), run.attention[-1])[0]
    expected = (run.attention[-1] * slope)[:, 0].detach()
    assert_same(attention_relevance(model, images[0], 1), expected, 1e-8)
    assert_same(partial_lrp(model, images[0], 1), run.on_grid(mean_of_heads(positive(expected))), 1e-8)


# --- The public function ----------------------------------------------------------------------------------------------

Twin = Callable[[NoduleModel, Tensor, int], Tensor]


def by_output(scores: Callable[..., Tensor], **options: object) -> Twin:
    """A twin that explains a read, as one that explains the output of an index."""

    def twin(model: NoduleModel, image: Tensor, target: int) -> Tensor:
        read: Read = output_of(model, target)
        return scores(model, image, read, **options)

    return twin


def every_target(scores: Callable[[NoduleModel, Tensor], Tensor]) -> Twin:
    """A twin that has one map for all targets."""
    return lambda model, image, target: scores(model, image)


EXACT: dict[str, tuple[str, dict[str, object], Twin]] = {
    "attention": ("attention", {}, every_target(attention)),
    "rollout": ("rollout", {}, every_target(rollout)),
    "input_gradient": ("input_gradient", {}, by_output(input_gradient)),
    "gradcam": ("gradcam", {"signed": False}, by_output(gradcam)),
    "gradcam_signed": ("gradcam", {"signed": True}, by_output(gradcam, signed=True)),
    "relevance_propagation": ("relevance_propagation", {}, by_output(relevance_propagation)),
    "partial_lrp": ("partial_lrp", {}, partial_lrp),
    "legrad": ("legrad", {}, by_output(legrad)),
}
"""Methods without draws and baselines: name, options, twin."""


def needs(name: str) -> None:
    if name not in EXPLAINERS:
        pytest.skip(f"{name} is not registered")


def twin_maps(model: NoduleModel, images: Tensor, targets: tuple[int, ...], twin: Twin) -> Tensor:
    """Maps [image target row column]."""
    return torch.stack([torch.stack([twin(model, image, target) for target in targets]) for image in images])


@pytest.mark.parametrize("variant", ["plain", "registers_no_embed_class", "not_square", "three_blocks", "qk_norm"])
@pytest.mark.parametrize("case", EXACT)
def test_estimators_equal_their_twins(case: str, variant: str) -> None:
    name, options, twin = EXACT[case]
    needs(name)
    model, images = make_model(variant)
    # Another order than the model's, and not all.
    found = explain(model, images, ["diameter", "malignancy"], method=name, resolution="native", **options)
    assert_same(found, twin_maps(model, images, (2, 0), twin), 1e-8)


@pytest.mark.parametrize("variant", ["plain", "registers_no_embed_class", "qk_norm"])
def test_libragrad_equals_its_twin(variant: str) -> None:
    needs("libragrad")
    model, images = make_model(variant)
    twin = by_output(libragrad_of_pixels if EXPLAINERS["libragrad"].native == "pixel" else libragrad)
    found = explain(model, images, ["diameter", "malignancy"], method="libragrad", resolution="native")
    assert_same(found, twin_maps(model, images, (2, 0), twin), 1e-8)


@pytest.mark.parametrize("name", ["input_gradient", "smoothgrad", "integrated_gradients"])
def test_maps_of_pixels_are_summed_over_patches(name: str) -> None:
    needs(name)
    model, images = make_model("not_square")
    options = {} if name == "input_gradient" else {"n": 2}
    pixels, tokens = (
        explain(model, images, ["spiculation"], method=name, resolution=resolution, **options)
        for resolution in ("native", "token")
    )
    assert pixels.shape == (2, 1, 8, 12)
    assert_same(tokens[1, 0], summed_over_patches(pixels[1, 0], (2, 3)))


@pytest.fixture
def black_baseline() -> Callable[[Tensor], tuple[Tensor, dict[str, object]]]:
    """For an image, the baseline of `integrated_gradients` and the options that ask for it.

    The darkest value of the image, unless the method takes a `baseline`.
    """

    def make(image: Tensor) -> tuple[Tensor, dict[str, object]]:
        if "baseline" in EXPLAINERS["integrated_gradients"].options:
            return torch.full_like(image, -1.5), {"baseline": -1.5}
        return torch.full_like(image, float(image.min())), {}

    return make


@pytest.mark.parametrize("variant", ["plain", "not_square"])
def test_integrated_gradients_equal_their_twin(
    variant: str, black_baseline: Callable[[Tensor], tuple[Tensor, dict[str, object]]]
) -> None:
    needs("integrated_gradients")
    model, images = make_model(variant)
    for image in images:
        black, options = black_baseline(image)
        found = explain(
            model, image[None], ["spiculation"], method="integrated_gradients", resolution="native", n=5, **options
        )
        expected = integrated_gradients(model, image, output_of(model, 1), black, 5)
        assert_same(found[0, 0], expected, 1e-8)


@pytest.fixture
def smoothgrad_noise() -> Callable[..., AbstractContextManager[list[Tensor]]]:
    """A context that lists what `torch.randn` draws within it: the one place that knows where the noise comes from."""

    @contextmanager
    def record() -> Iterator[list[Tensor]]:
        drawn: list[Tensor] = []
        draw = torch.randn

        def recorded(*sizes: object, **named: object) -> Tensor:
            drawn.append(draw(*sizes, **named))
            return drawn[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn", recorded)
            yield drawn

    return record


@pytest.mark.parametrize("variant", ["plain", "not_square"])
def test_smoothgrad_of_its_own_draws_equals_its_twin(
    variant: str, smoothgrad_noise: Callable[..., AbstractContextManager[list[Tensor]]]
) -> None:
    needs("smoothgrad")
    model, images = make_model(variant)
    image = images[0]
    with smoothgrad_noise() as drawn:
        found = explain(model, images[:1], ["spiculation"], method="smoothgrad", resolution="native", n=4, seed=3)
    noise = torch.cat([part.double().flatten() for part in drawn]).reshape(4, *image.shape)
    # Noise may be drawn and scaled in single precision.
    assert_same(found[0, 0], smoothgrad(model, image, output_of(model, 1), smoothgrad_sigma(image) * noise), 1e-6)


def test_smoothgrad_tends_to_the_mean_over_fresh_noise() -> None:
    """Against draws of the test's own: the fast map lies within five standard errors of their mean."""
    needs("smoothgrad")
    model, images = make_model()
    image, count = images[0], 1000
    found = explain(model, images[:1], ["spiculation"], method="smoothgrad", resolution="native", n=count, seed=5)
    noise = torch.randn(count, *image.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    points = (image + smoothgrad_sigma(image) * noise).requires_grad_(True)
    slopes = torch.autograd.grad(model(points)[:, 1].sum(), points)[0].sum(1)
    error = slopes.std(0) * (2 / count) ** 0.5
    assert ((found[0, 0] - slopes.mean(0)).abs() < 5 * error).all()
    # The default width is what is tested: noise half as wide would be noticed.
    assert float(((slopes.mean(0) - image_gradient(model, image, output_of(model, 1)).sum(0)).abs() / error).max()) > 5


def test_smoothgrad_without_noise_is_the_gradient_and_repeats_with_its_seed() -> None:
    needs("smoothgrad")
    model, images = make_model()
    request = {"method": "smoothgrad", "resolution": "native", "n": 2}
    still = explain(model, images[:1], ["spiculation"], share=1e-9, **request)
    assert_same(still[0, 0], image_gradient(model, images[0], output_of(model, 1)).sum(0), 1e-6)
    first, again, other = (explain(model, images, ["spiculation"], seed=seed, **request) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
