import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_curve as known_curve

from lidc_cdam.artifacts import PREDICTIONS, SUMMARY, read_cohort, read_predictions
from lidc_cdam.files import read_json, write_json
from training.crossval import crossval
from training.plots import GRID, draw_figures, roc_band, roc_curve, roc_scores
from training.settings import TrainingSettings

RNG = np.random.default_rng(0)
LABEL = (RNG.random(80) < 0.4).astype(float)
SCORES = np.round(LABEL + RNG.normal(size=80), 1)
PATIENTS = [f"p{index // 2}" for index in range(80)]


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("plots") / "run"
    crossval(data, out, TrainingSettings(targets="joint", epochs=2, batch_size=8, views=["axial"]), trees=5)
    return out


def test_the_curve_is_the_known_one_with_ties():
    false, true, _ = known_curve(LABEL, SCORES, drop_intermediate=False)
    np.testing.assert_allclose(roc_curve(SCORES, LABEL), [false, true])
    copies = RNG.integers(0, 3, 80)
    false, true, _ = known_curve(np.repeat(LABEL, copies), np.repeat(SCORES, copies), drop_intermediate=False)
    grid = np.linspace(0, 1, 50)
    ours = np.interp(grid, *roc_curve(SCORES, LABEL, copies.astype(float)))
    np.testing.assert_allclose(ours, np.interp(grid, false, true))


def test_the_band_holds_the_curve_and_narrows_with_patients():
    grid, low, high = roc_band(SCORES, LABEL, PATIENTS)
    middle = np.interp(grid, *roc_curve(SCORES, LABEL))
    assert ((low <= middle + 1e-9) & (middle <= high + 1e-9)).mean() > 0.95
    _, low_4, high_4 = roc_band(
        np.tile(SCORES, 4), np.tile(LABEL, 4), [f"{copy}{name}" for copy in "abcd" for name in PATIENTS]
    )
    assert (high_4 - low_4).mean() < 0.7 * (high - low).mean()
    assert np.isnan(roc_band(SCORES[:1], LABEL[:1], PATIENTS[:1])[1:]).all()
    assert grid.shape == (GRID,)


def test_every_figure_is_there_in_both_forms_with_equal_bytes_each_time(run, data, monkeypatch):
    monkeypatch.setattr("lidc_cdam.drawing.DPI", 60)
    cohort = read_cohort(data)
    written = draw_figures(run, cohort)
    names = ("roc", "reliability", "biomarkers", "learning_curves")
    assert [path.name for path in written] == [f"{name}.{ending}" for name in names for ending in ("png", "svg")]
    before = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in draw_figures(run, cohort)] == before
    for path in written[::2]:
        with Image.open(path) as image:
            assert min(image.size) > 150
            assert image.convert("L").getextrema() != (255, 255)
    for path in written[1::2]:
        assert "<svg" in path.read_text()
        assert "dc:date" not in path.read_text()


def test_what_cannot_be_drawn_is_left_out(run, data, tmp_path):
    part = shutil.copytree(
        run, tmp_path / "run", ignore=shutil.ignore_patterns("figures", "baselines", "bottleneck.csv")
    )
    table = (part / PREDICTIONS).read_text().splitlines()
    rows = [",".join(line.split(",")[:3] + line.split(",")[5:7]) for line in table]
    (part / PREDICTIONS).write_text("\n".join(rows) + "\n")
    summary = read_json(part / SUMMARY)
    old = {name: summary[name] for name in ("metrics", "baselines")}
    old["metrics"] = {"subtlety": {"z_mse": old["metrics"]["subtlety"]["z_mse"]}}
    write_json(part / SUMMARY, old)
    for history in part.rglob("history.csv"):
        history.unlink()
    assert [path.name for path in draw_figures(part, read_cohort(data))] == ["biomarkers.png", "biomarkers.svg"]


def test_a_smaller_poolings_baseline_is_not_drawn(run, data, tmp_path):
    part, cohort = shutil.copytree(run, tmp_path / "run"), read_cohort(data)
    predictions = read_predictions(run / PREDICTIONS)
    whole = ["model", "bottleneck", "radiomics", "readers_logistic", "ruler"]
    assert list(roc_scores(part, predictions, cohort)) == whole
    path = part / "baselines" / "radiomics.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-3]) + "\n")
    assert list(roc_scores(part, predictions, cohort)) == [name for name in whole if name != "radiomics"]
    scores = roc_scores(part, predictions[::-1], cohort)
    np.testing.assert_array_equal(scores["model"], predictions["malignancy_predicted"][::-1])
    assert roc_scores(tmp_path, predictions[["nodule_id", "margin_predicted"]], cohort) == {}
