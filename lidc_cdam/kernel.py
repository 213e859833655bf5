"""A head that compares a nodule's numbers with those of training nodules: the mean of a Gaussian process."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

LENGTH = 2.0
"""Difference of two nodules over which they stay alike, standard deviations per feature."""


def matern(
    first: Float[Tensor, "nodule feature"], second: Float[Tensor, "other feature"]
) -> Float[Tensor, "nodule other"]:
    """How alike nodules are: the Matern kernel of order 3/2 (Rasmussen and Williams 2006, Eq. 4.17).

        k = (1 + r) exp(-r),  r = sqrt(3) d / LENGTH,  d = root mean square difference over the features

    Args:
        first: scaled numbers (`intensity.FeatureScaling.apply`).
        second: those of others.
    """
    # The plain form of the distance: the faster one through a product loses the digits of near neighbours.
    apart = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist") / first.shape[1] ** 0.5
    scaled = 3**0.5 * apart / LENGTH
    likeness: Tensor = (1 + scaled) * torch.exp(-scaled)
    return likeness


class KernelHead(nn.Module):
    """Likeness to the training nodules, weighted: nothing in it is learnt by gradients."""

    support: Tensor
    weights: Tensor
    offset: Tensor

    def __init__(self, nodules: int, features: int, outputs: int) -> None:
        """A head that still answers 0.

        Args:
            nodules: training nodules that it compares with.
            features: numbers of a nodule.
            outputs: targets.
        """
        super().__init__()
        self.register_buffer("support", torch.zeros(nodules, features))
        self.register_buffer("weights", torch.zeros(nodules, outputs))
        self.register_buffer("offset", torch.zeros(outputs))

    @classmethod
    def of(
        cls,
        support: Float[Tensor, "nodule feature"],
        weights: Float[Tensor, "nodule output"],
        offset: Float[Tensor, "output"],
    ) -> "KernelHead":
        """A fitted head, in float32."""
        nodules, features = support.shape
        head = cls(nodules, features, len(offset))
        head.load_state_dict({"support": support.float(), "weights": weights.float(), "offset": offset.float()})
        return head

    def forward(self, features: Float[Tensor, "nodule feature"]) -> Float[Tensor, "nodule output"]:
        """sum_j k(x, x_j) w_j + b, on the model's own scale."""
        outputs: Tensor = matern(features, self.support) @ self.weights + self.offset
        return outputs
