"""Models whose true relevance is known: each output reads its own pixels, and nothing else."""

import torch
from torch import Tensor, nn

SIDE = 32


class Regions(nn.Module):
    """Output c is the mean of its own quarter of the image, on every channel."""

    def __init__(self, side: int = SIDE) -> None:
        super().__init__()
        half = side // 2
        masks = torch.zeros(4, side, side)
        for target, (row, column) in enumerate(((0, 0), (0, half), (half, 0), (half, half))):
            masks[target, row : row + half, column : column + half] = 1
        self.register_buffer("masks", masks)
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += len(images)
        return torch.einsum("ichw,thw->it", images, self.masks) / self.masks[0].sum()


def bright_images(count: int, side: int = SIDE, seed: int = 0) -> Tensor:
    """Images whose pixels are all above their mean fill in a chequered pattern, with some noise."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    board = ((rows + columns) % 2).float() * 4
    return (board + 0.1 * torch.randn(count, 3, side, side, generator=generator)).contiguous()


def true_maps(model: Regions, images: Tensor, background: Tensor) -> Tensor:
    """What each pixel adds to each output when it is shown instead of `background`: [image, target, row, column]."""
    change = (images - background).sum(1)
    return change[:, None] * model.masks
