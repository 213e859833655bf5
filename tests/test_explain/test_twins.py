"""Concepts, contrasts, paths, paired noise and the released variant: the public functions against their slow twins."""

from collections.abc import Callable

import pytest
import torch
from reference import (
    Cut,
    Read,
    cdam_scores,
    cut,
    integrated_cdam_scores,
    output_of,
    random_images,
    random_vit,
    randomise,
    smooth_cdam_scores,
    smooth_cdam_sigma,
)
from reference_targets import (
    antithetic,
    contrast,
    cosine_similarity,
    decomposed_scores,
    dot_similarity,
    integrated_scores_of_block_input,
    mean_latent,
    negative_distance,
    smooth_scores_of_block_input,
    smooth_sigma_of_block_input,
)
from torch import Tensor

from lidc_cdam.explain import Concept, Contrast, explain
from lidc_cdam.explain.cdam import cdam, decompose, integrated_cdam, smooth_cdam
from lidc_cdam.model import NoduleModel

TARGETS = ("malignancy", "spiculation", "diameter")
SIMILARITIES = {"dot": dot_similarity, "cosine": cosine_similarity, "distance": negative_distance}
CLOSED = {
    "plain": {},
    "registers": {"reg_tokens": 3, "no_embed_class": True, "init_values": 0.1},
    "not_square": {"num_heads": 4, "image_size": (16, 24)},
    "no_qkv_bias": {"qkv_bias": False},
    "one_block": {"depth": 1},
}
"""Where a map has a closed form."""
VARIANTS = CLOSED | {"qk_norm": {"qk_norm": True}, "mean_pooling": {"global_pool": "avg"}}
Scores = Callable[[Cut, Read], Tensor]


def make_model(variant: str, head: str = "mlp", seed: int = 0) -> tuple[NoduleModel, Tensor, Tensor]:
    """A model, two images to explain and three examples of a concept."""
    options = dict(VARIANTS[variant])
    size = options.get("image_size", (16, 16))
    model = NoduleModel(random_vit(seed, **options), TARGETS, head)
    randomise(model.head, seed + 1)
    return model.double().eval(), random_images(2, seed + 2, size), random_images(3, seed + 3, size)


def twin_maps(model: NoduleModel, images: Tensor, reads: list[Read], scores: Scores) -> Tensor:
    """Maps [image target row column] of the twin, one image and one target at a time."""
    maps = []
    for image in images:
        state = cut(model, image)
        maps.append(torch.stack([state.on_grid(scores(state, read)) for read in reads]))
    return torch.stack(maps).detach()


def outputs(model: NoduleModel) -> list[Read]:
    return [output_of(model, index) for index in range(len(TARGETS))]


def likeness(model: NoduleModel, examples: Tensor, similarity: str) -> Read:
    with torch.no_grad():
        return SIMILARITIES[similarity](mean_latent([model.backbone(image[None])[0] for image in examples]))


def assert_same(found: Tensor, expected: Tensor) -> None:
    """To 1e-11 of the largest score: double precision, a sum's order apart."""
    assert found.shape == expected.shape
    largest = expected.abs().max()
    assert largest > 1e-4
    assert float((found - expected).abs().max() / largest) < 1e-11


# --- Concepts and contrasts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_concept_maps(variant: str) -> None:
    model, images, examples = make_model(variant)
    concepts = [Concept.from_images(model, examples, name=key, similarity=key) for key in SIMILARITIES]
    reads = [likeness(model, examples, key) for key in SIMILARITIES]
    found = explain(model, images, concepts)
    for index, read in enumerate(reads):
        assert_same(found[:, [index]], twin_maps(model, images, [read], cdam_scores))


@pytest.mark.parametrize("variant", ["registers", "mean_pooling"])
def test_integrated_concept_maps(variant: str) -> None:
    model, images, examples = make_model(variant)
    concepts = [Concept.from_images(model, examples, name=key, similarity=key) for key in SIMILARITIES]
    found = integrated_cdam(model, images[:1], concepts, n=3)
    for index, key in enumerate(SIMILARITIES):
        reads = [likeness(model, examples, key)]
        expected = twin_maps(model, images[:1], reads, lambda state, read: integrated_cdam_scores(state, read, 3))
        assert_same(found[:, [index]], expected)


@pytest.mark.parametrize("variant", ["plain", "qk_norm"])
def test_contrast_maps(variant: str) -> None:
    model, images, _ = make_model(variant)
    weights = {"spiculation": 1.0, "diameter": -0.5}
    read = contrast(dict(zip(TARGETS, outputs(model), strict=True)), weights)
    for found, scores in (
        (cdam(model, images, Contrast(weights)), cdam_scores),
        (integrated_cdam(model, images, Contrast(weights), n=3), lambda s, r: integrated_cdam_scores(s, r, 3)),
    ):
        assert_same(found, twin_maps(model, images, [read], scores))


def test_outputs_concepts_and_contrasts_in_one_call_in_the_order_asked() -> None:
    model, images, examples = make_model("registers")
    concepts = [Concept.from_images(model, examples, name=key, similarity=key) for key in SIMILARITIES]
    targets = ["diameter", concepts[1], Contrast({"malignancy": 2, "diameter": 1}), concepts[0], "malignancy"]
    f = dict(zip(TARGETS, outputs(model), strict=True))
    likenesses = [likeness(model, examples, key) for key in SIMILARITIES]
    reads = [
        f["diameter"],
        likenesses[1],
        contrast(f, {"malignancy": 2, "diameter": 1}),
        likenesses[0],
        f["malignancy"],
    ]
    assert_same(explain(model, images, targets), twin_maps(model, images, reads, cdam_scores))


