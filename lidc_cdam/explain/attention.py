"""Attention itself as a map: of the last block, and rolled out over all of them. One map for every target."""

import torch
from jaxtyping import Float
from torch import Tensor

from lidc_cdam.explain.inputs import check_size
from lidc_cdam.explain.passes import Call, Images, TokenScores
from lidc_cdam.explain.registry import ScoreMaps, register
from lidc_cdam.explain.softmax import attention_layers, check_class_token, softmax_matrices
from lidc_cdam.explain.targets import Targets
from lidc_cdam.model import NoduleModel


def _check(batch_size: int = 1) -> None:
    check_size(batch_size)


@register("attention", "Attention", check=_check, targeted=False)
def attention(model: NoduleModel, images: Images, targets: Targets = None, *, batch_size: int = 64) -> ScoreMaps:
    """A_i = mean over heads of softmax(q_CLS K^T / sqrt(d_h))_i in the last block, the same map for every target.

    Scores are 0 or more; over all tokens they add up to 1.

    Args:
        model: what to explain; its head must read [CLS].
        images: normalised images of the model's size.
        targets: how often the map is returned.
        batch_size: images at a time, at most; changes no map.

    Raises:
        LidcCdamError: there is no [CLS] that the head reads, or the last block has no softmax attention.
    """
    call = Call.of(model, images, targets, batch_size, tokens="none", matrices="last")
    check_class_token(model)
    last = attention_layers(model)[-1:]

    def scores(chunk: Images) -> TokenScores:
        with softmax_matrices(model, last) as matrices:
            readings = call.forward(chunk)
        return _for_every(readings, matrices[0][:, :, 0].mean(1))

    return call.token_maps(scores)


@register("rollout", "Attention rollout", check=_check, targeted=False)
def rollout(model: NoduleModel, images: Images, targets: Targets = None, *, batch_size: int = 64) -> ScoreMaps:
    """Row of [CLS] in the product over blocks of 0.5 A + 0.5 I, last block first, A being the mean over heads.

    Abnar and Zuidema, Quantifying Attention Flow in Transformers (ACL 2020). The rows of 0.5 A + 0.5 I add up to 1 as
    they are, and so do the scores of all tokens. Only the row is propagated, never a product of matrices.

    Args:
        model: what to explain; its head must read [CLS].
        images: normalised images of the model's size.
        targets: how often the map is returned.
        batch_size: images at a time, at most; changes no map.

    Raises:
        LidcCdamError: there is no [CLS] that the head reads, or a block has no softmax attention.
    """
    call = Call.of(model, images, targets, batch_size, tokens="none", matrices="all")
    check_class_token(model)
    layers = attention_layers(model)

    def scores(chunk: Images) -> TokenScores:
        with softmax_matrices(model, layers) as matrices:
            readings = call.forward(chunk)
        row = class_row(matrices[0])
        for matrix in reversed(matrices):
            row = 0.5 * row + 0.5 * row @ matrix.mean(1)
        return _for_every(readings, row[:, 0])

    return call.token_maps(scores)


def class_row(matrix: Float[Tensor, "image head query key"]) -> Float[Tensor, "image one key"]:
    """The row of [CLS] in the identity."""
    row = torch.zeros_like(matrix[:, 0, :1])
    row[..., 0] = 1
    return row


def _for_every(readings: Float[Tensor, "image readout"], row: Float[Tensor, "image token"]) -> TokenScores:
    """The same scores for every readout."""
    return row[:, None].expand(-1, readings.shape[1], -1)
