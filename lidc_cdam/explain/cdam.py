"""Class-discriminative attention maps: the paper's three estimators, by their definition.

Brocki, Binda and Chung, Class-Discriminative Attention Maps for Vision Transformers (TMLR 2024), Eq. 2, 5 and 6. T is
the matrix of layer-normalised tokens that enter the last attention layer, f_c one output on the model's own scale. All
rows of T move, [CLS] and registers too; the un-normalised residual stream is held fixed. A map is positive where a
token raises the output. It explains the last block and the head, nothing before them.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain.last_block import Entry, LastBlock
from lidc_cdam.explain.registry import ScoreMaps, check_request, evaluation_mode, in_chunks, register, token_grid
from lidc_cdam.model import NoduleModel

TokenScores = Float[Tensor, "image target token"]
Estimator = Callable[[LastBlock, Entry, Sequence[int]], TokenScores]


@register("cdam", "CDAM")
def cdam(
    model: NoduleModel,
    images: Float[Tensor, "image channel height width"],
    targets: str | Sequence[str] | None = None,
    *,
    batch_size: int = 64,
) -> ScoreMaps:
    """S_ic = sum_j T_ij df_c/dT_ij (Eq. 2) on the token grid.

    Args:
        model: what to explain.
        images: normalised images of the model's size.
        targets: keys out of `model.targets`; all by default.
        batch_size: images at a time, which bounds the memory and changes nothing else.
    """
    return _maps(model, images, targets, batch_size, class_scores)


@register("smooth_cdam", "Smooth CDAM")
def smooth_cdam(
    model: NoduleModel,
    images: Float[Tensor, "image channel height width"],
    targets: str | Sequence[str] | None = None,
    *,
    n: int = 50,
    sigma: float | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> ScoreMaps:
    """S_ic = 1/n sum_m sum_j T~_ij df_c(T~)/dT~_ij with T~ = T + N(0, sigma^2) (Eq. 5) on the token grid.

    Args:
        model: what to explain.
        images: normalised images of the model's size.
        targets: keys out of `model.targets`; all by default.
        n: number of noisy copies.
        sigma: standard deviation of the noise; 0.05 (max T - min T) of each image by default.
        seed: seed of the noise; every image gets the same n draws, so that its map does not depend on the batch.
        batch_size: images at a time, which bounds the memory and changes nothing else.
    """
    _check_copies(n)
    if sigma is not None and sigma < 0:
        raise LidcCdamError(f"--options.sigma must be 0 or more; got {sigma}.")
    return _maps(model, images, targets, batch_size, lambda cut, entry, c: smooth_scores(cut, entry, c, n, sigma, seed))


@register("integrated_cdam", "Integrated CDAM")
def integrated_cdam(
    model: NoduleModel,
    images: Float[Tensor, "image channel height width"],
    targets: str | Sequence[str] | None = None,
    *,
    n: int = 50,
    batch_size: int = 64,
) -> ScoreMaps:
    """S_ic = sum_j (T_ij - B_ij) 1/n sum_m df_c(B + m/n (T - B))/dT_ij with B = 0 (Eq. 6) on the token grid.

    Args:
        model: what to explain.
        images: normalised images of the model's size.
        targets: keys out of `model.targets`; all by default.
        n: number of steps from B to T.
        batch_size: images at a time, which bounds the memory and changes nothing else.
    """
    _check_copies(n)
    return _maps(model, images, targets, batch_size, lambda cut, entry, c: integrated_scores(cut, entry, c, n))


def class_scores(cut: LastBlock, entry: Entry, targets: Sequence[int]) -> TokenScores:
    """Eq. 2 for all tokens, [CLS] and registers included."""
    return _scores(entry.tokens, cut.gradients(entry.tokens, entry, targets))


def smooth_scores(
    cut: LastBlock, entry: Entry, targets: Sequence[int], n: int, sigma: float | None, seed: int
) -> TokenScores:
    """Eq. 5 for all tokens, [CLS] and registers included."""
    tokens = entry.tokens
    spread = tokens.amax((1, 2), keepdim=True) - tokens.amin((1, 2), keepdim=True)
    width = 0.05 * spread if sigma is None else torch.full_like(spread, sigma)
    generator = torch.Generator().manual_seed(seed)

    def sample() -> TokenScores:
        noise = torch.randn(tokens.shape[1:], generator=generator, dtype=torch.float64).to(tokens)
        noisy = tokens + width * noise
        return _scores(noisy, cut.gradients(noisy, entry, targets))

    return _mean(sample() for _ in range(n))


def integrated_scores(cut: LastBlock, entry: Entry, targets: Sequence[int], n: int) -> TokenScores:
    """Eq. 6 for all tokens; their sum tends to f(T) - f(0) as n grows."""
    tokens = entry.tokens
    return _scores(tokens, _mean(cut.gradients(tokens * (m / n), entry, targets) for m in range(1, n + 1)))


def _mean(parts: Iterable[Tensor]) -> Tensor:
    """Mean of tensors of one shape, one of them in memory at a time."""
    total, count = torch.zeros(()), 0
    for count, part in enumerate(parts, start=1):
        total = part if count == 1 else total + part
    return total / count


def _scores(
    tokens: Float[Tensor, "image token channel"], gradients: Float[Tensor, "target image token channel"]
) -> TokenScores:
    return torch.einsum("itj,citj->ict", tokens, gradients)


def _maps(
    model: NoduleModel, images: Tensor, targets: str | Sequence[str] | None, batch_size: int, estimator: Estimator
) -> ScoreMaps:
    """Scores of the patch tokens on their grid, a part of the images at a time."""
    indices = check_request(model, images, targets)
    rows, columns = token_grid(model)
    cut = LastBlock(model)
    # Gradients are needed even where the caller has switched them off altogether.
    with evaluation_mode(model), torch.inference_mode(False):
        parts = [estimator(cut, cut.enter(chunk), indices) for chunk in in_chunks(images, batch_size)]
    scores = torch.cat(parts)[..., cut.prefix :]
    return scores.reshape(*scores.shape[:2], rows, columns)


def _check_copies(n: int) -> None:
    if n < 1:
        raise LidcCdamError(f"--options.n must be at least 1; got {n}.")
