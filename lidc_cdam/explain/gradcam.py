"""Grad-CAM for vision transformers."""

import torch

from lidc_cdam.explain.inputs import check_size
from lidc_cdam.explain.last_block import LastBlock
from lidc_cdam.explain.passes import Call, Images, TokenScores
from lidc_cdam.explain.registry import ScoreMaps, register
from lidc_cdam.explain.targets import Targets
from lidc_cdam.model import NoduleModel


def _check(signed: bool = False, batch_size: int = 1) -> None:
    check_size(batch_size)


@register("gradcam", "Grad-CAM", concepts=True, check=_check)
def gradcam(
    model: NoduleModel, images: Images, targets: Targets = None, *, signed: bool = False, batch_size: int = 64
) -> ScoreMaps:
    """S_i = ReLU(sum_j w_j T_ij), w_j being the mean of df_c/dT_ij over the patch tokens i.

    T is the output of the last block's `norm1`. Selvaraju et al., Grad-CAM (ICCV 2017), as Gildenblat's
    pytorch-grad-cam (2021) applies it to vision transformers, without its scaling. With the ReLU the map of a
    `Contrast` is the combination of the outputs' maps, not the map of the combined output.

    Args:
        model: what to explain.
        images: normalised images of the model's size.
        targets: keys out of `model.targets`, `Concept`s and `Contrast`s; all outputs by default.
        signed: leave the ReLU out, so that tokens against the output show too.
        batch_size: images at a time, at most; changes no map.
    """
    call, cut = Call.of(model, images, targets, batch_size, tokens="last"), LastBlock(model)

    def scores(chunk: Images) -> TokenScores:
        entry = cut.enter(chunk)
        slopes = cut.gradients(entry.tokens, entry, lambda latents: call.request.read(model, latents))
        weights = slopes[:, :, cut.prefix :].mean(2)
        combined = torch.einsum("rij,itj->irt", weights, entry.tokens)
        return combined if signed else combined.clamp(min=0)

    return call.token_maps(scores)
