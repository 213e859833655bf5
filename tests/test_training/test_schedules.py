import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CyclicLR

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
        ours = SCHEDULES["cyclic_triangular2"](step, steps, cycles)
        assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimiser.step()
        theirs.step()


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_stays_within_its_bounds_and_ends_low(name):
    rates = [SCHEDULES[name](step, 200, 2) for step in range(201)]
    assert min(rates) >= FINAL - 1e-12
    assert max(rates) == pytest.approx(1.0, abs=0.02)
    assert rates[200] == pytest.approx(FINAL, abs=1e-9)


def test_cosine_rises_over_a_tenth_then_falls():
    rates = [SCHEDULES["cosine"](step, 100, 1) for step in range(100)]
    assert rates[9] == max(rates) == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_only_matrices_decay_and_only_the_trainable_are_given():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    optimiser, _ = build_optimiser(model.parameters(), TrainingSettings(weight_decay=0.3), steps=10)
    decays = {tuple(p.shape): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    assert decays == {(2, 4): 0.3, (4,): 0.0, (2,): 0.0}
