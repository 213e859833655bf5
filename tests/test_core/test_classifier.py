import json

import pytest
import torch
from image_world import picture, write_backbone, write_classifier, write_published
from safetensors.torch import load_file, save_file

from lidc_cdam.backbones import build_backbone
from lidc_cdam.classifier import ImageClassifier, normalised, open_classifier, published_classifier, published_input
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.images import Input
from lidc_cdam.model import NoduleModel
from lidc_cdam.weights import read_classifier


def test_a_published_classifier_answers_as_it_was_published(tmp_path):
    published = write_published(tmp_path / "p.safetensors")
    model = published_classifier("tiny", tmp_path / "p.safetensors")
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), published(images))
    assert model.targets == ("0", "1", "2", "3", "4")


def test_imagenets_classes_have_their_names(tmp_path):
    write_published(tmp_path / "p.safetensors", classes=1000)
    model = open_classifier("tiny", str(tmp_path / "p.safetensors"))
    assert model.targets[0] == "n01440764"
    assert model.classes.title("n01440764") == "tench"
    assert model.classes.find("golden retriever") == "n02099601"


def test_a_torchvision_classifier_is_found(tmp_path):
    state = write_published(tmp_path / "p.safetensors").state_dict()
    state |= {f"head.head.{end}": state.pop(f"head.{end}") for end in ("weight", "bias")}
    save_file(state, tmp_path / "t.safetensors")
    weight, _ = read_classifier(tmp_path / "t.safetensors")
    torch.testing.assert_close(weight, state["head.head.weight"])


def test_a_backbone_without_a_classifier_says_what_to_do(tmp_path):
    write_backbone(tmp_path / "b.safetensors")
    with pytest.raises(LidcCdamError, match="holds a backbone alone; train one with `lidc-cdam train --task images"):
        published_classifier("tiny", tmp_path / "b.safetensors")


def test_a_reloaded_classifier_is_the_same(tmp_path):
    model = write_classifier(tmp_path)
    again = open_classifier(str(tmp_path), None)
    shown = again.prepare([picture("red", 0), picture("blue", 1)])
    assert shown.shape == (2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(shown), again(shown))
    assert (again.classes, again.shown, again.digest()) == (model.classes, model.shown, model.digest())
    assert json.loads((tmp_path / "model.json").read_text())["kind"] == "images"
    with torch.no_grad():
        again.head.bias += 1
    assert again.digest() != model.digest()


def test_models_of_nodules_and_of_images_are_told_apart(tmp_path):
    NoduleModel(build_backbone("tiny"), ["margin"]).save(tmp_path / "nodules")
    write_classifier(tmp_path / "images")
    with pytest.raises(LidcCdamError, match="must describe a model of images, but it is one of nodules"):
        open_classifier(str(tmp_path / "nodules"), None)
    with pytest.raises(LidcCdamError, match="must describe a model of nodules, but it is one of images"):
        NoduleModel.load(tmp_path / "images")
    with pytest.raises(LidcCdamError, match="--weights belongs to a backbone"):
        open_classifier(str(tmp_path / "images"), "hub")
    with pytest.raises(LidcCdamError, match="--model must be a folder"):
        open_classifier(str(tmp_path / "absent"), None)


def test_a_damaged_description_is_one_sentence(tmp_path):
    write_classifier(tmp_path)
    stored = json.loads((tmp_path / "model.json").read_text())
    del stored["input"]
    (tmp_path / "model.json").write_text(json.dumps(stored))
    with pytest.raises(LidcCdamError, match="must describe a model as training wrote it"):
        ImageClassifier.load(tmp_path)


def test_inputs_are_normalised_as_published():
    pixels = torch.full((1, 2, 2, 3), 255, dtype=torch.uint8)
    shown = Input((2, 2), (0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    assert normalised(pixels, shown)[0, :, 0, 0].tolist() == [1.0, 3.0, 0.5]
    assert published_input("vitb16").mean == (0.5, 0.5, 0.5)
    assert published_input("dino_vits8", 112) == Input((112, 112), crop_share=0.9)
    assert published_input("swag_vitb16").crop_share == 1.0
    with pytest.raises(LidcCdamError, match="--backbone must be one of"):
        published_input("resnet50")


def test_weights_of_a_trained_classifier_are_a_backbone_too(tmp_path):
    write_classifier(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    backbone = build_backbone("tiny", tmp_path / "model.safetensors", 16)
    torch.testing.assert_close(backbone.state_dict()["cls_token"], state["backbone.cls_token"])
