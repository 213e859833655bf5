import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy.stats import spearmanr

from lidc_cdam.artifacts import (
    COHORT_COLUMNS,
    EXPLAINER_COLUMNS,
    Dataset,
    NoduleRecord,
    fold_folder,
    maps_path,
    read_maps,
    write_dataset,
    write_maps,
    write_predictions,
)
from lidc_cdam.backbones import build_backbone
from lidc_cdam.cli import main
from lidc_cdam.compute import Workers
from lidc_cdam.crop_files import Crop, crop_path, read_crop, write_crop
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain import explain
from lidc_cdam.explain.registry import EXPLAINERS, register
from lidc_cdam.explain.stage import explain_run
from lidc_cdam.files import held, read_json
from lidc_cdam.geometry import take_view
from lidc_cdam.intensity import Intensity, Scaling, Statistics
from lidc_cdam.map_files import random_maps_path, read_random_maps
from lidc_cdam.metrics.localisation import relevance_mass
from lidc_cdam.metrics.measures import FIDELITY, LOCALISATION
from lidc_cdam.metrics.parts import part_path
from lidc_cdam.metrics.sanity import fresh_model
from lidc_cdam.metrics.stage import evaluate
from lidc_cdam.metrics.work import Job, Outcome, run_job
from lidc_cdam.model import NoduleModel

TARGETS = ("margin", "diameter")
NODULES = tuple(f"LIDC-IDRI-{number:04d}_n01" for number in range(6))


def ball(radius: float) -> np.ndarray:
    z, y, x = np.indices((32, 32, 32)) - 16
    return z**2 + y**2 + x**2 <= radius**2


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    rows, records = [], {}
    for index, nodule in enumerate(NODULES):
        body = ball(4 + index)
        hu = np.where(body, 50, -800) + rng.integers(-50, 50, body.shape)
        # Three readers; the third draws a smaller nodule.
        readers = 2 * body.astype(np.uint8) + ball(3)
        write_crop(folder, nodule, Crop(hu.astype(np.int16), readers.astype(np.uint8), (0.0, 0.0, 0.0)))
        row = dict.fromkeys(COHORT_COLUMNS, 1.0)
        identity = {"nodule_id": nodule, "patient_id": nodule[:14], "series_uid": "1.2", "readers": 3}
        rows.append({**row, **identity, "reason": ""})
        records[nodule] = NoduleRecord(nodule, "pack", "scan", 0.0, 0.7, 1.0)
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    write_dataset(folder, Dataset({"preset": "all"}, records))
    return folder


