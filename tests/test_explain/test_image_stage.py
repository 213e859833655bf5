import csv

import numpy as np
import pytest
import torch
from image_world import write_classifier, write_layout, write_published

from lidc_cdam.artifacts import read_maps
from lidc_cdam.classifier import open_classifier
from lidc_cdam.cli import main
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain import explain, image_stage
from lidc_cdam.explain.image_stage import explain_images
from lidc_cdam.images import image_map_path, read_image
from lidc_cdam.provenance import read_record


@pytest.fixture
def world(tmp_path):
    write_layout(tmp_path / "images", 2, roles=("",))
    write_classifier(tmp_path / "model")
    return tmp_path


def run(world, **changes):
    arguments = {"images": world / "images", "model": str(world / "model"), "out": world / "out", "pictures": False}
    explain_images(**{**arguments, **changes})


def index(world, method="cdam", out="out"):
    return list(csv.DictReader((world / out / "maps" / method / "index.csv").read_text().splitlines()))


def test_each_image_has_maps_of_its_likeliest_classes(world, capsys):
    run(world, top=2)
    assert "Wrote cdam maps of 6 images (0 were there)" in capsys.readouterr().out
    model = open_classifier(str(world / "model"), None)
    for name in ("red/0.png", "blue/1.png"):
        shown = model.prepare([read_image(world / "images" / name)])
        with torch.no_grad():
            likeliest = model(shown)[0].topk(2).indices.tolist()
        maps = read_maps(image_map_path(world / "out", "cdam", name))
        assert maps.targets == tuple(model.targets[place] for place in likeliest)
        assert maps.scores.shape == (2, 1, 1, 8, 8)
        expected = explain(model, shown, list(maps.targets))[0].numpy()
        np.testing.assert_allclose(maps.scores[:, 0, 0], expected, rtol=1e-4, atol=1e-6)
        row = next(row for row in index(world) if row["image"] == name)
        assert row["target"] == maps.targets[0]
        assert float(row["highest"]) == pytest.approx(maps.scores[0].max())
    assert read_record(world / "out", "explain images/cdam")["finished"]


def test_a_second_call_explains_what_is_new_or_has_changed(world, capsys):
    run(world)
    times = {path: path.stat().st_mtime_ns for path in (world / "out").rglob("*.npz")}
    (world / "images/red/1.png").write_bytes((world / "images/red/0.png").read_bytes())
    (world / "images/red/2.png").write_bytes((world / "images/red/0.png").read_bytes())
    capsys.readouterr()
    run(world)
    assert "Wrote cdam maps of 2 images (5 were there)" in capsys.readouterr().out
    changed = {path.name for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert changed == {"1.png.npz"}
    run(world)
    assert "All 7 images have their maps" in capsys.readouterr().out


def test_an_interrupted_call_goes_on(world, monkeypatch, capsys):
    original, calls = image_stage.write_maps, []

    def interrupt(path, maps):
        calls.append(path)
        if len(calls) == 4:
            raise KeyboardInterrupt
        original(path, maps)

    with monkeypatch.context() as patch:
        patch.setattr(image_stage, "write_maps", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(world, batch_size=2)
    run(world, batch_size=2)
    assert "Wrote cdam maps of 3 images (3 were there)" in capsys.readouterr().out


def test_the_batch_changes_nothing(world):
    for size in (1, 64):
        run(world, out=world / f"out{size}", batch_size=size, method="smooth_cdam", options={"n": 3})
    for path in (world / "out1").rglob("*.npz"):
        other = read_maps(world / "out64" / path.relative_to(world / "out1"))
        np.testing.assert_allclose(read_maps(path).scores, other.scores, rtol=1e-4, atol=1e-6)


def test_an_image_that_cannot_be_read_is_a_row_and_leaves_no_old_map(world, capsys):
    run(world)
    (world / "images/red/0.png").write_bytes(b"no image")
    run(world)
    assert "Could not explain 1 of 6 images" in capsys.readouterr().out
    assert not image_map_path(world / "out", "cdam", "red/0.png").exists()
    assert "red/0.png" not in [row["image"] for row in index(world)]
    (failed,) = csv.DictReader((world / "out/maps/cdam/failed.csv").read_text().splitlines())
    assert failed["image"] == "red/0.png"
    assert "must be an image that can be read" in failed["reason"]
    assert not read_record(world / "out", "explain images/cdam")["finished"]


def test_no_image_that_can_be_read_is_one_sentence(world):
    for path in (world / "images").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(LidcCdamError, match=r"None of 6 images could be explained; the first: .*blue/0.png must be"):
        run(world)


def test_classes_are_named_or_listed(world):
    run(world, targets=["red", "green", "red"])
    assert [row["target"] for row in index(world)] == ["red", "green"] * 6
    (world / "list.csv").write_text("image,class,other_class\nred/0.png,red,blue\nblue/0.png,green,\n")
    run(world, out=world / "listed", classes=world / "list.csv")
    told = [(row["image"], row["target"]) for row in index(world, out="listed")]
    assert told == [("blue/0.png", "green"), ("red/0.png", "red"), ("red/0.png", "blue")]


def test_a_backbone_explains_with_its_own_head_and_numbers_as_classes(world, capsys):
    write_published(world / "p.safetensors")
    words = ["explain", "--images", str(world / "images"), "--model", "tiny", "--out", str(world / "out")]
    words += ["--weights", str(world / "p.safetensors"), "--targets", "1,3", "--pictures", "false"]
    assert main(words) == 0
    assert [row["target"] for row in index(world)] == ["1", "3"] * 6
    assert main(words) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_pixel_methods_are_stored_on_the_token_grid(world):
    run(world, method="input_gradient")
    maps = read_maps(image_map_path(world / "out", "input_gradient", "red/0.png"))
    assert maps.scores.shape == (1, 1, 1, 8, 8)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"targets": ["red"], "classes": "list.csv"}, "--targets and --classes both say what to explain"),
        ({"targets": ["rde"]}, "did you mean 'red'"),
        ({"targets": []}, "at least one class"),
        ({"top": 4}, "--top must be from 1 to the model's 3 classes"),
        ({"method": "cdma"}, "did you mean 'cdam'"),
        ({"options": {"m": 1}}, "--options of cdam must be among"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"model": "nowhere"}, "--model must be a folder"),
    ],
)
def test_a_wrong_setting_is_one_sentence_and_claims_nothing(world, changes, sentence):
    if "classes" in changes:
        changes["classes"] = world / "list.csv"
    with pytest.raises(LidcCdamError, match=sentence):
        run(world, **changes)
    assert not (world / "out").exists()


def test_another_choice_or_model_is_refused(world):
    run(world)
    with pytest.raises(LidcCdamError, match="top = 1, but this call has top = 2"):
        run(world, top=2)
    torch.manual_seed(9)
    model = write_classifier(world / "other")
    with torch.no_grad():
        model.head.bias += 1
    model.save(world / "other")
    with pytest.raises(LidcCdamError, match="with model = "):
        run(world, model=str(world / "other"))
