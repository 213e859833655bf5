"""Images with pixels replaced, many at a time, and what a model says of them.

A removed pixel is filled in by one of `FILLS`:

    blur     the pixel of the Gaussian-blurred image (the paper's)
    mean     the channel's mean over the image
    linear   the weighted mean of its neighbours, solved for all removed pixels at once (`inpainting`)

One perturbed image gives all outputs of a model, so everything here reads all of them.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain.inputs import check_size, evaluation_mode
from lidc_cdam.metrics.inpainting import inpaint

Model = Callable[[Float[Tensor, "image channel row column"]], Float[Tensor, "image output"]]
"""A module (used in evaluation mode and left as it was) or any function of images."""
Images = Float[Tensor, "image channel row column"]
Fill = Literal["blur", "mean", "linear"]
FILLS = ("blur", "mean", "linear")
BLUR_SHARE = 14 / 224
"""Blur sigma as a share of the image's side: the paper's 14 pixels at 224."""


@dataclass(frozen=True)
class Perturbed:
    """Images, and what stands in for their removed pixels."""

    images: Images
    background: Images | None
    """What replaces removed pixels; None solves for them."""

    @classmethod
    def of(cls, images: Images, fill: Fill = "blur", blur_sigma: float | None = None) -> "Perturbed":
        """Prepare images.

        Args:
            images: normalised images.
            fill: one of `FILLS`.
            blur_sigma: of the Gaussian blur, in pixels; by default the paper's 14 at 224, scaled to the image's width.

        Raises:
            LidcCdamError: an unknown fill, or a sigma that is not above 0.
        """
        check_fill(fill, blur_sigma)
        if fill == "linear":
            return cls(images, None)
        if fill == "mean":
            return cls(images, images.mean((-2, -1), keepdim=True).expand_as(images))
        return cls(images, blur(images, images.shape[-1] * BLUR_SHARE if blur_sigma is None else blur_sigma))

    def without(self, image: Int[Tensor, " part"], removed: Bool[Tensor, "part row column"]) -> Images:
        """Copies of the images numbered `image`, each with the pixels of its own `removed` replaced."""
        if self.background is None:
            return inpaint(self.images[image], removed)
        return torch.where(removed[:, None], self.background[image], self.images[image])

    def ends(self) -> tuple[Images, Images]:
        """The images as they are, and with every pixel replaced."""
        if self.background is not None:
            return self.images, self.background
        every = torch.ones(len(self.images), *self.images.shape[-2:], dtype=torch.bool, device=self.images.device)
        return self.images, inpaint(self.images, every)


def check_fill(fill: str, blur_sigma: float | None) -> None:
    """Check how removed pixels are filled in.

    Raises:
        LidcCdamError: an unknown fill, or a sigma that is not above 0.
    """
    if fill not in FILLS:
        raise LidcCdamError(f"--fill must be one of {', '.join(FILLS)}; got {fill!r}.")
    if blur_sigma is not None and not blur_sigma > 0:
        raise LidcCdamError(f"--blur-sigma must be above 0 pixels; got {blur_sigma}.")


def blur(images: Images, sigma: float) -> Images:
    """Gaussian blur of each channel, sigma in pixels; the image is mirrored at its edges, their pixels repeated."""
    smooth = gaussian_filter(images.detach().cpu().numpy(), (0, 0, sigma, sigma), mode="reflect", truncate=4.0)
    return torch.from_numpy(smooth).to(images)


def undisturbed(model: Model) -> AbstractContextManager[object]:
    """Evaluation mode and no gradients inside the block; the model is as it was after it."""
    stack = ExitStack()
    stack.enter_context(torch.no_grad())
    if isinstance(model, nn.Module):
        stack.enter_context(evaluation_mode(model))
    return stack


def outputs_of(model: Model, images: Images, batch_size: int) -> Float[Tensor, "image output"]:
    """All outputs for each image, a part of them at a time."""
    check_size(batch_size)
    return torch.cat([model(part) for part in torch.split(images, batch_size)])
