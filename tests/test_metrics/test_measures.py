import numpy as np
import pytest
import torch
from known_model import SIDE, Regions, bright_images, true_maps

from lidc_cdam.backbones import build_backbone
from lidc_cdam.crop_files import Crop
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.metrics.boxes import box_drops
from lidc_cdam.metrics.faithfulness import fidelity
from lidc_cdam.metrics.measures import (
    Case,
    Map,
    Outlines,
    check_maps,
    compactness,
    consensus_masks,
    localisation,
    measure_boxes,
    measure_fidelity,
)
from lidc_cdam.metrics.perturbation import Perturbed
from lidc_cdam.metrics.settings import Measurement
from lidc_cdam.model import NoduleModel

TARGETS = ("margin", "diameter")
CHANCE_OF = {
    "relevance_mass": "relevance_mass_chance",
    "relevance_rank": "relevance_mass_chance",
    "pointing_game": "relevance_mass_chance",
    "auprc": "auprc_chance",
    "relevance_mass_soft": "relevance_mass_soft_chance",
    "relevance_rank_soft": "relevance_rank_soft_chance",
}
"""Figures that a perfect map has 1 of, and what a random one has."""


def outlines(masks: torch.Tensor, read: torch.Tensor | None = None) -> Outlines:
    return Outlines(masks, masks.double(), torch.ones_like(masks) if read is None else read)


def case(model: object, images: torch.Tensor, measurement: Measurement, batch_size: int = 64) -> Case:
    drops = box_drops(model, images, (4, 8, 12), 20, fill=measurement.fill)  # type: ignore[arg-type]
    empty = outlines(torch.zeros(len(images), SIDE, SIDE, dtype=torch.bool))
    return Case(model, images, empty, measurement, lambda: drops, lambda: model, batch_size)  # type: ignore[arg-type]


def given(scores: torch.Tensor, targeted: bool = True) -> Map:
    return Map("dummy", scores, targeted, {}, lambda model: scores, list, {})


class Named(Regions):
    targets = ("subtlety", "margin", "texture", "diameter")


def test_consensus_is_at_least_half_of_the_readers() -> None:
    counts = np.zeros((32, 32, 32), np.uint8)
    counts[16, 10, :4] = (1, 2, 3, 4)
    crop = Crop(counts.astype(np.int16), counts, (0.0, 0.0, 0.0))
    assert consensus_masks(crop, 4, ["axial"])[0, 10, :5].tolist() == [False, True, True, True, False]
    assert consensus_masks(crop, 3, ["axial"])[0, 10, :5].tolist() == [False, True, True, True, False]
    marks = Outlines.of(crop, np.ones_like(counts, dtype=bool), 4, ["axial"], 0.5, (64, 64))
    assert marks.fractions[0, 20, :10].tolist() == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1, 1, 0, 0]


def test_a_view_without_the_nodule_is_left_out_of_the_mean() -> None:
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, :16] = True
    scores = torch.ones(1, 2, 16, 16)
    assert localisation(scores, outlines(masks))["relevance_mass"].tolist() == [0.5]
    assert all(np.isnan(figure[0]) for figure in localisation(scores, outlines(masks & False)).values())


def test_only_what_was_read_counts_for_localisation() -> None:
    masks = torch.zeros(1, 32, 32, dtype=torch.bool)
    masks[0, 12:20, 12:20] = True
    read = torch.zeros_like(masks)
    read[0, 8:24, 8:24] = True
    found = localisation(torch.ones(1, 1, 16, 16), outlines(masks, read))
    precision = found.pop("auprc_chance")
    assert {name: figure.tolist() for name, figure in found.items()} == {name: [0.25] for name in found}
    assert 0.25 < precision[0] < 0.33


