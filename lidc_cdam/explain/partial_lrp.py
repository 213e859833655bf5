"""Partial LRP: relevance of the last attention's softmax matrix."""

from dataclasses import replace

import torch
from torch import nn

from lidc_cdam.explain.inputs import check_size
from lidc_cdam.explain.last_block import Entry, LastBlock
from lidc_cdam.explain.linear import check_complete, final_layers, leaf, linearised
from lidc_cdam.explain.passes import Call, Images, Readings, TokenScores, gradients
from lidc_cdam.explain.registry import ScoreMaps, register
from lidc_cdam.explain.softmax import Matrices, check_class_token, softmax_matrices
from lidc_cdam.explain.targets import Targets
from lidc_cdam.model import NoduleModel


def _check(signed: bool = False, batch_size: int = 1) -> None:
    check_size(batch_size)


@register("partial_lrp", "Partial LRP", concepts=True, check=_check)
def partial_lrp(
    model: NoduleModel, images: Images, targets: Targets = None, *, signed: bool = False, batch_size: int = 64
) -> ScoreMaps:
    """S_i = mean over heads of R(a_CLS,i)^+, the relevance that reaches the last softmax matrix from the output.

    Relevance starts as the output itself, R = f_c, and goes back through head, final norm, MLP and projection by the
    z-rule, R_i = sum_j x_i w_ij / z_j R_j with z_j = sum_i x_i w_ij + b_j. No epsilon is added: the quotients R_j / z_j
    are carried as such and never divided. What each layer does:

    * linear layers: the z-rule; the bias keeps its share, so that relevance and biases' shares add up to f_c;
    * layer norm: linear with its deviation held fixed, the z-rule then through the subtraction of the mean as well
      (Ali et al., XAI for Transformers, ICML 2022), as conservative as a linear layer;
    * GELU, ReLU: relevance passes unchanged, x g with the gate g = act(x) / x held fixed;
    * residual sums: each summand takes its share; layer scale: unchanged;
    * attention o_j = sum_i a_ji v_i: all relevance goes to a, the values being held fixed (half of it in
      implementations that share it between a and v: a constant factor).

    Voita et al., Analyzing Multi-Head Self-Attention (ACL 2019); the map as in Chefer, Gur and Wolf's comparison
    (CVPR 2021). The map of a `Contrast` is the combination of the outputs' maps.

    Args:
        model: what to explain; its head must read [CLS].
        images: normalised images of the model's size.
        targets: keys out of `model.targets`, `Concept`s and `Contrast`s; all outputs by default. The likeness to a
            concept is not linear in the latent unless it is the dot product; its gradient stands in for the z-rule.
        signed: keep negative relevance too.
        batch_size: images at a time, at most; changes no map.

    Raises:
        LidcCdamError: there is no [CLS] that the head reads, or the model has layers without a rule.
    """
    call, cut = Call.of(model, images, targets, batch_size, tokens="last", matrices="last"), LastBlock(model)
    check_class_token(model)

    def scores(chunk: Images) -> TokenScores:
        readings, matrix = _tail(call, cut, cut.enter(chunk))
        slopes = torch.stack([slope[:, :, 0] for (slope,) in gradients(readings, [matrix])], 1)
        relevance = matrix.detach()[:, None, :, 0] * slopes
        return (relevance if signed else relevance.clamp(min=0)).mean(2)

    return call.token_maps(scores)


def _tail(call: Call, cut: LastBlock, entry: Entry) -> tuple[Readings, Matrices]:
    """Every readout as a linear function of the last softmax matrix, and that matrix."""
    with (
        torch.enable_grad(),
        linearised(_after_attention(cut)) as biased,
        softmax_matrices(cut.model, [cut.attention], leaf) as matrices,
    ):
        residual = leaf(entry.residual)
        latents = cut.latent(entry.tokens, replace(entry, residual=residual))
        check_complete(cut.model, cut.model.head(latents), [matrices[0], residual], biased)
        return call.request.read(cut.model, latents), matrices[0]


def _after_attention(cut: LastBlock) -> list[nn.Module]:
    """Everything between the softmax matrix and the outputs that is no part of the values."""
    inside = [child for name, child in cut.attention.named_children() if name in ("norm", "proj")]
    after = [child for name, child in cut.block.named_children() if name not in ("norm1", "attn")]
    return [*inside, *after, *final_layers(cut.model)]
