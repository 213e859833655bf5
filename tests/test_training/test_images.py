import csv
import json

import numpy as np
import pytest
import torch
from image_world import picture, write_backbone, write_layout
from safetensors.torch import load_file

from lidc_cdam.classifier import open_classifier
from lidc_cdam.cli import main
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.images import Input, read_image
from lidc_cdam.provenance import read_record
from training import images
from training.image_folder import read_folder, varied
from training.images import ImageSettings, measured, train_images


@pytest.fixture
def world(tmp_path):
    write_backbone(tmp_path / "b.safetensors")
    write_layout(tmp_path / "data", 4)
    return tmp_path


def settings(world, **changes):
    return ImageSettings(
        **{"backbone": "tiny", "weights": str(world / "b.safetensors"), "epochs": 3, "lr": 0.02, **changes}
    )


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.parametrize("augment", [True, False])
def test_the_head_learns_and_the_backbone_stays(world, capsys, augment):
    words = [
        "train",
        "--task",
        "images",
        "--data",
        str(world / "data"),
        "--out",
        str(world / "m"),
        "--backbone",
        "tiny",
    ]
    words += ["--weights", str(world / "b.safetensors"), "--epochs", "20", "--lr", "0.02", "--batch-size", "6"]
    assert main([*words, "--augment", str(augment).lower()]) == 0
    assert "Accuracy on 12 held-back images: 1.000 [0.7" in capsys.readouterr().out
    names = {path.name for path in (world / "m").iterdir()}
    told = {"model.safetensors", "model.json", "metrics.json", "history.csv", "predictions.csv", "config.yaml"}
    assert names == told | {"provenance.json"}
    metrics = json.loads((world / "m" / "metrics.json").read_text())
    assert metrics["accuracy"]["value"] == 1.0
    assert metrics["chance"] == pytest.approx(1 / 3)
    assert metrics["split"] == "folders train and val"
    losses = [float(row["train_loss"]) for row in rows(world / "m" / "history.csv")]
    assert len(losses) == 20
    assert losses[-1] < losses[0] / 2
    assert rows(world / "m" / "predictions.csv")[0]["predicted"] == "blue"
    model = open_classifier(str(world / "m"), None)
    assert model.targets == ("blue", "green", "red")
    for name, tensor in load_file(world / "b.safetensors").items():
        assert torch.equal(model.backbone.state_dict()[name], tensor)


