import csv
import json

import pytest
from image_world import write_classifier, write_layout

from lidc_cdam.classifier import open_classifier
from lidc_cdam.cli import main
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain import explain
from lidc_cdam.images import read_image
from lidc_cdam.metrics import image_stage
from lidc_cdam.metrics.discrimination import box_discrimination, fidelity_discrimination
from lidc_cdam.metrics.image_stage import Perturbation, evaluate_images
from lidc_cdam.metrics.measures import compactness

QUICK = Perturbation(steps=3, boxes=4)


@pytest.fixture
def world(tmp_path):
    write_layout(tmp_path / "images", 1, roles=("",))
    write_classifier(tmp_path / "model")
    (tmp_path / "list.csv").write_text("image,class,other_class\nred/0.png,red,blue\nblue/0.png,green,red\n")
    return tmp_path


def run(world, **changes):
    arguments = {
        "images": world / "images",
        "model": str(world / "model"),
        "out": world / "out",
        "perturbation": QUICK,
        "methods": ["cdam", "centre", "input_gradient"],
        "classes": world / "list.csv",
        "replicates": 50,
    }
    evaluate_images(**{**arguments, **changes})


def table(world):
    rows = csv.DictReader((world / "out" / "images_explainers.csv").read_text().splitlines())
    return {(row["image"], row["method"], row["target"], row["metric"]): float(row["value"] or "nan") for row in rows}


def test_the_figures_are_those_of_the_functions(world):
    run(world)
    found = table(world)
    assert {key[0] for key in found} == {"red/0.png", "blue/0.png"}
    model = open_classifier(str(world / "model"), None)
    shown = model.prepare([read_image(world / "images/red/0.png")])
    for method in ("cdam", "input_gradient"):
        maps = explain(model, shown, ["red", "blue"], method, "native")
        read = [model.targets.index(key) for key in ("red", "blue")]
        fidelity = fidelity_discrimination(model, shown, maps, read, steps=3)
        box = box_discrimination(model, shown, maps, read, boxes=4)
        expected = {
            "fidelity": fidelity.own[0, 0],
            "fidelity_by_other": fidelity.matrix[0, 0, 1],
            "fidelity_delta": fidelity.delta[0, 0],
            "box": box.own[0, 0],
            "box_by_other": box.matrix[0, 0, 1],
            "box_delta": box.delta[0, 0],
            "compactness": float(compactness(maps[0, 0].double())),
        }
        for metric, value in expected.items():
            assert found["red/0.png", method, "red", metric] == pytest.approx(value, rel=1e-4, abs=1e-5)
        mif, lif = (found["red/0.png", method, "red", f"fidelity_{end}"] for end in ("mif", "lif"))
        assert lif - mif == pytest.approx(found["red/0.png", method, "red", "fidelity"], abs=1e-6)


def test_one_map_for_every_class_tells_none_apart(world):
    run(world)
    found = table(world)
    for (_, method, _, metric), value in found.items():
        if method == "centre" and metric in ("fidelity_delta", "box_delta"):
            assert value == 0


def test_the_summary_has_intervals_and_paired_differences(world, capsys):
    run(world)
    assert "Delta fidelity" in capsys.readouterr().out
    summary = json.loads((world / "out" / "images_explainers.json").read_text())
    assert summary["images"] == 2
    assert summary["settings"]["steps"] == 3
    own, other = (summary["methods"][method]["fidelity"]["value"] for method in ("cdam", "centre"))
    apart = summary["differences"]["fidelity"]["cdam"]["centre"]
    assert apart["value"] == pytest.approx(own - other)
    assert apart["low"] <= apart["value"] <= apart["high"]


