import pytest
import torch

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain import EXPLAINERS, Concept, Contrast, explain, target_names
from lidc_cdam.explain.targets import Request

CDAM = [name for name, explainer in EXPLAINERS.items() if explainer.concepts]
QUICK = {"smooth_cdam": {"n": 2}, "integrated_cdam": {"n": 2}}


def test_mixed_targets_come_in_their_order(model, make_images):
    images = make_images(model)
    concept = Concept.from_images(model, images[:2], name="like these")
    contrast = Contrast({"margin": 1, "diameter": -0.5})
    targets = ["diameter", contrast, concept, "margin", Contrast({"malignancy": 2.0}, label="twice")]
    assert target_names(model, targets) == ("diameter", "margin - 0.5 diameter", "like these", "margin", "twice")
    assert target_names(model) == model.targets
    assert target_names(model, "margin") == ("margin",)
    for method in CDAM:
        options = {"method": method} | QUICK.get(method, {})
        maps = explain(model, images, targets, **options)
        assert maps.shape == (3, 5, 4, 4)
        plain = explain(model, images, **options)
        torch.testing.assert_close(maps[:, 0], plain[:, 2])
        torch.testing.assert_close(maps[:, 1], plain[:, 1] - 0.5 * plain[:, 2])
        torch.testing.assert_close(maps[:, 2:3], explain(model, images, concept, **options))
        torch.testing.assert_close(maps[:, 4], 2 * plain[:, 0])


@pytest.mark.parametrize("method", EXPLAINERS)
def test_a_contrast_is_the_combination_of_maps_for_every_method(model, make_images, method):
    images = make_images(model)
    options = {"method": method} | QUICK.get(method, {})
    plain = explain(model, images, ["margin", "diameter"], **options)
    found = explain(model, images, Contrast({"margin": 2, "diameter": -1}), **options)
    torch.testing.assert_close(found[:, 0], 2 * plain[:, 0] - plain[:, 1])


def test_every_output_is_differentiated_once(model):
    request = Request.of(model, ["margin", Contrast({"margin": 1, "diameter": 2}), "margin", "diameter"])
    assert request.readouts == ("margin", "diameter")
    assert request.recipes == (((0, 1.0),), ((0, 1.0), (1, 2.0)), ((0, 1.0),), ((1, 1.0),))


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ({"spiculation": 1, "diameter": -0.5}, "spiculation - 0.5 diameter"),
        ({"margin": -1, "texture": 2}, "-margin + 2 texture"),
        ({"margin": 0.125}, "0.125 margin"),
    ],
)
def test_a_contrast_is_called_by_its_sum(weights, name):
    assert Contrast(weights).name == name


def test_a_concept_is_the_mean_latent_of_its_examples(model, make_images):
    images = make_images(model, 5)
    model.train()
    for size in (2, 64):
        concept = Concept.from_images(model, images, "five", batch_size=size)
        with torch.no_grad():
            expected = torch.stack([model.eval().embed(image[None])[0] for image in images]).mean(0)
        torch.testing.assert_close(concept.latent, expected)
        assert not concept.latent.requires_grad
        model.train()
    assert model.training


def test_cosine_does_not_care_for_the_concepts_length(model, make_images):
    images = make_images(model)
    concept = Concept.from_images(model, images, "near", "cosine")
    torch.testing.assert_close(
        explain(model, images, concept), explain(model, images, Concept("far", 5 * concept.latent, "cosine"))
    )


def test_a_concepts_distance_to_itself_has_a_map(model, make_images):
    """The norm has no derivative at zero; its subgradient 0 is taken, not NaN."""
    images = make_images(model, 1)
    concept = Concept("itself", model.embed(images)[0].detach(), "distance")
    assert torch.isfinite(explain(model, images, concept)).all()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Contrast({}), "must give at least one target a finite weight; got {}"),
        (lambda: Contrast({"margin": float("nan")}), "must give at least one target a finite weight"),
        (
            lambda: Concept("x", torch.zeros(12), "euclid"),
            "similarity must be one of dot, cosine, distance; got 'euclid'",
        ),
    ],
)
def test_what_cannot_be_a_target(make, sentence):
    with pytest.raises(LidcCdamError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        (Contrast({"marigin": 1}), r"must be among this model's targets, .*; got 'marigin'; did you mean 'margin'\?"),
        (Concept("wide", torch.zeros(5)), r"Concept 'wide' must have the width of this model's latent, 12, got \[5\]"),
        (["margin", Contrast({"x": 1})], "got 'x'"),
    ],
)
def test_targets_of_another_model(model, make_images, targets, sentence):
    for method in ("cdam", "random"):
        with pytest.raises(LidcCdamError, match=sentence):
            explain(model, make_images(model), targets, method=method)


@pytest.mark.parametrize("method", [name for name in EXPLAINERS if name not in CDAM])
def test_methods_that_know_no_concept_say_so(model, make_images, method):
    concept = Concept.from_images(model, make_images(model), "these")
    sentence = "--method must be one of cdam, smooth_cdam, integrated_cdam.* to explain a concept such as 'these'; got"
    with pytest.raises(LidcCdamError, match=sentence):
        explain(model, make_images(model), ["margin", concept], method=method)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_that_are_no_numbers(model, make_images, value):
    images = make_images(model)
    images[1, 2, 3, 4] = value
    for call in (lambda: explain(model, images), lambda: Concept.from_images(model, images, "broken")):
        with pytest.raises(LidcCdamError, match=r"must hold finite numbers, but image 1 of 3 \(from 0\) holds NaN"):
            call()
