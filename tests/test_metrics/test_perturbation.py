import pytest
import torch

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.metrics.faithfulness import curves
from lidc_cdam.metrics.inpainting import inpaint
from lidc_cdam.metrics.perturbation import Perturbed, check_fill


def test_each_fill_replaces_the_removed_pixels_alone() -> None:
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    removed = torch.zeros(3, 16, 16, dtype=torch.bool)
    removed[:, 4:9, 5:12] = True
    chosen = torch.tensor([1, 0, 1])
    for fill in ("blur", "mean", "linear"):
        found = Perturbed.of(images, fill).without(chosen, removed)  # type: ignore[arg-type]
        assert torch.equal(found[:, :, ~removed[0]], images[chosen][:, :, ~removed[0]])
        assert not torch.isclose(found, images[chosen])[:, :, removed[0]].any(-1).all()
    means = images.mean((-2, -1))[chosen]
    mean = Perturbed.of(images, "mean").without(chosen, removed)[:, :, removed[0]]
    torch.testing.assert_close(mean, means[..., None].expand_as(mean))
    torch.testing.assert_close(
        Perturbed.of(images, "linear").without(chosen, removed), inpaint(images[chosen], removed)
    )


def test_an_unknown_fill() -> None:
    with pytest.raises(LidcCdamError, match=r"--fill must be one of blur, mean, linear; got 'noise'\."):
        check_fill("noise", None)


def test_maps_that_cannot_be_ranked() -> None:
    scores = torch.rand(2, 3, 4, 4)
    scores[1, 2, 0, 0] = torch.nan
    with pytest.raises(LidcCdamError, match=r"map 2 of image 1 \(from 0\) holds NaN or infinity"):
        curves(lambda images: images.mean((1, 2)), torch.rand(2, 3, 8, 8), scores)
