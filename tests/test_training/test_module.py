import math

import pytest
import torch
import torch.nn.functional as F

from training.module import target_loss, validation_metrics

OUTPUTS = torch.tensor([[0.5, 2.0, -1.0], [-2.0, 0.1, 0.3], [0.2, -3.0, 0.0]])
WANTED = torch.tensor([[1.0, 0.0, -1.2], [0.0, 0.4, 0.3], [1.0, 0.5, 2.0]])


def test_malignancy_has_cross_entropy_on_logits():
    expected = -(WANTED[:, 0] * OUTPUTS[:, 0].sigmoid().log() + (1 - WANTED[:, 0]) * (-OUTPUTS[:, 0]).sigmoid().log())
    found = target_loss(OUTPUTS[:, :1], WANTED[:, :1], ("malignancy",), "huber")
    assert found.item() == pytest.approx(expected.mean().item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["huber", "mse"])
def test_biomarkers_have_the_chosen_loss(kind):
    difference = (OUTPUTS - WANTED)[:, 1:].abs()
    huber = torch.where(difference < 1, 0.5 * difference**2, difference - 0.5)
    expected = huber.mean() if kind == "huber" else (difference**2).mean()
    found = target_loss(OUTPUTS[:, 1:], WANTED[:, 1:], ("margin", "diameter"), kind)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_joint_is_the_mean_of_the_two_parts_whatever_their_widths():
    keys = ("malignancy", "margin", "diameter")
    parts = [
        target_loss(OUTPUTS[:, :1], WANTED[:, :1], keys[:1], "mse"),
        target_loss(OUTPUTS[:, 1:], WANTED[:, 1:], keys[1:], "mse"),
    ]
    assert target_loss(OUTPUTS, WANTED, keys, "mse").item() == pytest.approx(sum(parts).item() / 2, rel=1e-6)


def test_metrics_are_those_that_the_model_has():
    joint = validation_metrics(OUTPUTS, WANTED, ("malignancy", "margin", "diameter"))
    assert joint["val_auc"] == 1.0
    assert joint["val_z_mse"] == pytest.approx(F.mse_loss(OUTPUTS[:, 1:], WANTED[:, 1:]).item())
    assert set(validation_metrics(OUTPUTS[:, 1:], WANTED[:, 1:], ("margin", "diameter"))) == {"val_z_mse"}


def test_auc_of_one_class_is_not_a_number():
    assert math.isnan(validation_metrics(OUTPUTS[:, :1], torch.ones(3, 1), ("malignancy",))["val_auc"])


def test_an_undecided_nodule_counts_for_biomarkers_alone():
    keys = ("malignancy", "margin", "diameter")
    wanted = WANTED.clone()
    wanted[1, 0] = float("nan")
    decided = target_loss(OUTPUTS[[0, 2], :1], wanted[[0, 2], :1], keys[:1], "mse")
    expected = (decided + F.mse_loss(OUTPUTS[:, 1:], WANTED[:, 1:])) / 2
    assert target_loss(OUTPUTS, wanted, keys, "mse").item() == pytest.approx(expected.item(), rel=1e-6)
    none = target_loss(OUTPUTS[:, :1].requires_grad_(), torch.full((3, 1), float("nan")), keys[:1], "mse")
    assert none.item() == 0.0
    none.backward()
