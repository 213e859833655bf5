"""What every estimator asks of its images and its model: checked pixels, evaluation mode, parts of a batch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lidc_cdam.backbones import BACKBONES
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.model import NoduleModel


def check_images(model: NoduleModel, images: Float[Tensor, "..."]) -> None:
    """Check that a model can explain these images.

    Raises:
        LidcCdamError: no image, another shape than the model's, or a pixel that is no finite number.
    """
    patch_embed = getattr(model.backbone, "patch_embed", None)
    if patch_embed is None:
        raise not_a_vit(model, [".patch_embed"])
    height, width = model.image_size
    fits = images.ndim == 4 and len(images) > 0 and images.shape[1] == model.channels
    if fits and getattr(model.backbone, "dynamic_img_size", False):
        rows, columns = patch_embed.patch_size
        if any(side < patch or side % patch for side, patch in zip(images.shape[2:], (rows, columns), strict=True)):
            raise LidcCdamError(
                f"Images to explain must have a height that {rows} divides and a width that {columns} divides, the "
                f"model's patches, got {list(images.shape)}; make them with `Intensity.apply(images_hu, size)`."
            )
    elif not fits or tuple(images.shape[2:]) != (height, width):
        raise LidcCdamError(
            f"Images to explain must have the shape [image, {model.channels}, {height}, {width}] with at least one "
            f"image, got {list(images.shape)}; make them with `Intensity.apply(images_hu, model.image_size)`."
        )
    # A sum over an image is finite unless a pixel is not (or overflows), and needs no copy of the batch.
    wrong = (~torch.isfinite(images.sum((1, 2, 3), dtype=torch.float32))).nonzero().flatten().tolist()
    if wrong:
        raise LidcCdamError(
            f"Images to explain must hold finite numbers, but image {wrong[0]} of {len(images)} (from 0) holds NaN or "
            f"infinity; mend or leave out what it was made from."
        )


def not_a_vit(model: NoduleModel, missing: list[str]) -> LidcCdamError:
    """The error for a backbone without the parts of a vision transformer."""
    return LidcCdamError(
        f"Maps on the last block need a vision transformer as timm builds it, but {type(model.backbone).__name__} "
        f"lacks {', '.join(missing)}; use --backbone with one of {', '.join(BACKBONES)}."
    )


def token_grid(
    model: NoduleModel, images: Float[Tensor, "image channel height width"] | None = None
) -> tuple[int, int]:
    """Rows and columns of the patch tokens: of these images, or of the model's own size."""
    embed = model.backbone.patch_embed
    rows, columns = embed.grid_size
    if images is not None and getattr(model.backbone, "dynamic_img_size", False):
        rows, columns = embed.dynamic_feat_size(tuple(images.shape[-2:]))
    return int(rows), int(columns)


def check_gradients(model: NoduleModel) -> None:
    """Check that gradients can be taken through a model.

    Raises:
        LidcCdamError: its parameters were made in inference mode.
    """
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise LidcCdamError(
            "A model to explain must allow gradients, but this one was made inside `torch.inference_mode`; "
            "make or load it outside."
        )


def check_finite(outputs: Float[Tensor, "image output"]) -> None:
    """Check that a model gives numbers.

    Raises:
        LidcCdamError: NaN or infinity.
    """
    if not torch.isfinite(outputs).all():
        raise LidcCdamError(
            f"A model to explain must give finite outputs, but this one gives NaN or infinity: its weights hold "
            f"such numbers, or {outputs.dtype} is too narrow for it; train it again, or explain it in float32."
        )


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients but those asked for, whatever the caller has switched on or off."""
    with evaluation_mode(model), torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode inside the block, each back in its own mode after it, whatever happens."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def in_chunks(images: Float[Tensor, "image ..."], size: int) -> Iterator[Float[Tensor, "chunk ..."]]:
    """Consecutive parts of at most `size` images.

    Raises:
        LidcCdamError: `size` is below 1.
    """
    check_size(size)
    yield from torch.split(images, size)


def check_size(batch_size: int) -> None:
    """Check how many images are taken at a time.

    Raises:
        LidcCdamError: it is below 1.
    """
    if batch_size < 1:
        raise LidcCdamError(f"--batch-size must be at least 1 image; got {batch_size}.")
