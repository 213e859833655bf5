"""Gradients by the pixels: Input x Gradient, SmoothGrad and Integrated Gradients.

All are signed and on the input's grid, summed over its channels. On the token grid they are summed over each patch.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain.controls import image_digest, seed_of
from lidc_cdam.explain.inputs import check_size, undisturbed
from lidc_cdam.explain.noise import check_copies
from lidc_cdam.explain.passes import Call, Images, gradients
from lidc_cdam.explain.registry import ScoreMaps, register
from lidc_cdam.explain.targets import Targets
from lidc_cdam.model import NoduleModel

Image = Float[Tensor, "channel height width"]
Maps = Float[Tensor, "readout height width"]

GREY = 3
"""The first channels of an input show HU; what follows is a mask, whose black is -1, outside."""


def _check_input_gradient(batch_size: int = 1) -> None:
    check_size(batch_size)


def _check_smoothgrad(n: int = 1, share: float = 0.0, seed: int = 0, batch_size: int = 1) -> None:
    check_size(batch_size)
    check_copies(n)
    if not 0 <= share < math.inf:
        raise LidcCdamError(f"--options.share must be 0 or more and finite; got {share}.")


def _check_integrated(n: int = 1, baseline: float | None = None, batch_size: int = 1) -> None:
    check_size(batch_size)
    check_copies(n)
    if baseline is not None and not math.isfinite(baseline):
        raise LidcCdamError(f"--options.baseline must be a finite number; got {baseline}.")


@register("input_gradient", "Input x Gradient", concepts=True, check=_check_input_gradient, native="pixel")
def input_gradient(model: NoduleModel, images: Images, targets: Targets = None, *, batch_size: int = 64) -> ScoreMaps:
    """S_p = sum over channels of x_p df_c/dx_p (Shrikumar et al., Not Just a Black Box, 2016).

    x is the normalised image, so that 0 is the grey value of the training part's mean.

    Args:
        model: what to explain.
        images: normalised images of the model's size.
        targets: keys out of `model.targets`, `Concept`s and `Contrast`s; all outputs by default.
        batch_size: images at a time, at most; changes no map.
    """
    call = Call.of(model, images, targets, batch_size)
    parts = []
    with undisturbed(model), torch.autocast(images.device.type, enabled=False):
        for chunk in call.chunks():
            slopes = _gradients(call, chunk)
            parts.append((chunk * slopes).sum(2).transpose(0, 1))
    return call.request.mix(torch.cat(parts))


@register("smoothgrad", "SmoothGrad", concepts=True, check=_check_smoothgrad, native="pixel")
def smoothgrad(
    model: NoduleModel,
    images: Images,
    targets: Targets = None,
    *,
    n: int = 50,
    share: float = 0.15,
    seed: int = 0,
    batch_size: int = 64,
) -> ScoreMaps:
    """S_p = sum over channels of 1/n sum_m df_c/dx_p at x + N(0, sigma^2) (Smilkov et al., SmoothGrad, 2017).

    The signed gradient alone, not times the input.

    Args:
        model: what to explain.
        images: normalised images of the model's size.
        targets: keys out of `model.targets`, `Concept`s and `Contrast`s; all outputs by default.
        n: number of noisy copies.
        share: sigma as a share of each image's max - min.
        seed: of the noise, together with the image's own values, so that its map does not depend on the batch.
        batch_size: copies at a time, at most; changes no map.
    """
    _check_smoothgrad(n, share, seed)

    def score(call: Call, image: Image) -> Maps:
        width = share * (image.max() - image.min())
        copies = (image + width * draw for draw in _draws(image, n, seed))
        return _mean_gradient(call, copies).sum(1)

    return _image_by_image(Call.of(model, images, targets, batch_size), score)


@register("integrated_gradients", "Integrated Gradients", concepts=True, check=_check_integrated, native="pixel")
def integrated_gradients(
    model: NoduleModel,
    images: Images,
    targets: Targets = None,
    *,
    n: int = 50,
    baseline: float | None = None,
    batch_size: int = 64,
) -> ScoreMaps:
    """S_p = sum over channels of (x_p - b_p) 1/n sum_m df_c/dx_p at b + m/n (x - b), with m = 1 to n.

    Sundararajan, Taly and Yan, Axiomatic Attribution for Deep Networks (ICML 2017). b is a black image. The sum over
    all pixels tends to f(x) - f(b) as n grows.

    Args:
        model: what to explain.
        images: normalised images of the model's size.
        targets: keys out of `model.targets`, `Concept`s and `Contrast`s; all outputs by default.
        n: number of steps from b to x.
        baseline: the value of black. The step `explain` passes `Intensity.black`, the lower end of the fold's HU
            window (air, -1000 HU); without it black is the model's own (`NoduleModel.black`, that of natural images) or
            else each image's darkest value. A mask channel is -1, outside.
        batch_size: steps at a time, at most; changes no map.
    """
    _check_integrated(n, baseline)

    def score(call: Call, image: Image) -> Maps:
        black = black_of(model, image, baseline)
        steps = (black + m / n * (image - black) for m in range(1, n + 1))
        return ((image - black) * _mean_gradient(call, steps)).sum(1)

    return _image_by_image(Call.of(model, images, targets, batch_size), score)


def black_of(model: NoduleModel, image: Image, baseline: float | None) -> Image:
    """Where the path to an image starts; arguments as `integrated_gradients` has them."""
    if baseline is None and model.black is not None:
        return model.black.to(image)[:, None, None].expand_as(image)
    black = torch.full_like(image, -1)
    black[:GREY] = image[:GREY].min() if baseline is None else baseline
    return black


def _draws(image: Image, n: int, seed: int) -> Iterator[Image]:
    """Draws of standard deviation 1, on the CPU in single precision, so that device and precision change no map."""
    generator = torch.Generator().manual_seed(seed_of(f"{seed}/{image_digest(image)}"))
    for _ in range(n):
        yield torch.randn(image.shape, generator=generator, dtype=torch.float32).to(image)


def _image_by_image(call: Call, score: Callable[[Call, Image], Maps]) -> ScoreMaps:
    """Maps of an estimator that runs many copies of each image."""
    with undisturbed(call.model), torch.autocast(call.images.device.type, enabled=False):
        maps = torch.stack([score(call, image) for chunk in call.chunks() for image in chunk])
    return call.request.mix(maps)


def _mean_gradient(call: Call, copies: Iterable[Image]) -> Float[Tensor, "readout channel height width"]:
    """Mean over copies of every readout's gradient, a part of the copies at a time."""
    remaining, sums, count = iter(copies), [], 0
    while part := list(islice(remaining, call.size)):
        sums.append(_gradients(call, torch.stack(part)).sum(1))
        count += len(part)
    return torch.stack(sums).sum(0) / count


def _gradients(call: Call, images: Images) -> Float[Tensor, "readout image channel height width"]:
    """Gradient of every readout by the pixels of its own image."""
    with torch.enable_grad():
        inputs = images.detach().requires_grad_()
        return torch.stack([slope for (slope,) in gradients(call.forward(inputs), [inputs])])