# --- Heads and paths --------------------------------------------------------------------------------------------------


def twin_paths(model: NoduleModel, images: Tensor, reads: list[Read]) -> dict[str, Tensor]:
    """The twin's two paths: [image target head row column] each."""
    paths: dict[str, list[Tensor]] = {"value": [], "shift": []}
    for image in images:
        state = cut(model, image)
        split = [decomposed_scores(state, read) for read in reads]
        for part, rows in paths.items():
            heads = [torch.stack([state.on_grid(row) for row in getattr(one, part)]) for one in split]
            rows.append(torch.stack(heads).detach())
    return {part: torch.stack(rows) for part, rows in paths.items()}


@pytest.mark.parametrize("variant", CLOSED)
def test_decomposed_maps(variant: str) -> None:
    model, images, _ = make_model(variant)
    reads = outputs(model)[1:]
    found, expected = decompose(model, images, list(TARGETS[1:])), twin_paths(model, images, reads)
    assert_same(found.value, expected["value"])
    assert_same(found.shift, expected["shift"])
    assert_same((found.value + found.shift).sum(dim=2), twin_maps(model, images, reads, cdam_scores))


def test_decomposed_concepts_and_contrasts() -> None:
    model, images, examples = make_model("registers")
    targets = [Concept.from_images(model, examples, name="c", similarity="cosine"), Contrast({"diameter": -2})]
    reads = [likeness(model, examples, "cosine"), contrast({"diameter": output_of(model, 2)}, {"diameter": -2})]
    found, expected = decompose(model, images[:1], targets), twin_paths(model, images[:1], reads)
    for index in range(2):  # each by its own largest score
        assert_same(found.value[:, [index]], expected["value"][:, [index]])
        assert_same(found.shift[:, [index]], expected["shift"][:, [index]])


# --- Noise ------------------------------------------------------------------------------------------------------------


def recorded_smooth(monkeypatch: pytest.MonkeyPatch, *arguments: object, **options: object) -> tuple[Tensor, Tensor]:
    """Smooth maps, and the numbers of unit variance that were drawn for them."""
    drawn: list[Tensor] = []
    draw = torch.randn

    def recorded(*sizes: object, **named: object) -> Tensor:
        drawn.append(draw(*sizes, **named))
        return drawn[-1]

    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", recorded)
        found = smooth_cdam(*arguments, **options)
    return found, torch.cat([part.double().flatten() for part in drawn])


@pytest.mark.parametrize("perturb", ["tokens", "block_input"])
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("variant", ["registers", "qk_norm"])
def test_smooth_maps_of_given_noise(monkeypatch: pytest.MonkeyPatch, variant: str, paired: bool, perturb: str) -> None:
    model, images, _ = make_model(variant)
    scores = smooth_cdam_scores if perturb == "tokens" else smooth_scores_of_block_input
    options = {"n": 4, "sigma": 0.3, "seed": 5, "antithetic": paired, "perturb": perturb}
    found, numbers = recorded_smooth(monkeypatch, model, images, "spiculation", **options)

    def expected(state: Cut, read: Read) -> Tensor:
        draws = numbers[: (2 if paired else 4) * state.tokens.numel()].reshape(-1, *state.tokens.shape)
        return scores(state, read, 0.3 * (antithetic(draws, 4) if paired else draws))

    assert_same(found, twin_maps(model, images, outputs(model)[1:2], expected))


@pytest.mark.parametrize("perturb", ["tokens", "block_input"])
def test_paired_noise_of_the_default_width(monkeypatch: pytest.MonkeyPatch, perturb: str) -> None:
    model, images, _ = make_model("plain")
    of_tokens, of_input = (
        (smooth_cdam_scores, smooth_cdam_sigma),
        (smooth_scores_of_block_input, smooth_sigma_of_block_input),
    )
    scores, sigma = of_tokens if perturb == "tokens" else of_input
    found, numbers = recorded_smooth(monkeypatch, model, images, "spiculation", n=4, antithetic=True, perturb=perturb)

    def expected(state: Cut, read: Read) -> Tensor:
        draws = numbers[: 2 * state.tokens.numel()].reshape(2, *state.tokens.shape)
        return scores(state, read, sigma(state) * antithetic(draws, 4))

    assert_same(found, twin_maps(model, images, outputs(model)[1:2], expected))


def test_smooth_maps_tend_to_the_mean_over_fresh_noise() -> None:
    """Against draws of the test's own: the fast maps lie within four standard errors of their mean."""
    model, images, _ = make_model("plain", "linear")
    found = smooth_cdam(model, images[:1], "diameter", n=400, sigma=0.2)[0, 0]
    state, read = cut(model, images[0]), output_of(model, 2)
    noise = 0.2 * torch.randn(24, *state.tokens.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    each = torch.stack([state.on_grid(smooth_cdam_scores(state, read, draw[None])) for draw in noise]).detach()
    error = each.std(dim=0) * (1 / 24 + 1 / 400) ** 0.5
    assert ((found - each.mean(dim=0)).abs() < 4 * error).all()


# --- The released variant ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["registers", "qk_norm"])
def test_integrated_maps_of_the_moved_block_input(variant: str) -> None:
    model, images, _ = make_model(variant)
    # Its epsilon would make norm1(x / 2) differ from norm1(x) by a millionth, and so would the choice between them as
    # the factor of a gradient.
    model.backbone.blocks[-1].norm1.eps = 0.0
    found = integrated_cdam(model, images, "spiculation", n=3, perturb="block_input")
    reads = outputs(model)[1:2]
    assert_same(found, twin_maps(model, images, reads, lambda s, r: integrated_scores_of_block_input(s, r, 3)))
