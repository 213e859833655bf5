"""Relevance propagation through all attention layers, and LeGrad: both rest on gradients by attention matrices."""

import torch

from lidc_cdam.explain.attention import class_row
from lidc_cdam.explain.inputs import check_size
from lidc_cdam.explain.passes import Call, Images, TokenScores, gradients
from lidc_cdam.explain.registry import ScoreMaps, register
from lidc_cdam.explain.softmax import attention_layers, check_class_token, softmax_matrices
from lidc_cdam.explain.targets import Targets
from lidc_cdam.model import NoduleModel


def _check(batch_size: int = 1) -> None:
    check_size(batch_size)


@register("relevance_propagation", "Relevance propagation", concepts=True, check=_check)
def relevance_propagation(
    model: NoduleModel, images: Images, targets: Targets = None, *, batch_size: int = 64
) -> ScoreMaps:
    """Row of [CLS] in R, where R starts as the identity and every block adds A R to it, the first block first.

    A = mean over heads of (df_c/da * a)^+, a being the block's softmax matrix. Chefer, Gur and Wolf, Generic Attention-
    Model Explainability (ICCV 2021), Eq. 5 and 6. R is the product of I + A over blocks, so that its row of [CLS]
    needs products of that row alone. Scores are 0 or more: only what speaks for the output is followed. The map of a
    `Contrast` is therefore the combination of the outputs' maps, not the map of the combined output.

    Args:
        model: what to explain; its head must read [CLS].
        images: normalised images of the model's size.
        targets: keys out of `model.targets`, `Concept`s and `Contrast`s; all outputs by default.
        batch_size: images at a time, at most; changes no map.

    Raises:
        LidcCdamError: there is no [CLS] that the head reads, or a block has no softmax attention.
    """
    call = Call.of(model, images, targets, batch_size, matrices="all")
    check_class_token(model)
    layers = attention_layers(model)

    def scores(chunk: Images) -> TokenScores:
        with torch.enable_grad(), softmax_matrices(model, layers) as matrices:
            readings = call.forward(chunk.requires_grad_())
        rows = []
        for slopes in gradients(readings, matrices):
            row = class_row(matrices[0])
            for matrix, slope in zip(reversed(matrices), reversed(slopes), strict=True):
                row = row + row @ (slope * matrix.detach()).clamp(min=0).mean(1)
            rows.append(row[:, 0])
        return torch.stack(rows, 1)

    return call.token_maps(scores)
