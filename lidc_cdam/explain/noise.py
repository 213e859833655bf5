"""The noise of Smooth CDAM: the same draws for every image, batch, part of a batch and precision."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lidc_cdam.errors import LidcCdamError

SHARE = 0.05
"""Default standard deviation as a share of an image's max T - min T."""


@dataclass(frozen=True)
class Noise:
    """n draws of N(0, sigma^2) for every component of the tokens (Eq. 5)."""

    n: int = 50
    """Number of noisy copies."""
    sigma: float | None = None
    """Standard deviation; 0.05 (max T - min T) of each image by default."""
    seed: int = 0
    """Seed of the draws."""
    antithetic: bool = False
    """Whether the second of each two copies carries the first's noise with the opposite sign."""

    def __post_init__(self) -> None:
        check_copies(self.n)
        if self.sigma is not None and not self.sigma >= 0:
            raise LidcCdamError(f"--options.sigma must be 0 or more; got {self.sigma}.")
        if self.antithetic and self.n % 2:
            raise LidcCdamError(f"--options.n must be even where --options.antithetic is true; got {self.n}.")

    def width(self, tokens: Float[Tensor, "image token channel"]) -> Float[Tensor, "image 1 1"]:
        """The standard deviation for each image."""
        if self.sigma is not None:
            return tokens.new_full((len(tokens), 1, 1), self.sigma)
        return SHARE * (tokens.amax((1, 2), keepdim=True) - tokens.amin((1, 2), keepdim=True))

    def draws(self, tokens: Float[Tensor, "image token channel"]) -> Iterator[Float[Tensor, "token channel"]]:
        """The n draws of standard deviation 1, one after the other; every image of a batch gets the same."""
        # Drawn on the CPU in single precision, so that device and precision change no map beyond rounding.
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.n // 2 if self.antithetic else self.n):
            draw = torch.randn(tokens.shape[1:], generator=generator, dtype=torch.float32).to(tokens)
            yield draw
            if self.antithetic:
                yield -draw


def check_copies(n: int) -> None:
    """Check a number of copies or steps.

    Raises:
        LidcCdamError: it is below 1.
    """
    if n < 1:
        raise LidcCdamError(f"--options.n must be at least 1; got {n}.")
