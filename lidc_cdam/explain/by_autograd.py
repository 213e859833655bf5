"""CDAM by its definition, with gradients through the whole last block: for every model that can be cut before it.

Used where the closed form does not hold, and the test of the closed form where it does. Scores are of all tokens.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from lidc_cdam.explain.last_block import Entry, LastBlock, Read, Tokens
from lidc_cdam.explain.noise import Noise

TokenScores = Float[Tensor, "image readout token"]


class ByAutograd:
    """The estimators on any model that `LastBlock` takes."""

    def __init__(self, cut: LastBlock, entry: Entry, read: Read, block_input: bool = False) -> None:
        """Check that T decides the outputs.

        Args:
            cut: the model, cut.
            entry: what arrived at the last block.
            read: what is differentiated.
            block_input: whether noise and path move the un-normalised block input x instead of T, as one released
                implementation does: T is then norm1 of the moved x, and the residual stream moves too.

        Raises:
            LidcCdamError: T does not, so that the maps would explain another model.
        """
        cut.check(entry)
        self._cut, self._entry, self._read, self._block_input = cut, entry, read, block_input
        self._moved = entry.residual if block_input else entry.tokens

    def scores(self) -> TokenScores:
        """S_ic = sum_j T_ij df_c/dT_ij (Eq. 2)."""
        return self._scores(self._entry.tokens, self._entry.tokens)

    def integrated(self, n: int) -> TokenScores:
        """Eq. 6 with B = 0; the sum over all tokens tends to f(T) - f(0) as n grows if T is what moves."""
        tokens = self._entry.tokens
        return _mean(self._scores(tokens, self._moved * (m / n)) for m in range(1, n + 1))

    def smooth(self, noise: Noise) -> TokenScores:
        """Eq. 5."""
        width = noise.width(self._moved)
        return _mean(self._scores(None, self._moved + width * draw) for draw in noise.draws(self._moved))

    def _scores(self, factor: Tokens | None, moved: Tokens) -> TokenScores:
        """sum_j factor_ij df/dT_ij where T, or the block input, is `moved`; T itself by default is the factor."""
        tokens, entry = moved, self._entry
        if self._block_input and moved is not self._entry.tokens:
            with torch.no_grad():
                tokens, entry = self._cut.normalise(moved), replace(entry, residual=moved)
        gradients = self._cut.gradients(tokens, entry, self._read)
        return torch.einsum("itj,citj->ict", tokens if factor is None else factor, gradients)


def _mean(parts: Iterable[Tensor]) -> Tensor:
    """Mean of tensors of one shape, one of them in memory at a time."""
    total, count = torch.zeros(()), 0
    for count, part in enumerate(parts, start=1):
        total = part if count == 1 else total + part
    return total / count