def test_a_finished_training_does_nothing_and_another_is_refused(world, capsys):
    train_images("images", world / "data", world / "m", settings(world, augment=False))
    before = (world / "m" / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    train_images("images", world / "data", world / "m", settings(world, augment=False))
    assert "finished already" in capsys.readouterr().out
    assert (world / "m" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(LidcCdamError, match=r"lr = 0\.02, but this call has lr = 0\.5"):
        train_images("images", world / "data", world / "m", settings(world, augment=False, lr=0.5))


@pytest.mark.parametrize("augment", [True, False])
def test_an_interrupted_training_ends_as_one_that_was_not(world, monkeypatch, augment):
    chosen = settings(world, augment=augment)
    train_images("images", world / "data", world / "whole", chosen)
    save, calls = torch.save, []

    def interrupt(state, path):
        if calls:
            raise KeyboardInterrupt
        calls.append(path)
        save(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(images.torch, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_images("images", world / "data", world / "cut", chosen)
    assert not read_record(world / "cut", "train images")["finished"]
    train_images("images", world / "data", world / "cut", chosen)
    for name in ("history.csv", "predictions.csv", "model.safetensors"):
        assert (world / "cut" / name).read_bytes() == (world / "whole" / name).read_bytes()
    assert not (world / "cut" / "last.ckpt").exists()
    assert not (world / "cut" / "features").exists()


def test_images_that_cannot_be_read_are_rows_with_a_reason(world, capsys):
    (world / "data/train/red/0.png").write_bytes(b"no image")
    (world / "data/val/blue/1.png").write_bytes(b"")
    (world / "data/train/red/notes.txt").write_text("passed over")
    for augment in (True, False):
        out = world / f"m{augment}"
        train_images("images", world / "data", out, settings(world, augment=augment))
        assert "2 images could not be read and were left out" in capsys.readouterr().out
        assert [row["image"] for row in rows(out / "failed.csv")] == ["train/red/0.png", "val/blue/1.png"]
        metrics = json.loads((out / "metrics.json").read_text())
        assert (metrics["images"], metrics["unreadable"]) == (11, 2)


def test_no_image_that_can_be_read_is_one_sentence(world):
    for path in (world / "data/val").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(LidcCdamError, match="None of 12 val images"):
        train_images("images", world / "data", world / "m", settings(world))


def test_a_folder_of_classes_is_split_with_a_seed(tmp_path):
    write_layout(tmp_path, 5, roles=("",))
    folder = read_folder(tmp_path, 0.4, 0)
    assert (len(folder.train.names), len(folder.val.names)) == (9, 6)
    assert not set(folder.train.names) & set(folder.val.names)
    assert [folder.val.labels.count(label) for label in range(3)] == [2, 2, 2]
    assert read_folder(tmp_path, 0.4, 0) == folder
    assert read_folder(tmp_path, 0.4, 1).val.names != folder.val.names
    assert "0.4 of each class's images" in folder.split


def rename(root, old, new):
    (root / old).rename(root / new)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda root: rename(root, "val", "test"), "must have both train and val, or neither, but .*val is missing"),
        (lambda root: rename(root, "val/red", "val/pink"), "val must hold classes of .*train, but pink is none"),
        (
            lambda root: rename(root, "val/red/0.png", "val/0.png"),
            "one folder of images per class, but 0.png lies in none",
        ),
        (lambda root: [rename(root, f"train/{name}", f".{name}") for name in ("red", "blue")], "at least 2 classes"),
        (lambda root: rename(root, "../data", "../other"), "--data must be a folder of images"),
    ],
)
def test_a_wrong_layout_is_one_sentence(world, change, sentence):
    change(world / "data")
    with pytest.raises(LidcCdamError, match=sentence):
        train_images("images", world / "data", world / "m", settings(world))
    assert not (world / "m").exists()


def test_a_class_of_one_image_cannot_be_split(tmp_path):
    write_layout(tmp_path, 1, roles=("",))
    with pytest.raises(LidcCdamError, match="Class blue must have at least 2 images"):
        read_folder(tmp_path, 0.2, 0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"backbone": "resnet"}, "--backbone must be one of"),
        ({"lr": 0.0}, "--lr must be above 0"),
        ({"val_share": 1.0}, "--val-share above 0 and below 1"),
        ({"epochs": 0}, "--epochs must be at least 1"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
    ],
)
def test_a_setting_out_of_range_is_one_sentence(changes, sentence):
    with pytest.raises(LidcCdamError, match=sentence):
        ImageSettings(**changes)


def test_settings_of_nodules_do_not_go_with_images(world, capsys):
    words = ["train", "--task", "images", "--data", str(world / "data"), "--out", str(world / "m")]
    assert main([*words, "--fold", "1"]) == 2
    assert "--fold 1; see `lidc-cdam train --task --help`" in capsys.readouterr().err
    assert main(["train", "--task", "nodules", *words[3:]]) == 2
    assert "--task must be one of images, but it is nodules" in capsys.readouterr().err


def test_the_task_may_stand_in_a_file(world, capsys):
    (world / "c.yaml").write_text(f"task: images\nbackbone: tiny\nweights: {world / 'b.safetensors'}\nepochs: 1\n")
    assert (
        main(["train", "--config", str(world / "c.yaml"), "--data", str(world / "data"), "--out", str(world / "m")])
        == 0
    )
    assert "3 classes" in capsys.readouterr().out


def test_a_random_crop_is_drawn_by_its_key():
    image = picture("red", 0, (60, 40))
    first, again, other = (np.asarray(varied(image, Input((16, 24)), key)) for key in ((0, 1), (0, 1), (0, 2)))
    assert first.shape == (16, 24, 3)
    assert (first == again).all()
    assert (first != other).any()


def test_accuracy_has_an_interval_and_classes(world):
    probabilities = torch.eye(7)[[0, 1, 2, 3, 3, 0]]
    found = measured(probabilities, torch.tensor([0, 1, 2, 3, 4, 5]), list("abcdefg"))
    assert found["accuracy"]["value"] == pytest.approx(4 / 6)
    assert found["accuracy"]["low"] < 4 / 6 < found["accuracy"]["high"]
    assert set(found["classes"]) == set("abcdef")
    assert found["classes"]["e"] == {"images": 1, "accuracy": 0.0}
    assert found["top_5_accuracy"]["value"] >= 4 / 6


def test_reading_by_several_processes_changes_nothing(world):
    chosen = settings(world, epochs=1)
    for readers in (0, 2):
        train_images("images", world / "data", world / f"m{readers}", chosen, readers)
    assert (world / "m0/model.safetensors").read_bytes() == (world / "m2/model.safetensors").read_bytes()
    assert read_image(world / "data/val/red/0.png").size == (40, 36)
