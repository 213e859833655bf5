"""Self-supervised training: the loss by its definition, resumption, what a fold must not see, use as a start."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lidc_cdam.artifacts import read_splits
from lidc_cdam.errors import LidcCdamError
from training import dino
from training.dino import DinoTask, Pair, dino_loss
from training.fit import train
from training.pretrain import CropDraw, PretrainSettings, _nodules, apply_crop, draw_crop, pretrain
from training.settings import TrainingSettings

SETTINGS = PretrainSettings(epochs=2, batch_size=8, views=["axial"], prototypes=16, small_crops=2)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrain") / "out"
    pretrain(data, out, SETTINGS)
    return out


def test_the_loss_is_the_papers_sum_over_pairs_of_different_crops():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(4, 3, 5, generator=generator), torch.randn(2, 3, 5, generator=generator)
    centre = torch.randn(5, generator=generator)
    total, pairs = 0.0, 0
    for large in range(2):
        for crop in range(4):
            if crop == large:
                continue
            for image in range(3):
                wanted = [math.exp((teacher[large, image, k] - centre[k]) / 0.04) for k in range(5)]
                scores = [math.exp(student[crop, image, k] / 0.1) for k in range(5)]
                total -= (
                    sum(w / sum(wanted) * math.log(s / sum(scores)) for w, s in zip(wanted, scores, strict=True)) / 3
                )
            pairs += 1
    assert dino_loss(student, teacher, centre, 0.1, 0.04).item() == pytest.approx(total / pairs, rel=1e-5)


def test_the_teacher_follows_the_student_and_has_no_gradient(finished, data):
    from lidc_cdam.backbones import build_backbone

    task = DinoTask(build_backbone("tiny"), SETTINGS, steps=10)
    assert not any(p.requires_grad for p in task.teacher.parameters())
    before = [p.clone() for p in task.teacher.parameters()]
    with torch.no_grad():
        for p in task.student.parameters():
            p.add_(1.0)
    task.on_train_batch_end()
    moved = [now - old for now, old in zip(task.teacher.parameters(), before, strict=True)]
    assert all(torch.allclose(step, torch.full_like(step, 1 - SETTINGS.momentum), atol=1e-5) for step in moved)


def test_crops_of_two_sizes_go_through_one_backbone():
    from lidc_cdam.backbones import build_backbone

    backbone = build_backbone("tiny").eval()
    expected = backbone(torch.zeros(1, 3, 32, 32))
    dino.accept_any_size(backbone)
    assert torch.allclose(backbone(torch.zeros(1, 3, 32, 32)), expected, atol=1e-6)
    answers = Pair(backbone, 8)([torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 16, 16)])
    assert answers.shape == (3, 2, 8)


def test_a_crop_is_the_named_part_of_the_image():
    image = torch.arange(16.0).reshape(1, 4, 4).expand(3, 4, 4)
    whole = CropDraw(1.0, (0.0, 0.0), 0, False, 1.0, 0.0)
    assert torch.equal(apply_crop(image, whole, 4), image)
    corner = CropDraw(0.25, (1.0, 0.0), 1, True, 2.0, 1.0)
    part = torch.tensor([[9.0, 8.0], [13.0, 12.0]])
    assert torch.equal(apply_crop(image, corner, 2)[0], torch.rot90(part) * 2 + 1)
    draws = [draw_crop(np.random.default_rng(seed), (0.2, 0.5)) for seed in range(50)]
    assert all(0.2 <= draw.share <= 0.5 for draw in draws)
    assert {draw.quarter_turns for draw in draws} == {0, 1, 2, 3}


def test_an_interrupted_pretraining_ends_as_an_uninterrupted_one(data, finished, tmp_path, monkeypatch):
    step = DinoTask.training_step

    def stopping(self, batch, index):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(DinoTask, "training_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            pretrain(data, tmp_path / "out", SETTINGS)
    pretrain(data, tmp_path / "out", SETTINGS)
    assert (tmp_path / "out" / "backbone.safetensors").read_bytes() == (finished / "backbone.safetensors").read_bytes()
    assert len(json.loads((finished / "history.json").read_text())) == 2


def test_a_training_starts_from_it(data, finished, tmp_path):
    settings = TrainingSettings(epochs=1, views=["axial"], weights=str(finished / "backbone.safetensors"))
    train(data, tmp_path / "run", settings)


@pytest.mark.slow
def test_a_published_architecture_learns_and_starts_a_training_at_another_size(data, tmp_path):
    settings = PretrainSettings(
        backbone="dino_vits16", image_size=32, epochs=1, batch_size=8, views=["axial"], prototypes=16, small_crops=1
    )
    pretrain(data, tmp_path / "out", settings)
    weights = str(tmp_path / "out" / "backbone.safetensors")
    chosen = TrainingSettings(backbone="dino_vits16", image_size=48, epochs=1, views=["axial"], weights=weights)
    train(data, tmp_path / "run", chosen)


def test_it_learns_in_bf16_too(data, tmp_path):
    pretrain(data, tmp_path / "out", replace(SETTINGS, epochs=1, precision="bf16-mixed"))
    (row,) = json.loads((tmp_path / "out" / "history.json").read_text())
    assert math.isfinite(row["loss"])


def test_a_fold_hides_its_validation_and_test_patients(data):
    fold = read_splits(data / "splits.json").folds[1]
    assert set(_nodules(data, 1, None)) == set(fold.train)
    with pytest.raises(LidcCdamError, match="--fold must be one of 0 to 1"):
        _nodules(data, 2, None)


def test_folds_of_another_cohort_would_hide_the_wrong_patients(own_data):
    cohort = own_data / "cohort.csv"
    cohort.write_text(cohort.read_text() + "\n")
    with pytest.raises(LidcCdamError, match=r"must divide the cohort of .* made from another one"):
        _nodules(own_data, 0, None)


def test_training_learns_to_tell_images_apart(finished):
    history = json.loads((finished / "history.json").read_text())
    assert all(row["spread"] > 0 and math.isfinite(row["loss"]) for row in history)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"views": ["oblique"]}, "--views must name"),
        ({"batch_size": 1}, "--batch-size must be at least 2; got 1"),
        ({"momentum": 1.0}, "--momentum must be at least 0 and below 1"),
        ({"teacher_temperature": 0.0}, "--teacher-temperature must be a number above 0"),
    ],
)
def test_a_wrong_value_is_refused_in_a_sentence(values, sentence):
    with pytest.raises(LidcCdamError, match=sentence):
        PretrainSettings(**values)
