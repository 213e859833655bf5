"""The paper's first claim on real small data: class-discriminative maps tell two digits of one image apart."""

import json

import numpy as np
import pytest
import torch

from benchmarks.digits import NAME, ROW, draw_pairs, train_classifier, write_images
from lidc_cdam.backbones import BACKBONES
from lidc_cdam.classifier import normalised
from lidc_cdam.metrics.image_stage import Perturbation, evaluate_images

OURS = ("cdam", "integrated_cdam", "smooth_cdam")
OTHERS = ("attention", "rollout", "smoothgrad")


def test_cdam_tells_two_digits_apart_better_than_attention_rollout_and_smoothgrad(tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, NAME, ROW)
    model = train_classifier(steps=300)
    images, digits = draw_pairs("test", 300, 2)
    pixels = torch.from_numpy(np.round(images * 255).astype(np.uint8))[..., None].expand(-1, -1, -1, 3)
    with torch.no_grad():
        likeliest = model(normalised(pixels, model.shown)).topk(2).indices
    both = (likeliest.sort().values == torch.from_numpy(digits).sort().values).all(1)
    # A model that did not see the digits would have nothing to explain.
    assert both.double().mean() > 0.75
    model.save(tmp_path / "model")
    classes = write_images(tmp_path / "images", 30)
    measured = (tmp_path / "images", str(tmp_path / "model"), tmp_path / "out", Perturbation(steps=10, boxes=50))
    evaluate_images(*measured, [*OURS, *OTHERS], classes, options={"smoothgrad": {"n": 20}, "smooth_cdam": {"n": 20}})
    summary = json.loads((tmp_path / "out" / "images_explainers.json").read_text())
    for metric in ("fidelity_delta", "box_delta"):
        for own in OURS:
            for other in OTHERS:
                assert summary["differences"][metric][own][other]["low"] > 0, (metric, own, other)
    for other in ("attention", "rollout"):
        assert summary["methods"][other]["fidelity_delta"]["value"] == pytest.approx(0, abs=1e-6)
