import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from lidc_cdam.backbones import build_backbone
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain import explain
from lidc_cdam.kernel import KernelHead
from lidc_cdam.metrics.completeness import completeness
from lidc_cdam.metrics.sanity import cascade, fresh_model, mean_correlation, randomised, rank_correlation, stages
from lidc_cdam.model import NoduleModel


@pytest.fixture
def model() -> NoduleModel:
    torch.manual_seed(0)
    found = NoduleModel(build_backbone("tiny"), ("margin", "diameter"), "mlp").eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return found


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_rank_correlation_equals_scipys_with_ties() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(3, 2, 8, 8)), rng.integers(0, 4, (3, 2, 8, 8)).astype(float)
    found = rank_correlation(torch.from_numpy(first), torch.from_numpy(second))
    for index in np.ndindex(3, 2):
        assert float(found[index]) == pytest.approx(spearmanr(first[index].ravel(), second[index].ravel()).statistic)
    assert torch.isnan(rank_correlation(torch.ones(4, 4), torch.rand(4, 4)))
    grown = torch.arange(9.0).reshape(3, 3)
    assert float(rank_correlation(grown, grown.exp())) == pytest.approx(1)


def test_weights_become_random_from_the_head_down(model: NoduleModel) -> None:
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    names = list(stages(model))
    assert names[0] == "head"
    assert names[-1] == "embedding"
    assert names[1:-1] == [f"block_{number}" for number in range(len(model.backbone.blocks), 0, -1)]
    changed_at = {}
    for stage, changed in randomised(model):
        for name, weight in changed.state_dict().items():
            if not torch.equal(weight, before[name]):
                changed_at.setdefault(name, stage)
    assert changed_at["head.0.weight"] == changed_at["backbone.norm.weight"] == "head"
    assert changed_at["backbone.blocks.0.attn.qkv.weight"] == "block_1"
    assert changed_at["backbone.patch_embed.proj.weight"] == changed_at["backbone.pos_embed"] == "embedding"
    assert set(changed_at) == set(before)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_cascade_is_the_same_every_time_and_needs_the_whole_model_for_a_plain_map(
    model: NoduleModel, images: torch.Tensor
) -> None:
    def explained(given: NoduleModel) -> torch.Tensor:
        return explain(given, images, method="cdam")

    state = torch.random.get_rng_state()
    found = cascade(model, explained)
    assert torch.equal(state, torch.random.get_rng_state())
    again = cascade(model, explained)
    assert all(torch.equal(found[stage], again[stage]) for stage in found)
    assert list(found) == list(stages(model))[:-1]
    original, fresh = explained(model), explained(fresh_model(model))
    assert float(rank_correlation(original, fresh).abs().max()) < 0.5
    still = cascade(model, lambda given: explain(given, images, method="centre"))
    assert all(torch.allclose(values, torch.ones(2, 2, dtype=torch.float64)) for values in still.values())


def test_a_fresh_model_is_the_end_of_the_cascade_and_looks_like_its_model(model: NoduleModel) -> None:
    (*_, (stage, last)) = randomised(model, 3)
    fresh = fresh_model(model, 3)
    assert stage == "embedding"
    assert all(torch.equal(weight, last.state_dict()[name]) for name, weight in fresh.state_dict().items())
    assert (fresh.targets, fresh.image_size, fresh.training) == (model.targets, model.image_size, False)
    other = fresh_model(model, 4).state_dict()
    assert not torch.equal(other["backbone.patch_embed.proj.weight"], fresh.backbone.patch_embed.proj.weight)


def test_a_model_with_a_kernel_beside_the_image_is_randomised_too(images: torch.Tensor) -> None:
    kernel = KernelHead.of(torch.rand(5, 3), torch.rand(5, 2), torch.rand(2))
    model = NoduleModel(build_backbone("tiny"), ("margin", "diameter"), features=3, kernel=kernel).eval()
    found = cascade(model, lambda given: explain(given, images))
    assert list(found) == list(stages(model))[:-1]
    fresh = fresh_model(model)
    assert fresh.side_head is not kernel
    assert torch.equal(fresh.side_head.weights, kernel.weights)


def test_a_model_without_a_name_cannot_be_made_again(model: NoduleModel) -> None:
    model.backbone_name = None
    with pytest.raises(LidcCdamError, match=r"A model to be randomised must name its backbone"):
        next(randomised(model))
    with pytest.raises(LidcCdamError, match=r"must name its backbone"):
        fresh_model(model)


def test_mean_correlation_is_over_the_others() -> None:
    maps = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    found = mean_correlation(maps[0], [maps[1], maps[2]])
    torch.testing.assert_close(found, (rank_correlation(maps[0], maps[1]) + rank_correlation(maps[0], maps[2])) / 2)


def test_integrated_scores_add_up_as_the_steps_grow(model: NoduleModel, images: torch.Tensor) -> None:
    gaps = []
    for n in (5, 50, 500):
        sums, change = completeness(model, images, "integrated_cdam", {"n": n})
        assert sums.shape == change.shape == (2, 2)
        gaps.append(float(((sums - change).abs() / change.abs()).max()))
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.02
