"""Whether an integrated map adds up: its scores should sum to what the output changes between the path's ends.

Sundararajan, Taly & Yan 2017: sum of the scores = f(end) - f(start), in the limit of many steps. Integrated CDAM's sum
goes over **all** tokens, [CLS] and registers too, of which a map shows the patches; its path starts at T = 0.
Integrated Gradients starts at a black image.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lidc_cdam.explain.by_autograd import ByAutograd
from lidc_cdam.explain.closed_form import ClosedForm, why_not
from lidc_cdam.explain.inputs import evaluation_mode
from lidc_cdam.explain.last_block import LastBlock
from lidc_cdam.explain.pixels import black_of
from lidc_cdam.explain.registry import explain
from lidc_cdam.explain.targets import Request
from lidc_cdam.model import NoduleModel

Images = Float[Tensor, "image channel height width"]
Figures = Float[Tensor, "image target"]


def completeness(model: NoduleModel, images: Images, method: str, options: dict[str, Any]) -> tuple[Figures, Figures]:
    """What a map's scores add up to, and what they should.

    Args:
        model: what was explained.
        images: normalised images of the model's size.
        method: one of `INTEGRATED`.
        options: the method's own settings.

    Returns:
        The sum of all scores, and f(end) - f(start), on the model's own scale.
    """
    return INTEGRATED[method](model, images, options)


def _of_tokens(model: NoduleModel, images: Images, options: dict[str, Any]) -> tuple[Figures, Figures]:
    cut, request = LastBlock(model), Request.of(model, None)
    with evaluation_mode(model), torch.inference_mode(False), torch.no_grad():
        entry = cut.enter(images)
        read = partial(request.read, model)
        form: ClosedForm | ByAutograd = ByAutograd(cut, entry, read)
        if why_not(cut, entry) is None:
            form = ClosedForm(cut, entry, read, len(request.readouts))
        sums = form.integrated(options.get("n", 50)).sum(-1)
        return sums, cut.tail(entry.tokens, entry) - cut.tail(torch.zeros_like(entry.tokens), entry)


def _of_pixels(model: NoduleModel, images: Images, options: dict[str, Any]) -> tuple[Figures, Figures]:
    sums = explain(model, images, None, "integrated_gradients", "native", **options).sum((-2, -1))
    black = torch.stack([black_of(model, image, options.get("baseline")) for image in images])
    with evaluation_mode(model), torch.no_grad():
        return sums, model(images) - model(black)


INTEGRATED: dict[str, Callable[[NoduleModel, Images, dict[str, Any]], tuple[Figures, Figures]]] = {
    "integrated_cdam": _of_tokens,
    "integrated_gradients": _of_pixels,
}
"""Methods whose scores should add up."""
