"""Linear in-painting: removed pixels become what their neighbours say, so that their edge tells the model little.

Each removed pixel is the weighted mean of its neighbours, 1/6 for those beside, above and below it and 1/12 for the
diagonal ones, renormalised at the image's border: a sparse linear system, as in ROAD (Rong et al., A Consistent and
Efficient Evaluation Strategy for Attribution Methods, ICML 2022) but without its noise, so that an image is perturbed
the same way every time.

The system is symmetric and positive definite, so conjugate gradients solve it, for a whole batch at a time; they start
from the solution on a grid of half the side, and so on down to a few pixels.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

BESIDE, DIAGONAL = 1 / 6, 1 / 12
TOLERANCE = 1e-5
"""Largest residual of a pixel as a share of the image's range of values."""
ITERATIONS = 1000
"""Most steps on one grid; some dozens suffice."""
COARSEST = 4
"""Side in pixels below which no coarser grid is made."""

Planes = Float[Tensor, "plane 1 row column"]


def inpaint(
    images: Float[Tensor, "image channel row column"],
    removed: Bool[Tensor, "image row column"],
    tolerance: float = TOLERANCE,
) -> Float[Tensor, "image channel row column"]:
    """Images whose removed pixels are filled in; the others stay as they are.

    Args:
        images: any values.
        removed: true where a pixel is to be filled; an image without a pixel left becomes its channels' means.
        tolerance: largest residual, as a share of the range of an image's channel.
    """
    # Slices are often shown three times: what is equal is solved once.
    grey = images.shape[1] > 1 and bool((images == images[:, :1]).all())
    planes = (images[:, :1] if grey else images).flatten(0, 1)[:, None]
    channels = len(planes) // max(len(images), 1)
    known = (~removed).repeat_interleave(channels, 0)[:, None]
    means = planes.mean((-2, -1), keepdim=True)
    ranges = planes.amax((-2, -1), keepdim=True) - planes.amin((-2, -1), keepdim=True)
    lost = ~known.flatten(1).any(1)[:, None, None, None]
    # A plane without a known pixel has no solution; here it is told its own, which is then replaced by the mean.
    solved = _solve(planes, known | lost, tolerance * ranges)
    filled = torch.where(lost, means, torch.where(known, planes, solved)).reshape(
        len(images), channels, *images.shape[2:]
    )
    return filled.expand_as(images).contiguous()


def _solve(values: Planes, known: Bool[Tensor, "plane 1 row column"], bound: Float[Tensor, "plane 1 1 1"]) -> Planes:
    """Conjugate gradients on the removed pixels, from the coarser grid's solution."""
    if bool(known.all()):
        return values
    solution = torch.where(known, values, _start(values, known, bound))
    around = _neighbours(torch.ones_like(values[:1]))
    unknown = (~known).to(values)
    residual = (_neighbours(solution) - around * solution) * unknown
    direction, power = residual, _dot(residual, residual)
    for _ in range(ITERATIONS):
        # Each plane stops on its own, so that it does not depend on what else is in the batch.
        active = residual.abs().amax((-2, -1), keepdim=True) > bound
        if not bool(active.any()):
            break
        moved = (around * direction - _neighbours(direction)) * unknown
        step = torch.where(active, power / _dot(direction, moved).clamp_min(1e-30), 0.0)
        solution, residual = solution + step * direction, residual - step * moved
        earlier, power = power, _dot(residual, residual)
        direction = residual + power / earlier.clamp_min(1e-30) * direction
    return solution


def _start(values: Planes, known: Bool[Tensor, "plane 1 row column"], bound: Float[Tensor, "plane 1 1 1"]) -> Planes:
    """The solution on a grid of half the side, or the mean of the known pixels on the coarsest."""
    weight = known.to(values)
    if min(values.shape[-2:]) <= COARSEST:
        return ((values * weight).sum((-2, -1), keepdim=True) / weight.sum((-2, -1), keepdim=True)).expand_as(values)
    total, share = (F.avg_pool2d(each, 2, ceil_mode=True) for each in (values * weight, weight))
    coarse = _solve(total / share.clamp_min(1e-12), share > 0, bound)
    return F.interpolate(coarse, values.shape[-2:], mode="bilinear", align_corners=False)


def _neighbours(planes: Float[Tensor, "plane 1 row column"]) -> Float[Tensor, "plane 1 row column"]:
    """Weighted sum over each pixel's neighbours; nothing lies beyond the border."""
    sideways = F.pad(planes, (1, 1, 0, 0))
    pair = sideways[..., :-2] + sideways[..., 2:]
    upright = F.pad(DIAGONAL * pair + BESIDE * planes, (0, 0, 1, 1))
    return BESIDE * pair + upright[..., :-2, :] + upright[..., 2:, :]


def _dot(first: Planes, second: Planes) -> Float[Tensor, "plane 1 1 1"]:
    return (first * second).sum((-2, -1), keepdim=True)