def test_what_is_measured_is_kept_and_methods_can_be_added(world, capsys, monkeypatch):
    run(world, methods=["cdam"])
    before = table(world)
    original, called = image_stage.maps_of, []
    monkeypatch.setattr(image_stage, "maps_of", lambda *given: called.append(given[3]) or original(*given))
    run(world)
    assert called == ["centre", "input_gradient"] * 2
    assert {key: value for key, value in table(world).items() if key[1] == "cdam"} == pytest.approx(before, nan_ok=True)
    capsys.readouterr()
    run(world)
    assert "All maps were measured before" in capsys.readouterr().out


def test_an_interrupted_call_goes_on(world, monkeypatch):
    original, called = image_stage.maps_of, []

    def interrupt(*given):
        called.append(given)
        if len(called) == 2:
            raise KeyboardInterrupt
        return original(*given)

    with monkeypatch.context() as patch:
        patch.setattr(image_stage, "maps_of", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(world, methods=["cdam"])
    with monkeypatch.context() as patch:
        patch.setattr(image_stage, "maps_of", lambda *given: called.append(given) or original(*given))
        run(world, methods=["cdam"])
    assert len(called) == 3


def test_without_a_list_the_likeliest_class_is_measured(world):
    run(world, classes=None, methods=["cdam"])
    assert {key[0] for key in table(world)} == {"red/0.png", "blue/0.png", "green/0.png"}
    assert {key[3] for key in table(world)} == {"fidelity_mif", "fidelity_lif", "fidelity", "box", "compactness"}


def test_an_image_that_cannot_be_read_is_a_row(world, capsys):
    (world / "images/red/0.png").write_bytes(b"no image")
    run(world, methods=["cdam"])
    assert "1 images could not be measured" in capsys.readouterr().out
    assert "red/0.png" in (world / "out" / "failed.csv").read_text()
    assert {key[0] for key in table(world)} == {"blue/0.png"}
    (world / "images/blue/0.png").write_bytes(b"no image")
    with pytest.raises(LidcCdamError, match=r"No image of .* could be measured; the first: .*blue/0.png must be"):
        run(world, methods=["cdam"])


def test_the_batch_changes_nothing(world):
    run(world, methods=["cdam"], batch_size=1)
    one = table(world)
    run(world, methods=["cdam"], batch_size=64, out=world / "again")
    (world / "out").rename(world / "first")
    (world / "again").rename(world / "out")
    # Boxes whose drop is near the rounding of single precision decide the last digits of a correlation over four.
    assert one == pytest.approx(table(world), rel=1e-2, abs=1e-2, nan_ok=True)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"methods": ["cdma"]}, "--methods must name at least one of"),
        ({"methods": []}, "got none"),
        ({"options": {"random": {"seed": 1}}}, "--options must be of methods among cdam"),
        ({"options": {"cdam": {"m": 1}}}, "--options of cdam must be among"),
        ({"replicates": 0}, "--replicates must be at least 1"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"perturbation": Perturbation(box_sides=[16])}, "--box-sides must be whole numbers from 1 to 15"),
    ],
)
def test_a_wrong_setting_is_one_sentence_and_claims_nothing(world, changes, sentence):
    with pytest.raises(LidcCdamError, match=sentence):
        run(world, **changes)
    assert not (world / "out").exists()
    with pytest.raises(LidcCdamError, match="--steps must be at least 1"):
        Perturbation(steps=0)


def test_another_way_to_perturb_is_refused(world):
    run(world, methods=["cdam"])
    with pytest.raises(LidcCdamError, match="steps = 3, but this call has steps = 4; choose another --out, or delete"):
        run(world, methods=["cdam"], perturbation=Perturbation(steps=4, boxes=4))


def test_the_command_takes_its_settings(world, capsys):
    words = [
        "evaluate",
        "--images",
        str(world / "images"),
        "--model",
        str(world / "model"),
        "--out",
        str(world / "out"),
    ]
    words += ["--steps", "2", "--boxes", "3", "--methods", "cdam,random", "--fill", "mean", "--replicates", "20"]
    assert main(words) == 0
    assert "Measured the maps of 3 images (cdam, random)" in capsys.readouterr().out
    assert main([*words, "--fidelity-nodules", "3"]) == 2