@pytest.fixture
def run(tmp_path: Path, data: Path) -> Path:
    folder = tmp_path / "run"
    for fold in (0, 1):
        torch.manual_seed(fold)
        model = NoduleModel(build_backbone("tiny"), TARGETS)
        torch.nn.init.normal_(model.head.weight)
        model.save(fold_folder(folder, fold))
        scaling = Scaling(TARGETS, (0.0, 0.0), (1.0, 1.0))
        Statistics(Intensity(0.3, 0.3), scaling).write(fold_folder(folder, fold) / "statistics.json")
        own = NODULES[fold::2]
        table = pd.DataFrame({"nodule_id": own, "patient_id": [key[:14] for key in own], "fold": fold})
        write_predictions(fold_folder(folder, fold) / "predictions.csv", table)
    config = {"data": str(data), "views": ["axial", "coronal"], "targets": list(TARGETS), "backbone": "tiny"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(autouse=True)
def _pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longest, so one test draws them all, small, and the others none."""
    if "dummy" in request.fixturenames:
        monkeypatch.setattr("lidc_cdam.drawing.DPI", 40)
    else:
        for name in ("draw_pictures", "draw_galleries"):
            monkeypatch.setattr(f"lidc_cdam.metrics.results.{name}", lambda *_: [])


@pytest.fixture
def dummy() -> Iterator[str]:
    """A method that scores pixels: 0 but for one row of the image in 32."""
    name = "dummy_pixels"

    @register(name, "Dummy", native="pixel")
    def rows(model: NoduleModel, images: torch.Tensor, targets: object = None) -> torch.Tensor:
        maps = torch.zeros(len(images), len(model.targets), *images.shape[-2:])
        for index in range(len(model.targets)):
            maps[:, index, 15 + index] = 1
        return maps

    yield name
    del EXPLAINERS[name]


def test_every_nodule_method_target_and_metric_has_a_row(run: Path) -> None:
    evaluate(run, fidelity_nodules=1, steps=2, replicates=50)
    table = pd.read_csv(run / "explainers.csv")
    assert tuple(table.columns) == (*EXPLAINER_COLUMNS, "reason")
    counts = table.groupby(["method", "target", "metric"]).size().unstack()
    assert set(counts.index) == {(method, target) for method in ("cdam", "random") for target in TARGETS}
    assert (counts[list(LOCALISATION)].to_numpy() == 6).all()
    # One nodule of each fold.
    assert (counts[list(FIDELITY)].to_numpy() == 2).all()
    sampled = table[table["metric"] == "fidelity"].groupby("method")["nodule_id"].agg(set)
    assert sampled["cdam"] == sampled["random"]
    wide = table[table["metric"].isin(FIDELITY)].pivot_table(
        index=["nodule_id", "method", "target"], columns="metric", values="value"
    )
    np.testing.assert_allclose(wide["fidelity"], wide["fidelity_lif"] - wide["fidelity_mif"], atol=1e-9)
    summary = read_json(run / "explainers.json")
    settings = {"fidelity_nodules": 1, "steps": 2, "fill": "blur", "blur_sigma": None, "seed": 0}
    assert summary["settings"] == settings | {"box_sides": None, "boxes": 100}
    assert set(summary["minus_random"]) == {"cdam"}


def test_a_row_equals_the_figure_of_the_stored_map(run: Path) -> None:
    evaluate(run, ["cdam"], fidelity_nodules=0, replicates=5)
    table = pd.read_csv(run / "explainers.csv").set_index(["nodule_id", "target", "metric"])["value"]
    nodule = NODULES[2]
    maps = read_maps(maps_path(run, 0, "cdam", nodule))
    # A ball's middle slice is the same disc from every side, upside down for the coronal one.
    disc = ball(6)[16]
    axial, coronal = (maps.scores[1, view, 0].repeat(2, 0).repeat(2, 1) for view in (0, 1))
    expected = float(relevance_mass(axial, disc) + relevance_mass(coronal, disc[::-1])) / 2
    assert table[nodule, "diameter", "relevance_mass"] == pytest.approx(expected)
    assert table[nodule, "diameter", "relevance_mass_chance"] == pytest.approx(disc.mean())


def test_only_the_central_slice_is_measured(run: Path) -> None:
    explain_run(run, method="random", slices=(16, 20))
    evaluate(run, "random", fidelity_nodules=0, replicates=5)
    table = pd.read_csv(run / "explainers.csv").set_index(["nodule_id", "target", "metric"])["value"]
    maps = read_maps(maps_path(run, 0, "random", NODULES[0]))
    disc = ball(4)[16]
    views = [maps.scores[0, view, 0].repeat(2, 0).repeat(2, 1) for view in (0, 1)]
    expected = (relevance_mass(views[0], disc) + relevance_mass(views[1], disc[::-1])) / 2
    assert table[NODULES[0], "margin", "relevance_mass"] == pytest.approx(float(expected))


def test_maps_without_the_central_slice_are_failures_that_say_what_to_do(run: Path) -> None:
    explain_run(run, method="random", slices=(20,))
    with pytest.raises(LidcCdamError, match=r"No map of .* could be measured"):
        evaluate(run, "random", replicates=5)
    failed = pd.read_csv(fold_folder(run, 0) / "evaluation" / "failed.csv")
    assert failed["reason"].str.contains("at slice 16 of axial, coronal, but it holds .* run `lidc-cdam explain`").all()
    assert set(failed["method"]) == {"random"}


def test_a_rerun_does_nothing_and_another_method_joins(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(run, ["random"], fidelity_nodules=0, replicates=5)
    part = part_path(run, 0, "localisation", "random", NODULES[0])
    before = part.stat().st_mtime_ns
    capsys.readouterr()
    evaluate(run, "random", fidelity_nodules=0, replicates=5)
    assert (
        "Everything was measured before (random: localisation, compactness, fidelity, randomised)"
        in capsys.readouterr().out
    )
    evaluate(run, "centre", fidelity_nodules=0, replicates=5)
    assert part.stat().st_mtime_ns == before
    assert set(pd.read_csv(run / "explainers.csv")["method"]) == {"random", "centre"}


def test_an_interrupted_evaluation_goes_on(run: Path) -> None:
    evaluate(run, "random", fidelity_nodules=1, steps=2, replicates=5)
    whole = pd.read_csv(run / "explainers.csv")
    for path in (
        *(run / "fold_0" / "evaluation").rglob("*.npz"),
        part_path(run, 1, "localisation", "random", NODULES[3]),
    ):
        path.unlink()
    evaluate(run, "random", fidelity_nodules=1, steps=2, replicates=5)
    order = ["nodule_id", "target", "metric"]
    again = pd.read_csv(run / "explainers.csv")
    pd.testing.assert_frame_equal(*(each.sort_values(order, ignore_index=True) for each in (whole, again)))


def test_an_interrupt_keeps_what_is_measured(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explain_run(run, method="random")
    seen = []

    def interrupt(job: Job) -> Outcome:
        seen.append(job.nodule_id)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return run_job(job)

    monkeypatch.setattr("lidc_cdam.metrics.stage.run_job", interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, "random", fidelity_nodules=0, replicates=5)
    folder = run / "fold_0" / "evaluation" / "localisation" / "random"
    assert sorted(path.stem for path in folder.glob("*")) == seen[:2]
    evaluate(run, "random", fidelity_nodules=0, replicates=5)
    # The third is measured again, the first two are not.
    assert seen[3:] == [seen[2], *NODULES[1::2]]


def test_other_settings_are_refused_but_more_nodules_are_added(run: Path) -> None:
    evaluate(run, "random", "fidelity", fidelity_nodules=1, steps=2, replicates=5)
    with pytest.raises(LidcCdamError, match=r"steps = 2, but this call has steps = 3; .* delete"):
        evaluate(run, "random", "fidelity", fidelity_nodules=1, steps=3, replicates=5)
    evaluate(run, "random", "fidelity", fidelity_nodules=2, steps=2, replicates=5)
    assert len(pd.read_csv(run / "explainers.csv")["nodule_id"].unique()) == 4


def test_a_damaged_crop_or_map_is_a_row_and_the_others_go_on(run: Path, data: Path) -> None:
    evaluate(run, "random", fidelity_nodules=0, replicates=5)
    for path in run.glob("fold_*/evaluation/**/*.npz"):
        path.unlink()
    crop_path(data, NODULES[0]).write_bytes(b"damaged")
    maps_path(run, 1, "random", NODULES[1]).write_bytes(b"damaged")
    evaluate(run, "random", fidelity_nodules=0, replicates=5)
    assert set(pd.read_csv(run / "explainers.csv")["nodule_id"]) == set(NODULES[2:])
    for fold, name in ((0, "crops"), (1, "NPZ")):
        failed = pd.read_csv(fold_folder(run, fold) / "evaluation" / "failed.csv")
        assert set(failed["nodule_id"]) == {NODULES[fold]}
        assert set(failed["metrics"]) >= {"localisation", "compactness"}
        assert failed["reason"].str.contains(name).all()
    # Of another call's failures nothing is forgotten, and what is mended is no row any more.
    evaluate(run, "centre", fidelity_nodules=0, replicates=5)
    failed = pd.read_csv(fold_folder(run, 0) / "evaluation" / "failed.csv")
    assert set(failed["method"]) == {"random", "centre"}
    maps_path(run, 1, "random", NODULES[1]).unlink()
    evaluate(run, "random", fidelity_nodules=0, replicates=5)
    assert not (fold_folder(run, 1) / "evaluation" / "failed.csv").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"methods": "cdam,cdma"}, r"--methods must name at least one of .*; got 'cdma'\."),
        ({"methods": ""}, r"--methods must name at least one of .*; got none\."),
        ({"metrics": "fidelty"}, r"--metrics must name at least one of localisation, .*; got 'fidelty'\."),
        ({"blur_sigma": 0.0}, r"--blur-sigma must be above 0 pixels; got 0\.0\."),
        ({"boxes": 2}, r"--boxes must be at least 3, or nothing can be correlated; got 2\."),
        ({"box_sides": [4]}, r"--box-sides must be at least two different whole numbers of pixels; got \[4\]\."),
        ({"box_sides": [4, 32]}, r"--box-sides must be whole numbers from 1 to 31 pixels; got \[4, 32\]\."),
        ({"steps": 0}, r"--steps must be at least 1; got 0\."),
        ({"fidelity_nodules": -1}, r"--fidelity-nodules must be at least 0; got -1\."),
        ({"replicates": 0}, r"--batch-size and --replicates must be at least 1"),
    ],
)
def test_settings_out_of_range(run: Path, options: dict, sentence: str) -> None:
    with pytest.raises(LidcCdamError, match=sentence):
        evaluate(run, **options)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(LidcCdamError, match=r"config\.yaml is missing"):
        evaluate(tmp_path)


def test_command_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--run", str(run), "--methods", "random,centre", "--fidelity-nodules", "0"]
    assert main([*words, "--replicates", "5"]) == 0
    assert "centre - random" in capsys.readouterr().out
    assert main(["evaluate", "--run", str(run), "--methods", "cdma"]) == 1
    assert "got 'cdma'" in capsys.readouterr().err


ALL = "localisation,compactness,fidelity,box,sanity,repeatability,completeness"


def test_every_family_and_a_native_pixel_method(run: Path, dummy: str) -> None:
    evaluate(run, f"random,integrated_cdam,{dummy},centre", ALL, 1, 2, box_sides=[4, 9], boxes=8, replicates=20)
    table = pd.read_csv(run / "explainers.csv")
    found = table.groupby("method")["metric"].agg(set)
    for method in ("random", "integrated_cdam", dummy, "centre"):
        assert found[method] >= {*LOCALISATION, "compactness", *FIDELITY, "fidelity_delta", "fidelity_by_margin"}
        assert found[method] >= {"box", "box_delta", "box_by_diameter", "repeated_fold"}
        assert found[method] >= {"randomised_head", "randomised_embedding"}
    of_all = table[table["metric"] == "randomised_embedding"].groupby("method")["nodule_id"].nunique()
    assert (of_all["centre"], of_all[dummy]) == (len(NODULES), 2)
    assert "completeness_gap" in found["integrated_cdam"]
    assert "completeness_gap" not in found["random"]
    # Pixel maps are measured on their own grid, and no token maps of them are made.
    assert not (run / "fold_0" / "maps" / dummy).exists()
    values = table.set_index(["method", "metric"])["value"]
    assert values[dummy, "compactness"].to_numpy() == pytest.approx(31 / 32)
    np.testing.assert_allclose(values["centre", "fidelity_delta"], 0, atol=1e-6)
    np.testing.assert_allclose(values["centre", "box_delta"], 0, atol=1e-6)
    np.testing.assert_allclose(values["centre", "randomised_embedding"], 1)
    assert values["integrated_cdam", "completeness_gap"].max() < 0.1
    pictures = run / "figures" / "explainers"
    names = {path.stem for path in pictures.glob("*.png")}
    assert names == {path.stem for path in pictures.glob("*.svg")}
    assert names >= {"perturbation_curves", "box_sensitivity", "discrimination_fidelity", "discrimination_box"}
    assert names >= {"methods", "sanity", "gallery_margin", "gallery_diameter"}
    curves = pd.read_csv(run / "explainers_curves.csv")
    assert set(curves["curve"]) == {"mif", "lif", "r"}
    assert set(curves["target"]) == {*TARGETS, "all"}
    assert (run / "explainers_table.md").read_text().count("\n") == 6
    differences = read_json(run / "explainers.json")["differences"]
    assert {(each["first"], each["second"]) for each in differences} >= {("centre", "random")}


def test_every_nodule_keeps_the_map_of_the_model_with_random_weights(
    run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(run, "cdam,centre", "randomised", replicates=5)
    assert "mean over targets  all random" in capsys.readouterr().out
    table = pd.read_csv(run / "explainers.csv")
    assert set(table["metric"]) == {"randomised_embedding"}
    assert set(table["nodule_id"]) == set(NODULES)
    for nodule, fold in ((NODULES[0], 0), (NODULES[3], 1)):
        kept = read_random_maps(random_maps_path(run, fold, "cdam", nodule))
        maps = read_maps(maps_path(run, fold, "cdam", nodule))
        assert (kept.targets, kept.views, kept.slices) == (maps.targets, maps.views, maps.slices)
        assert kept.scores.dtype == np.float32
        # The map is that of a model with fresh weights, and its figure that of the two maps.
        fresh = fresh_model(NoduleModel.load(fold_folder(run, fold)), seed=0)
        planes = np.stack([take_view(read_crop(data, nodule).hu, view, 16) for view in maps.views])
        images = Intensity(0.3, 0.3).apply(torch.from_numpy(planes)[:, None].expand(-1, 3, -1, -1), fresh.image_size)
        expected = explain(fresh, images).movedim(0, 1)[:, :, None]
        torch.testing.assert_close(torch.from_numpy(kept.scores), expected, rtol=1e-4, atol=1e-6)
        own = table[(table["nodule_id"] == nodule) & (table["method"] == "cdam")].set_index("target")["value"]
        for place, target in enumerate(maps.targets):
            pairs = zip(maps.scores[place, :, 0], kept.scores[place, :, 0], strict=True)
            mean = np.mean([spearmanr(first.ravel(), second.ravel()).statistic for first, second in pairs])
            assert own[target] == pytest.approx(mean, abs=1e-5)
    assert not random_maps_path(run, 0, "random", NODULES[0]).exists()


def test_maps_of_random_weights_have_the_form_of_every_other_map(run: Path) -> None:
    evaluate(run, "attention,input_gradient", "randomised", replicates=5)
    for method, nodule in (("attention", NODULES[0]), ("input_gradient", NODULES[3])):
        fold = int(nodule == NODULES[3])
        kept = read_random_maps(random_maps_path(run, fold, method, nodule))
        model = NoduleModel.load(fold_folder(run, fold))
        # Methods that score pixels are kept on the token grid; attention has one map for all targets.
        assert kept.targets == model.targets
        tokens = read_maps(maps_path(run, fold, "attention", nodule)).scores.shape
        assert kept.scores.shape == tokens
        one = [np.array_equal(kept.scores[0], scores) for scores in kept.scores[1:]]
        assert set(one) == {method == "attention"}


def test_two_at_once_on_one_run_wait_for_each_other(run: Path) -> None:
    with held(run, ".evaluate") as mine:
        assert mine
        words = ["evaluate", "--run", str(run), "--methods", "random", "--metrics", "localisation", "--replicates", "5"]
        other = subprocess.Popen([sys.executable, "-m", "lidc_cdam.cli", *words], stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert other.stdout.readline() == f"Another `evaluate` works on {run}; waiting for it.\n"
        assert not (run / "explainers.csv").exists()
    assert other.wait() == 0
    other.stdout.close()
    assert (run / "explainers.csv").exists()
    assert not (run / ".evaluate").exists()


def test_results_depend_neither_on_batches_nor_on_workers(run: Path, tmp_path: Path) -> None:
    copies = [tmp_path / name for name in ("whole", "small", "split")]
    options = ({}, {"batch_size": 3}, {"workers": Workers(2)})
    tables = []
    for copy, option in zip(copies, options, strict=True):
        shutil.copytree(run, copy)
        evaluate(copy, "cdam,random", "localisation,fidelity,box", 1, 2, boxes=5, replicates=5, **option)
        order = ["nodule_id", "method", "target", "metric"]
        tables.append(pd.read_csv(copy / "explainers.csv").sort_values(order, ignore_index=True))
    pd.testing.assert_frame_equal(tables[0], tables[2])
    pd.testing.assert_frame_equal(tables[0], tables[1], rtol=1e-3, atol=1e-3)


def test_other_runs_are_compared_and_must_be_alike(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    evaluate(run, "cdam,random", "repeatability", 1, other_run=other, randomised_run=other, replicates=5)
    table = pd.read_csv(run / "explainers.csv").set_index(["method", "metric"])["value"]
    for method in ("cdam", "random"):
        np.testing.assert_allclose(table[method, "repeated_run"], 1)
        np.testing.assert_allclose(table[method, "label_randomised"], 1)
    # A random map looks at the image as a model is shown it, which both folds of this world are alike.
    assert table["cdam", "repeated_fold"].abs().max() < 1
    config = yaml.safe_load((other / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump({**config, "views": ["axial"]}))
    with pytest.raises(LidcCdamError, match=r"with views = \['axial', 'coronal'\], but .* has \['axial'\]"):
        evaluate(run, "cdam", "repeatability", 1, other_run=other)
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.rmtree(other / "fold_1")
    with pytest.raises(LidcCdamError, match=r"must have the folds of .* in fold 1; train it with the same --splits"):
        evaluate(run, "cdam", "repeatability", 1, other_run=other)


def test_an_empty_consensus_is_a_row_with_its_reason(run: Path, data: Path) -> None:
    nodule = NODULES[0]
    crop = read_crop(data, nodule)
    tiny = np.zeros_like(crop.readers)
    tiny[16, 16, 16] = 3
    write_crop(data, nodule, Crop(crop.hu, np.zeros_like(crop.readers), crop.origin_mm))
    write_crop(data, NODULES[2], Crop(crop.hu, tiny, crop.origin_mm))
    evaluate(run, "random", "localisation", replicates=5)
    table = pd.read_csv(run / "explainers.csv").set_index("nodule_id")
    assert table.loc[nodule, "value"].isna().all()
    assert (table.loc[nodule, "reason"] == "the readers' consensus is in none of the slices shown").all()
    assert table.loc[NODULES[2], "reason"].str.contains(r"\(1 pixels\) is smaller than one cell of the map \(4").all()
    assert table.loc[NODULES[2], "value"].notna().all()


def test_maps_with_nan_or_of_another_grid_are_failures(run: Path) -> None:
    explain_run(run, method="random")
    for nodule, change in ((NODULES[0], lambda s: s * np.nan), (NODULES[2], lambda s: s[..., :15, :15])):
        path = maps_path(run, 0, "random", nodule)
        maps = read_maps(path)
        write_maps(path, replace(maps, scores=change(maps.scores)))
    evaluate(run, "random", "localisation", replicates=5)
    failed = pd.read_csv(run / "fold_0" / "evaluation" / "failed.csv").set_index("nodule_id")["reason"]
    assert "Maps must hold finite numbers" in failed[NODULES[0]].iloc[0]
    assert "32 x 32 pixels, but they are 15 x 15" in failed[NODULES[2]].iloc[0]
    assert set(pd.read_csv(run / "explainers.csv")["nodule_id"]) == set(NODULES) - {NODULES[0], NODULES[2]}
