from collections import OrderedDict
from functools import partial

import pytest
import torch

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain import EXPLAINERS, Concept, Contrast, explain
from lidc_cdam.explain.registry import check_request, register, sum_over_patches

QUICK = {name: {"n": 2} for name in ("smooth_cdam", "integrated_cdam", "smoothgrad", "integrated_gradients")}
CLASS_ROW = ("attention", "rollout", "relevance_propagation", "partial_lrp")
"""Estimators that read the attention of [CLS]."""


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
    explain_quickly = partial(explain, model, make_images(model), method=method, **QUICK.get(method, {}))
    module = model.backbone.get_submodule(place)
    counter = module.register_forward_pre_hook(lambda *_: calls.append(place))
    explain_quickly()
    counter.remove()
    runs = len(calls)
    assert (runs > 0) == (method not in ("random", "centre"))

    def fail(*_):
        # The last block runs in the model, and for some again in its tail: the last run fails.
        calls.append(place)
        if len(calls) == runs:
            raise RuntimeError("broken on purpose")

    before_hook = dict(OrderedDict(module._forward_pre_hooks))
    handle = module.register_forward_pre_hook(fail)
    before = mixed_state(model)
    calls.clear()
    if runs:
        with pytest.raises(RuntimeError, match="broken on purpose"):
            explain_quickly()
    assert str(state_of(model)) == str(before)
    handle.remove()
    assert dict(module._forward_pre_hooks) == before_hook


def is_defined(model, images, method):
    """Whether a method is defined for a model; one that is not must say so."""
    if method in CLASS_ROW and model.backbone.cls_token is None:
        with pytest.raises(LidcCdamError, match=r"reads the attention of \[CLS\], but .* use --method cdam or gradcam"):
            explain(model, images, method=method)
        return False
    return True


def test_shape_order_and_signs(any_model, make_images, method):
    images = make_images(any_model)
    if not is_defined(any_model, images, method):
        return
    options = QUICK.get(method, {})
    maps = explain(any_model, images, method=method, **options)
    assert maps.shape == (3, 3, *any_model.backbone.patch_embed.grid_size)
    assert torch.isfinite(maps).all()
    swapped = explain(any_model, images, targets=["diameter", "malignancy"], method=method, **options)
    torch.testing.assert_close(swapped, maps[:, [2, 0]])
    single = explain(any_model, images, targets="margin", method=method, **options)
    torch.testing.assert_close(single[:, 0], maps[:, 1], rtol=1e-9, atol=1e-12)


def test_the_order_of_targets_matters_only_to_targeted_methods(model, make_images, method):
    maps = explain(model, make_images(model), method=method, **QUICK.get(method, {}))
    assert torch.equal(maps[:, 0], maps[:, 1]) is not EXPLAINERS[method].targeted


def test_parts_of_a_batch_change_nothing(model, make_images, method):
    if "batch_size" not in EXPLAINERS[method].options:
        return
    options = QUICK.get(method, {})
    whole = explain(model, make_images(model), method=method, **options)
    parts = explain(model, make_images(model), method=method, batch_size=2, **options)
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)
    with pytest.raises(LidcCdamError, match="--batch-size must be at least 1 image; got 0"):
        explain(model, make_images(model), method=method, batch_size=0)


def test_a_contrast_is_the_combination_of_maps(model, make_images, method):
    images, options = make_images(model), QUICK.get(method, {})
    maps = explain(model, images, ["margin", "diameter"], method, **options)
    mixed = explain(model, images, Contrast({"margin": 1.0, "diameter": -0.5}), method, **options)
    torch.testing.assert_close(mixed[:, 0], maps[:, 0] - 0.5 * maps[:, 1])


def test_concepts_where_they_are_defined(any_model, make_images, method):
    images = make_images(any_model)
    if not is_defined(any_model, images, method):
        return
    concept = Concept.from_images(any_model, images, "likeness")
    if EXPLAINERS[method].concepts:
        maps = explain(any_model, images, ["margin", concept], method, **QUICK.get(method, {}))
        assert torch.isfinite(maps).all()
        assert float(maps[:, 1].abs().max()) > 0
    else:
        with pytest.raises(LidcCdamError, match=r"--method must be one of .* to explain a concept such as 'likeness'"):
            explain(any_model, images, concept, method)


def test_one_image_has_the_same_map_in_any_batch(any_model, make_images, method):
    images = make_images(any_model)
    if not is_defined(any_model, images, method):
        return
    options = QUICK.get(method, {})
    maps = explain(any_model, images, method=method, **options)
    single = explain(any_model, images[1:2], method=method, **options)
    torch.testing.assert_close(single, maps[1:2], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(explain(any_model, images.flip(0), method=method, **options), maps.flip(0))


def test_a_repeat_is_equal(model, make_images, method):
    options = QUICK.get(method, {})
    first = explain(model, make_images(model), method=method, **options)
    assert torch.equal(first, explain(model, make_images(model), method=method, **options))


def test_pixels_repeat_their_token_or_add_up_to_it(any_model, make_images, method):
    images = make_images(any_model)
    if not is_defined(any_model, images, method):
        return
    options = QUICK.get(method, {})
    tokens = explain(any_model, images, method=method, **options)
    pixels = explain(any_model, images, method=method, resolution="pixel", **options)
    native = explain(any_model, images, method=method, resolution="native", **options)
    if EXPLAINERS[method].native == "token":
        assert torch.equal(pixels, tokens.repeat_interleave(4, 2).repeat_interleave(4, 3))
        assert torch.equal(native, tokens)
    else:
        assert torch.equal(sum_over_patches(pixels, tuple(tokens.shape[2:])), tokens)
        assert torch.equal(native, pixels)


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
        ({"method": "cdma"}, r"--method must be one of .*, cdam, .*; got 'cdma'; did you mean 'cdam'\?"),
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
