"""One forward pass that remembers, and a backward pass per readout: what every estimator with gradients stands on."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lidc_cdam.explain.inputs import (
    check_finite,
    check_gradients,
    check_images,
    check_size,
    in_chunks,
    token_grid,
    undisturbed,
)
from lidc_cdam.explain.last_block import LastBlock
from lidc_cdam.explain.registry import ScoreMaps
from lidc_cdam.explain.targets import Request, Targets
from lidc_cdam.model import NoduleModel

Images = Float[Tensor, "image channel height width"]
Readings = Float[Tensor, "image readout"]
TokenScores = Float[Tensor, "image readout token"]

Blocks = Literal["none", "last", "all"]

BUDGET = 2**28
"""Numbers that one forward pass may keep for its backward passes: 1 GiB in single precision, whatever the batch."""


@dataclass(frozen=True)
class Call:
    """What an estimator is asked, checked."""

    model: NoduleModel
    images: Images
    request: Request
    size: int
    """Images that go through the model at a time: as many as `batch_size` allows and the memory holds."""

    @classmethod
    def of(
        cls,
        model: NoduleModel,
        images: Images,
        targets: Targets,
        batch_size: int,
        tokens: Blocks = "all",
        matrices: Blocks = "none",
    ) -> "Call":
        """Check a call.

        Args:
            model: what to explain.
            images: normalised images of the model's size.
            targets: what to explain.
            batch_size: images at a time, at most.
            tokens: the blocks whose tokens are kept for a backward pass.
            matrices: the blocks whose attention matrices are kept.

        Raises:
            LidcCdamError: images or targets that do not fit the model, or a model without gradients.
        """
        check_images(model, images)
        check_size(batch_size)
        check_gradients(model)
        kept = _kept_by_an_image(model, images, tokens, matrices)
        return cls(model, images, Request.of(model, targets), max(1, min(batch_size, BUDGET // kept)))

    def chunks(self) -> Iterator[Images]:
        """Parts of the images in the model's precision, free to take part in gradients."""
        weight = next(self.model.parameters())
        for chunk in in_chunks(self.images, self.size):
            yield chunk.to(weight).clone()

    def forward(self, images: Images) -> Readings:
        """Every readout of some images.

        Raises:
            LidcCdamError: the model gives no numbers.
        """
        readings = self.request.read(self.model, self.model.embed(images))
        check_finite(readings)
        return readings

    def token_maps(self, scores: Callable[[Images], TokenScores]) -> ScoreMaps:
        """Maps on the token grid from scores of all tokens; [CLS] and registers are dropped, targets mixed."""
        prefix = LastBlock(self.model).prefix
        with undisturbed(self.model), torch.autocast(self.images.device.type, enabled=False):
            parts = [scores(chunk)[..., prefix:] for chunk in self.chunks()]
        maps = self.request.mix(torch.cat(parts))
        return maps.reshape(*maps.shape[:-1], *token_grid(self.model, self.images))


def gradients(readings: Readings, inputs: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """The gradient of each readout by all inputs, one readout at a time; the graph is let go after the last.

    An input that a readout does not depend on has the gradient zero.
    """
    with torch.enable_grad():
        sums = readings.sum(0).unbind()
    for index, reading in enumerate(sums, start=1):
        yield torch.autograd.grad(reading, inputs, retain_graph=index < len(sums), materialize_grads=True)


def _kept_by_an_image(model: NoduleModel, images: Images, tokens: Blocks, matrices: Blocks) -> int:
    """About how many numbers a pass of one image keeps: 16 widths a token of a block, three arrays of its attention."""
    rows, columns = token_grid(model, images)
    length = int(getattr(model.backbone, "num_prefix_tokens", 0)) + rows * columns
    blocks: Any = getattr(model.backbone, "blocks", ())
    depth = {"none": 0, "last": 1, "all": len(blocks)}
    heads = int(getattr(getattr(blocks[-1], "attn", None), "num_heads", 1)) if len(blocks) else 0
    width = int(model.backbone.num_features)
    return max(1, depth[tokens] * 16 * width * length + depth[matrices] * 3 * heads * length**2)