@pytest.mark.parametrize("cells", [8, 32])
def test_a_planted_map_is_perfect_and_a_random_one_is_chance_in_every_figure(cells: int) -> None:
    masks = torch.zeros(400, 32, 32, dtype=torch.bool)
    masks[:, 10:20, 12:24] = True
    planted = localisation(masks[None, :1].double(), outlines(masks[:1]))
    assert all(planted[name].tolist() == [1.0] for name in CHANCE_OF)
    # As many targets as draws, so that each has its own figure.
    noise = torch.rand(400, 1, cells, cells, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = localisation(noise, outlines(masks[:1]))
    for name, level in CHANCE_OF.items():
        assert abs(found[name].mean() - found[level][0]) < 3.5 * found[name].std() / 20, name


def test_soft_marks_count_by_the_share_of_the_readers() -> None:
    fractions = torch.zeros(1, 4, 4)
    fractions[0, 0] = torch.tensor([1.0, 0.5, 0.5, 0.0])
    marks = Outlines(fractions >= 0.5, fractions, torch.ones(1, 4, 4, dtype=torch.bool))
    scores = torch.zeros(2, 1, 4, 4)
    scores[0, 0, 0, :2] = 1
    scores[1, 0, 0, :3] = torch.tensor([3.0, 2.0, 1.0])
    found = localisation(scores, marks)
    assert found["relevance_mass_soft"].tolist() == [0.75, 0.75]
    # The third place of the first map is shared by all pixels without a score.
    assert found["relevance_rank_soft"] == pytest.approx([(1.5 + 0.5 / 14) / 2, 1])
    assert found["relevance_mass_soft_chance"] == pytest.approx([2 / 16] * 2)
    assert found["relevance_rank_soft_chance"] == pytest.approx([3 / 16] * 2)


def test_compactness_by_hand() -> None:
    scores = torch.tensor([[[1.0, -0.05], [0.051, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert compactness(scores)[0] == 0.5
    assert torch.isnan(compactness(scores)[1])
    assert compactness(torch.eye(100)[None])[0] == 0.99


def test_fidelity_reads_each_targets_own_output_for_its_own_map_and_view() -> None:
    torch.manual_seed(0)
    model = NoduleModel(build_backbone("tiny"), TARGETS).eval()
    torch.nn.init.normal_(model.head.weight)
    images, scores = torch.randn(3, 3, 32, 32), torch.randn(2, 3, 16, 16)
    found = measure_fidelity(case(model, images, Measurement(steps=3), batch_size=5), given(scores)).figures
    for target in (0, 1):
        alone = [fidelity(model, images[view, None], scores[target, view, None], target, 3).area for view in range(3)]
        assert found["fidelity"][target] == pytest.approx(np.mean(alone), rel=1e-4)
        foreign = [
            fidelity(model, images[view, None], scores[1 - target, view, None], target, 3).area for view in range(3)
        ]
        assert found[f"fidelity_by_{TARGETS[1 - target]}"][target] == pytest.approx(np.mean(foreign), rel=1e-4)
        assert found[f"fidelity_by_{TARGETS[target]}"][target] == found["fidelity"][target]
    delta = [found["fidelity"][target] - found[f"fidelity_by_{TARGETS[1 - target]}"][target] for target in (0, 1)]
    np.testing.assert_allclose(found["fidelity_delta"], delta)


def test_the_true_map_of_a_known_model_is_best_for_every_target() -> None:
    model, images = Named(), bright_images(2)
    truth = true_maps(model, images, Perturbed.of(images, "mean").ends()[1]).movedim(0, 1)
    measured = case(model, images, Measurement(steps=8, fill="mean"))
    right, wrong = (
        measure_fidelity(measured, given(scores)).figures | measure_boxes(measured, given(scores)).figures
        for scores in (truth, truth.roll(1, 0))
    )
    for name in ("fidelity", "box"):
        assert (right[name] > wrong[name]).all()
        assert (right[f"{name}_delta"] > 0).all()
        assert (wrong[f"{name}_delta"] < 0).all()


def test_one_map_for_all_targets_is_perturbed_once() -> None:
    model, images = Named(), bright_images(2)
    shared = torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1, -1)
    measured = case(model, images, Measurement(steps=3))
    model.calls = 0
    once = measure_fidelity(measured, given(shared, targeted=False))
    calls, model.calls = model.calls, 0
    again = measure_fidelity(measured, given(shared))
    assert (calls, model.calls) == (2 * (2 * 2 + 2), 2 * (4 * 2 * 2 + 2))
    for name, figure in again.figures.items():
        np.testing.assert_allclose(once.figures[name], figure, atol=1e-4)
    np.testing.assert_allclose(once.curves["mif"], again.curves["mif"], atol=1e-5)
    np.testing.assert_allclose(once.figures["fidelity_delta"], 0, atol=1e-9)


def test_maps_that_cannot_be_measured() -> None:
    with pytest.raises(LidcCdamError, match=r"32 x 32 pixels, but they are 15 x 16; delete them and run"):
        check_maps(torch.zeros(1, 1, 15, 16), (32, 32))
    with pytest.raises(LidcCdamError, match=r"Maps must hold finite numbers, but these hold NaN"):
        check_maps(torch.full((1, 1, 16, 16), torch.nan), (32, 32))
