"""What a map should not survive, and what it should: random weights, other labels, another training of the same model.

Cascading randomisation (Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018): the weights are replaced by
fresh ones from the head down to the patch embedding, stage by stage, and after each stage the map is compared with the
original one by Spearman's rank correlation. A map that stays as it was does not explain what was learnt there.
"""

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lidc_cdam.backbones import build_backbone
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.kernel import KernelHead
from lidc_cdam.model import NoduleModel

Maps = Float[Tensor, "*map row column"]
EVERY_WEIGHT = "embedding"
"""The last stage of the cascade, after which no weight is left as it was learnt."""


def rank_correlation(first: Maps, second: Maps) -> Float[Tensor, "*map"]:
    """Spearman's rank correlation of two maps over their cells; equal scores share their mean rank.

    Returns:
        -1 to 1 per map; NaN where one of the two is constant.
    """
    ranks = [_ranks(each.double().flatten(-2)) for each in (first, second)]
    centred = [each - each.mean(-1, keepdim=True) for each in ranks]
    norms = [(each**2).sum(-1).sqrt() for each in centred]
    product = norms[0] * norms[1]
    return (centred[0] * centred[1]).sum(-1) / torch.where(product > 0, product, torch.nan)


def stages(model: NoduleModel) -> dict[str, tuple[str, ...]]:
    """Parts of a model from the head down: stage -> beginnings of its parameters' names."""
    blocks = range(len(model.backbone.blocks) - 1, -1, -1)
    from_head: dict[str, tuple[str, ...]] = {"head": ("head.", "side_head.", "backbone.norm.", "backbone.fc_norm.")}
    return {
        **from_head,
        **{f"block_{index + 1}": (f"backbone.blocks.{index}.",) for index in blocks},
        EVERY_WEIGHT: ("",),
    }


def randomised(model: NoduleModel, seed: int = 0) -> Iterator[tuple[str, NoduleModel]]:
    """Copies of a model whose weights are fresh from the head down to each stage.

    Args:
        model: is left as it was.
        seed: of the fresh weights, drawn as training draws its first ones.

    Yields:
        The stage's name and **one** model that is changed further after each.

    Raises:
        LidcCdamError: the model does not name its backbone, so that no fresh one can be made.
    """
    changed, fresh = fresh_model(model, seed), fresh_model(model, seed)
    changed.load_state_dict(model.state_dict())
    weights, new = changed.state_dict(), fresh.state_dict()
    for stage, beginnings in stages(model).items():
        with torch.no_grad():
            for name, weight in weights.items():
                if name.startswith(beginnings):
                    weight.copy_(new[name])
        yield stage, changed


def cascade(
    model: NoduleModel, explained: Callable[[nn.Module], Maps], seed: int = 0
) -> dict[str, Float[Tensor, "*map"]]:
    """Rank correlation with the original map after each stage but the last, which is that of `fresh_model`.

    Args:
        model: what to explain.
        explained: maps of a model.
        seed: of the fresh weights.
    """
    original = explained(model)
    return {
        stage: rank_correlation(original, explained(changed))
        for stage, changed in randomised(model, seed)
        if stage != EVERY_WEIGHT
    }


def mean_correlation(original: Maps, others: Sequence[Maps]) -> Float[Tensor, "*map"]:
    """Mean rank correlation of a map with several others of the same."""
    return torch.stack([rank_correlation(original, other) for other in others]).mean(0)


def fresh_model(model: NoduleModel, seed: int = 0) -> NoduleModel:
    """A model of the same kind with every weight fresh, where and as precise as the other.

    Args:
        model: is left as it was.
        seed: of the fresh weights, drawn as training draws its first ones.

    Raises:
        LidcCdamError: the model does not name its backbone, so that no fresh one can be made.
    """
    if model.backbone_name is None:
        raise LidcCdamError(
            "A model to be randomised must name its backbone; build it with `build_backbone` or pass `backbone_name`."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = build_backbone(model.backbone_name, None, model.image_size, channels=model.channels)
        # A kernel has no weights that gradients could learn, and no map sees it: it stays.
        kernel = copy.deepcopy(model.side_head) if isinstance(model.side_head, KernelHead) else None
        fresh = NoduleModel(backbone, model.targets, model.head_kind, features=model.features, kernel=kernel)
    return fresh.to(next(model.parameters())).eval()


def _ranks(values: Float[Tensor, "*map cell"]) -> Float[Tensor, "*map cell"]:
    """Mean rank of each value among its map's, from 1."""
    ordered = values.sort(-1).values.contiguous()
    below = torch.searchsorted(ordered, values.contiguous(), right=False)
    not_above = torch.searchsorted(ordered, values.contiguous(), right=True)
    return (below + not_above + 1).double() / 2
