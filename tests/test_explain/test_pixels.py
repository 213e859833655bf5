import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain import Concept, explain, pixels
from lidc_cdam.explain.pixels import input_gradient, integrated_gradients, smoothgrad
from lidc_cdam.intensity import Intensity


def test_input_gradient_agrees_with_captum(any_model, make_images):
    images = make_images(any_model)
    maps = input_gradient(any_model, images)
    for target in range(3):
        expected = InputXGradient(any_model).attribute(images.clone().requires_grad_(), target=target).sum(1)
        torch.testing.assert_close(maps[:, target], expected.detach())


@pytest.mark.parametrize("baseline", [-0.7, None])
def test_integrated_gradients_agree_with_captum(any_model, make_images, baseline):
    images = make_images(any_model)
    maps = integrated_gradients(any_model, images, n=7, baseline=baseline)
    darkest = images.amin((1, 2, 3), keepdim=True) if baseline is None else torch.full_like(images, baseline)
    for target in range(3):
        expected = IntegratedGradients(any_model).attribute(
            images, darkest.expand_as(images), target=target, n_steps=7, method="riemann_right"
        )
        # captum holds its steps in single precision
        torch.testing.assert_close(maps[:, target], expected.sum(1).detach(), rtol=1e-5, atol=1e-6)


def test_integrated_gradients_are_complete(model, make_images):
    images = make_images(model)
    with torch.no_grad():
        rise = model(images) - model(torch.full_like(images, -0.5))
    errors = []
    for n in (50, 400):
        maps = integrated_gradients(model, images, n=n, baseline=-0.5)
        errors.append(float((maps.sum((2, 3)) - rise).abs().max()))
    assert errors[1] < 0.01
    assert errors[1] < errors[0] / 4


def test_black_of_a_mask_channel_is_outside(model):
    image = torch.zeros(4, 2, 2)
    image[:3] -= torch.arange(4).reshape(2, 2)
    image[3] = 1
    black = pixels.black_of(model, image, None)
    assert torch.equal(black, torch.tensor([-3.0, -3.0, -3.0, -1.0])[:, None, None].expand(4, 2, 2))
    assert torch.equal(pixels.black_of(model, image, 0.5)[:, 0, 0], torch.tensor([0.5, 0.5, 0.5, -1.0]))


def test_black_is_what_the_windows_lower_end_becomes():
    intensity = Intensity(0.4, 0.25)
    darkest = intensity.apply(torch.full((1, 4, 4), -1000.0), 4)
    assert torch.equal(darkest, torch.full_like(darkest, intensity.black))
    assert torch.equal(intensity.apply(torch.full((1, 4, 4), -3000.0), 4), darkest)


def test_smoothgrad_is_the_mean_gradient_over_its_draws(model, make_images):
    images = make_images(model)
    maps = smoothgrad(model, images, "margin", n=5, seed=3)[:, 0]
    for image, found in zip(images, maps, strict=True):
        width = 0.15 * (image.max() - image.min())
        total = torch.zeros(16, 16, dtype=torch.float64)
        for draw in pixels._draws(image, 5, 3):
            noisy = (image + width * draw)[None].requires_grad_()
            total += torch.autograd.grad(model(noisy)[0, 1], noisy)[0][0].sum(0) / 5
        torch.testing.assert_close(found, total)


def test_smoothgrad_without_noise_is_the_gradient(model, make_images):
    images = make_images(model).requires_grad_()
    expected = torch.autograd.grad(model(images)[:, 2].sum(), images)[0].sum(1)
    torch.testing.assert_close(smoothgrad(model, images.detach(), "diameter", n=2, share=0.0)[:, 0], expected)


def test_noise_belongs_to_the_image_and_the_seed(make_images, model):
    first, second = (list(pixels._draws(image, 2, 0)) for image in make_images(model)[:2])
    draws = torch.stack([*first, *second])
    assert len(torch.unique(draws.flatten(1), dim=0)) == 4
    assert not torch.equal(next(pixels._draws(make_images(model)[0], 1, 1)), first[0])
    assert float(draws.std()) == pytest.approx(1, abs=0.05)


def test_a_concept_is_differentiated_by_pixels(model, make_images):
    images = make_images(model).requires_grad_()
    concept = Concept.from_images(model, images.detach(), "likeness", similarity="cosine")
    slope = torch.autograd.grad(concept.read(model.embed(images)).sum(), images)[0]
    found = input_gradient(model, images.detach(), concept)
    torch.testing.assert_close(found[:, 0], (images.detach() * slope).sum(1))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"method": "smoothgrad", "share": -0.1}, "--options.share must be 0 or more and finite; got -0.1"),
        ({"method": "smoothgrad", "n": 0}, "--options.n must be at least 1; got 0"),
        ({"method": "integrated_gradients", "n": 0}, "--options.n must be at least 1; got 0"),
        ({"method": "integrated_gradients", "baseline": "dark"}, "must be a finite number or null; got 'dark'"),
    ],
)
def test_errors_are_one_sentence(model, make_images, arguments, sentence):
    with pytest.raises(LidcCdamError, match=sentence):
        explain(model, make_images(model), **arguments)


def test_a_model_that_gives_no_numbers_is_refused(model, make_images):
    with torch.no_grad():
        model.head.weight[0, 0] = torch.nan
    with pytest.raises(LidcCdamError, match="must give finite outputs, but this one gives NaN or infinity"):
        input_gradient(model, make_images(model))


def test_a_model_made_in_inference_mode_is_refused(make_model, make_images):
    with torch.inference_mode():
        model = make_model()
    with pytest.raises(LidcCdamError, match=r"was made inside `torch.inference_mode`; make or load it outside"):
        input_gradient(model, make_images(model))
