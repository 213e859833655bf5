import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CyclicLR

from lidc_cdam.backbones import build_backbone, freeze_all_but_last
from lidc_cdam.model import NoduleModel
from training.schedules import FINAL, SCHEDULES, build_optimiser
from training.settings import TrainingSettings


def test_cyclic_equals_torchs_triangular2():
    steps, cycles = 120, 3
    optimiser = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = CyclicLR(
        optimiser,
        base_lr=FINAL,
        max_lr=1.0,
        step_size_up=steps // (2 * cycles),
        mode="triangular2",
        cycle_momentum=False,
    )
    for step in range(steps):
        ours = SCHEDULES["cyclic_triangular2"](step, steps, TrainingSettings(cycles=cycles))
        assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimiser.step()
        theirs.step()


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_stays_within_its_bounds_and_ends_low(name):
    rates = [SCHEDULES[name](step, 200, TrainingSettings()) for step in range(201)]
    assert min(rates) >= FINAL - 1e-12
    assert max(rates) == pytest.approx(1.0, abs=0.02)
    assert rates[200] == pytest.approx(FINAL, abs=1e-9)


def test_cosine_rises_over_its_warm_up_then_falls():
    rates = [SCHEDULES["cosine"](step, 100, TrainingSettings()) for step in range(100)]
    assert rates[9] == max(rates) == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)


def small_model() -> NoduleModel:
    return NoduleModel(build_backbone("tiny"), ["malignancy"])


def test_only_matrices_decay_and_only_the_trainable_are_given():
    model = small_model()
    freeze_all_but_last(model.backbone, 4)
    optimiser, _ = build_optimiser(model, TrainingSettings(weight_decay=0.3), steps=10)
    given = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    assert given == {id(p): 0.3 * (p.ndim >= 2) for p in model.parameters() if p.requires_grad}


def test_layer_decay_slows_each_block_by_the_same_share():
    model = small_model()
    optimiser, _ = build_optimiser(model, TrainingSettings(layer_decay=0.5, warm_up=0.0), steps=10)
    rates = {id(p): group["initial_lr"] for group in optimiser.param_groups for p in group["params"]}
    depth = len(model.backbone.blocks)
    expected = {"head.weight": 1, "backbone.norm.bias": 1, "backbone.cls_token": 0.5 ** (depth + 1)}
    expected |= {f"backbone.blocks.{index}.attn.qkv.weight": 0.5 ** (depth - index) for index in range(depth)}
    named = dict(model.named_parameters())
    assert {name: rates[id(named[name])] / 1e-3 for name in expected} == pytest.approx(expected)
