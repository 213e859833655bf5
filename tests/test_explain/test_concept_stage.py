import csv
import json

import numpy as np
import pandas as pd
import pytest
import torch
from explained_run import ORIGIN_MM, VIEWS, noise, write_run

from lidc_cdam import crop_files
from lidc_cdam.artifacts import Fold, Splits, read_cohort, read_maps, write_splits
from lidc_cdam.cli import main
from lidc_cdam.crop_files import Crop
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain import Concept, concept_stage, explain
from lidc_cdam.explain.concept_stage import concept_folder, explain_concepts
from lidc_cdam.geometry import take_view
from lidc_cdam.intensity import Statistics
from lidc_cdam.model import NoduleModel

SPIKY = "spiky=spiculation >= 4"
NAMES = ("spiky", "spiky_random_1", "spiky_random_2")


@pytest.fixture
def run(tmp_path):
    """Nodules a and b are tested by fold 0, c by fold 1; b and c are spiculated."""
    run = write_run(tmp_path)
    data = tmp_path / "data"
    mask = np.zeros((32, 32, 32), np.uint8)
    mask[12:20, 12:20, 12:20] = 1
    for seed, key in enumerate("abc"):
        crop_files.write_crop(data, key, Crop(noise(seed), mask, ORIGIN_MM))
    table = pd.read_csv(data / "cohort.csv")
    table["spiculation"] = [2.0, 4.0, 5.0]
    table.to_csv(data / "cohort.csv", index=False)
    folds = (Fold(("c",), (), ("a", "b")), Fold(("a", "b"), (), ("c",)))
    write_splits(data / "splits.json", Splits("sound", 0, "", folds, 0.0))
    return run


def maps(run, fold, key, name="spiky", method="cdam"):
    return read_maps(concept_folder(run, fold, name, method) / f"{key}.npz")


def test_examples_come_from_the_training_nodules_alone(run, capsys):
    explain_concepts(run, [SPIKY], concept_controls=2)
    assert "Fold 1: spiky has 1 examples, not 30; all are taken" in capsys.readouterr().out
    drawn = [
        list(csv.DictReader((concept_folder(run, fold, "spiky", "cdam") / "examples.csv").read_text().splitlines()))
        for fold in (0, 1)
    ]
    assert [[row["nodule_id"] for row in rows if row["set"] == "spiky"] for rows in drawn] == [["c"], ["b"]]
    for rows, training in zip(drawn, ("c", "ab"), strict=True):
        assert {row["nodule_id"] for row in rows} <= set(training)
        assert {row["set"] for row in rows} == set(NAMES)


def test_the_map_is_of_the_likeness_to_the_examples_mean(run):
    explain_concepts(run, [SPIKY], concept_controls=2)
    stored = maps(run, 0, "a")
    assert stored.targets == NAMES
    assert stored.views == VIEWS
    assert stored.scores.shape == (3, 2, 1, 16, 16)
    model, statistics = NoduleModel.load(run / "fold_0"), Statistics.read(run / "fold_0/statistics.json")

    def shown(key):
        cube = crop_files.read_crop(run.parent / "data", key).hu
        return statistics.intensity.apply(
            torch.stack([torch.from_numpy(take_view(cube, v, 16).copy()) for v in VIEWS]), 32
        )

    concept = Concept.from_images(model, shown("c"), "spiky")
    expected = explain(model, shown("a"), [concept])[:, 0].numpy()
    np.testing.assert_allclose(stored.scores[0, :, 0], expected, rtol=1e-4, atol=1e-6)


def test_concept_and_controls_are_measured(run, capsys):
    explain_concepts(run, [SPIKY, "big=diameter >= 1"], concept_controls=2)
    shown = capsys.readouterr().out
    assert "spiky by cdam, 3 nodules" in shown
    assert "relevance mass:" in shown
    assert "correlation with the controls' maps:" in shown
    summary = json.loads((run / "concepts.json").read_text())["concepts"]
    found = summary["spiky"]["cdam"]
    assert found["fit"] == 2
    assert found["tells"]["value"] is not None
    assert found["mass_difference"]["value"] == pytest.approx(found["mass"]["value"] - found["mass_control"]["value"])
    # Every nodule fits the second rule, so there is none to tell them from.
    assert "tells" not in summary["big"]["cdam"]
    rows = list(csv.DictReader((run / "concepts.csv").read_text().splitlines()))
    assert {(row["nodule_id"], row["fold"]) for row in rows} == {("a", "0"), ("b", "0"), ("c", "1")}


def test_a_second_call_does_nothing_and_an_interrupted_one_goes_on(run, monkeypatch):
    original, written = concept_stage.write_maps, []

    def interrupt(path, stored):
        if path.stem == "b":
            raise KeyboardInterrupt
        written.append(path.stem)
        original(path, stored)

    with monkeypatch.context() as patch:
        patch.setattr(concept_stage, "write_maps", interrupt)
        with pytest.raises(KeyboardInterrupt):
            explain_concepts(run, [SPIKY], concept_controls=2)
    assert written == ["a"]
    monkeypatch.setattr(
        concept_stage, "write_maps", lambda path, kept: written.append(path.stem) or original(path, kept)
    )
    explain_concepts(run, [SPIKY], concept_controls=2)
    assert written == ["a", "b", "c"]
    explain_concepts(run, [SPIKY], concept_controls=2)
    assert written == ["a", "b", "c"]


def test_another_definition_under_the_name_is_refused(run):
    explain_concepts(run, [SPIKY], concept_controls=2)
    with pytest.raises(LidcCdamError, match="another name for the concept"):
        explain_concepts(run, ["spiky=spiculation >= 4.5"], concept_controls=2)


def test_a_nodule_that_cannot_be_read_is_a_row(run, capsys):
    crop_files.crop_path(run.parent / "data", "a").write_bytes(b"damaged")
    explain_concepts(run, ["b_like=diameter == 1 and spiculation > 4"], concept_controls=2, folds=[0])
    assert "1 nodules could not be explained" in capsys.readouterr().out
    (row,) = csv.DictReader((concept_folder(run, 0, "b_like", "cdam") / "failed.csv").read_text().splitlines())
    assert row["nodule_id"] == "a"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "random"}, "--method must be one of cdam, .* to explain a concept"),
        ({"similarity": "likeness"}, "--similarity must be one of dot, cosine, distance"),
        ({"concept_examples": 0}, "--concept-examples must be at least 1"),
        ({"concept_controls": 1}, "--concept-controls at least 2"),
        ({"folds": [7]}, r"--folds must be among the folds trained in .*, \[0, 1\]"),
        ({"concept": ["spiky=spiculation >= 9"]}, "it fits none"),
        ({"concept": ["spiky=spiculation >= 5"]}, "must fit a training nodule of every fold"),
    ],
)
def test_a_wrong_setting_is_one_sentence(run, changes, sentence):
    with pytest.raises(LidcCdamError, match=sentence):
        explain_concepts(**{"run": run, "concept": [SPIKY], "concept_controls": 2, **changes})


def test_the_command_takes_rules_and_lists(run, tmp_path, capsys):
    (tmp_path / "mine.csv").write_text("nodule_id\nb\nc\n")
    words = [
        "explain",
        "--run",
        str(run),
        "--concept",
        f"{SPIKY},mine={tmp_path / 'mine.csv'}",
        "--concept-controls",
        "2",
    ]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "spiky by cdam" in shown
    assert "mine by cdam" in shown
    assert maps(run, 1, "c", "mine").targets == ("mine", "mine_random_1", "mine_random_2")
    assert len(read_cohort(run.parent / "data")) == 3
    assert main([*words, "--volume"]) == 2
