from collections import OrderedDict

import pytest
import torch

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain import EXPLAINERS, explain
from lidc_cdam.explain.registry import check_request, register, sum_over_patches

QUICK = {"smooth_cdam": {"n": 2}, "integrated_cdam": {"n": 2}}


def state_of(model):
    """Everything a call could leave behind."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()],
        [list(getattr(module, name).items()) for module in model.modules() for name in hooks],
        [sorted(vars(module)) for module in model.modules()],
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
    )


def mixed_state(model):
    """A state with something to lose: half in training mode, a frozen part, gradients, a foreign hook."""
    model.train()
    model.backbone.blocks[0].eval()
    model.backbone.cls_token.requires_grad_(False)
    for parameter in model.head.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.backbone.blocks[-1].norm1.register_forward_hook(lambda *_: None)
    return state_of(model)


@pytest.fixture(params=list(EXPLAINERS))
def method(request):
    return request.param


def test_a_call_leaves_the_model_as_it_was(model, make_images, method):
    before = mixed_state(model)
    assert explain(model, make_images(model), method=method, **QUICK.get(method, {})).requires_grad is False
    assert str(state_of(model)) == str(before)


def test_a_bad_target_leaves_the_model_as_it_was(model, make_images, method):
    before = mixed_state(model)
    with pytest.raises(LidcCdamError):
        explain(model, make_images(model), targets=["beauty"], method=method)
    assert str(state_of(model)) == str(before)


@pytest.mark.parametrize("place", ["blocks.1.mlp", "blocks.0", "norm"])
def test_a_module_that_raises_leaves_the_model_as_it_was(model, make_images, method, place):
    calls = []

    def fail(*_):
        calls.append(place)
        # The last block runs once in the model and again in its tail: fail in the second run where there is one.
        if place == "blocks.0" or len(calls) > 1:
            raise RuntimeError("broken on purpose")

    before_hook = dict(OrderedDict(model.backbone.get_submodule(place)._forward_pre_hooks))
    handle = model.backbone.get_submodule(place).register_forward_pre_hook(fail)
    before = mixed_state(model)
    if method in ("random", "centre"):
        explain(model, make_images(model), method=method)
        assert not calls
    else:
        with pytest.raises(RuntimeError, match="broken on purpose"):
            explain(model, make_images(model), method=method)
    assert str(state_of(model)) == str(before)
    handle.remove()
    assert dict(model.backbone.get_submodule(place)._forward_pre_hooks) == before_hook


def test_shape_order_and_signs(any_model, make_images, method):
    images = make_images(any_model)
    options = QUICK.get(method, {})
    maps = explain(any_model, images, method=method, **options)
    assert maps.shape == (3, 3, *any_model.backbone.patch_embed.grid_size)
    assert torch.isfinite(maps).all()
    swapped = explain(any_model, images, targets=["diameter", "malignancy"], method=method, **options)
    torch.testing.assert_close(swapped, maps[:, [2, 0]])
    single = explain(any_model, images, targets="margin", method=method, **options)
    torch.testing.assert_close(single[:, 0], maps[:, 1], rtol=1e-9, atol=1e-12)


def test_one_image_has_the_same_map_in_any_batch(any_model, make_images, method):
    images = make_images(any_model)
    options = QUICK.get(method, {})
    maps = explain(any_model, images, method=method, **options)
    single = explain(any_model, images[1:2], method=method, **options)
    torch.testing.assert_close(single, maps[1:2], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(explain(any_model, images.flip(0), method=method, **options), maps.flip(0))


def test_a_repeat_is_equal(model, make_images, method):
    options = QUICK.get(method, {})
    first = explain(model, make_images(model), method=method, **options)
    assert torch.equal(first, explain(model, make_images(model), method=method, **options))


def test_pixels_repeat_their_token(any_model, make_images, method):
    images = make_images(any_model)
    options = QUICK.get(method, {})
    tokens = explain(any_model, images, method=method, **options)
    pixels = explain(any_model, images, method=method, resolution="pixel", **options)
    assert torch.equal(pixels, tokens.repeat_interleave(4, 2).repeat_interleave(4, 3))


def test_frozen_parameters_and_switched_off_gradients(model, make_images, method):
    options = QUICK.get(method, {})
    expected = explain(model, make_images(model), method=method, **options)
    model.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(explain(model, make_images(model), method=method, **options), expected)
    with torch.inference_mode():
        images = make_images(model)
        assert images.is_inference()
        assert torch.equal(explain(model, images, method=method, **options), expected)


def test_registering_a_name_twice_is_an_error():
    with pytest.raises(ValueError, match="'cdam' is registered already"):
        register("cdam", "Again")(lambda: None)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"method": "cdma"}, r"--method must be one of cdam, .*; got 'cdma'; did you mean 'cdam'\?"),
        ({"method": "cdam", "sigma": 1}, "--options of cdam must be among: batch_size; got 'sigma'"),
        ({"method": "smooth_cdam", "sigmo": 1}, r"got 'sigmo'; did you mean 'sigma'\?"),
        ({"targets": ["marigin"]}, r"targets, malignancy, margin, diameter; got 'marigin'; did you mean 'margin'\?"),
        ({"targets": []}, "--targets must name at least one"),
        ({"resolution": "voxel"}, "--resolution must be one of token, pixel, native; got 'voxel'"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"method": "smooth_cdam", "n": 0}, "--options.n must be at least 1; got 0"),
        ({"method": "smooth_cdam", "sigma": -1.0}, "--options.sigma must be 0 or more"),
        ({"method": "centre", "sigma": 0.0}, "--options.sigma must be above 0"),
    ],
)
def test_errors_are_one_sentence(model, make_images, arguments, sentence):
    with pytest.raises(LidcCdamError, match=sentence):
        explain(model, make_images(model), **arguments)


@pytest.mark.parametrize("shape", [(0, 3, 16, 16), (1, 1, 16, 16), (1, 3, 16, 24)])
def test_images_that_do_not_fit(model, method, shape):
    with pytest.raises(LidcCdamError, match=r"must have the shape \[image, 3, 16, 16\] with at least one image, got"):
        explain(model, torch.zeros(shape, dtype=torch.float64), method=method)


def test_one_image_without_its_axis(model):
    with pytest.raises(LidcCdamError, match=r"must have the shape \[image, 3, 16, 16\] .* got \[3, 16, 16\]"):
        check_request(model, torch.zeros(3, 16, 16), None)


def test_maps_of_pixels_are_summed_over_patches_and_keep_their_total() -> None:
    maps = torch.arange(2 * 3 * 4 * 6, dtype=torch.float64).reshape(2, 3, 4, 6)
    tokens = sum_over_patches(maps, (2, 3))
    assert tokens.shape == (2, 3, 2, 3)
    assert torch.equal(tokens[1, 2, 1, 0], maps[1, 2, 2:4, 0:2].sum())
    assert torch.equal(tokens.sum((2, 3)), maps.sum((2, 3)))
