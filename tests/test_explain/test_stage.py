import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from explained_run import TARGETS, VIEWS, write_data, write_fold, write_run

from lidc_cdam import crop_files
from lidc_cdam.artifacts import maps_path, read_maps
from lidc_cdam.cli import main
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain import EXPLAINERS, explain, work
from lidc_cdam.explain.stage import explain_run
from lidc_cdam.geometry import take_view
from lidc_cdam.intensity import Statistics
from lidc_cdam.model import NoduleModel
from lidc_cdam.provenance import read_record


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path)


def test_each_folds_model_explains_its_own_test_nodules(run, capsys):
    explain_run(run, slices=(16, 14), batch_size=5)
    assert "Wrote cdam maps of 3 nodules" in capsys.readouterr().out
    for fold, ids in ((0, "ab"), (1, "c")):
        model, statistics = (
            NoduleModel.load(run / f"fold_{fold}"),
            Statistics.read(run / f"fold_{fold}/statistics.json"),
        )
        assert sorted(path.stem for path in (run / f"fold_{fold}/maps/cdam").glob("*.npz")) == list(ids)
        for key in ids:
            maps = read_maps(maps_path(run, fold, "cdam", key))
            assert maps.targets == TARGETS
            assert maps.views == VIEWS
            assert maps.slices == (16, 14)
            assert maps.scores.dtype == np.float32
            assert maps.scores.shape == (2, 2, 2, 16, 16)
            cube = crop_files.read_crop(run.parent / "data", key).hu
            for view, name in enumerate(VIEWS):
                for place, index in enumerate((16, 14)):
                    image = torch.from_numpy(take_view(cube, name, index).copy())[None]
                    expected = explain(model, statistics.intensity.apply(image, 32))[0].numpy()
                    np.testing.assert_allclose(maps.scores[:, view, place], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", EXPLAINERS)
def test_every_estimator_writes_maps_and_volumes(run, method):
    options = {"n": 2} if "n" in EXPLAINERS[method].options else {}
    explain_run(run, method, folds=[1], options=options, slices=(16,), views=["axial"])
    scores = read_maps(maps_path(run, 1, method, "c")).scores
    assert scores.shape == (2, 1, 1, 16, 16)
    assert np.isfinite(scores).all()
    assert np.array_equal(scores[0], scores[1]) is not EXPLAINERS[method].targeted
    volume = {"views": ["axial"], "targets": ["margin"], "volume": True, "batch_size": 32}
    explain_run(run, method, folds=[1], options=options, **volume)
    stored = np.load(run / f"fold_1/volumes/{method}/c/margin.npz")["scores"]
    tokens = stored[0, 16][::2, ::2]
    np.testing.assert_allclose(tokens, scores[0, 0, 0], rtol=1e-3, atol=1e-5 * abs(scores).max())


def test_black_is_the_lower_end_of_the_folds_window(run):
    model, statistics = NoduleModel.load(run / "fold_1"), Statistics.read(run / "fold_1/statistics.json")
    explain_run(run, "integrated_gradients", folds=[1], options={"n": 2})
    scores = read_maps(maps_path(run, 1, "integrated_gradients", "c")).scores
    cube = crop_files.read_crop(run.parent / "data", "c").hu
    image = statistics.intensity.apply(torch.from_numpy(take_view(cube, "axial", 16).copy())[None], 32)
    expected = explain(model, image, None, "integrated_gradients", n=2, baseline=statistics.intensity.black)
    np.testing.assert_allclose(scores[:, 0, 0], expected[0], rtol=1e-3, atol=1e-6)


def test_a_finished_step_does_nothing(run, capsys):
    explain_run(run)
    paths = sorted(run.glob("fold_*/maps/cdam/*.npz"))
    before = [path.stat().st_mtime_ns for path in paths]
    capsys.readouterr()
    explain_run(run)
    assert "All 3 nodules have their maps" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in paths] == before
    assert read_record(run / "fold_0", "explain/cdam")["finished"]


def test_an_interrupted_step_goes_on(run, monkeypatch, capsys):
    original = work.write_maps

    def interrupt(path, maps):
        if path.stem == "b":
            raise KeyboardInterrupt
        original(path, maps)

    with monkeypatch.context() as patch:
        patch.setattr(work, "write_maps", interrupt)
        with pytest.raises(KeyboardInterrupt):
            explain_run(run)
    assert not read_record(run / "fold_0", "explain/cdam")["finished"]
    written = maps_path(run, 0, "cdam", "a").stat().st_mtime_ns
    explain_run(run)
    assert "Wrote cdam maps of 2 nodules (1 were there)" in capsys.readouterr().out
    assert maps_path(run, 0, "cdam", "a").stat().st_mtime_ns == written
    assert not list(run.rglob(".writing-*"))


@pytest.mark.parametrize("kept", [0.05, 0.7])
def test_a_damaged_crop_is_a_row_and_the_others_go_on(run, capsys, kept):
    crop = crop_files.crop_path(run.parent / "data", "b")
    good = crop.read_bytes()
    crop.write_bytes(good[: int(kept * len(good))])
    explain_run(run)
    assert "Could not explain 1 of the nodules" in capsys.readouterr().out
    failed = pd.read_csv(run / "fold_0/maps/cdam/failed.csv")
    assert failed.loc[0, ["nodule_id", "series_uid"]].tolist() == ["b", "1.2.b"]
    assert "damaged" in failed.loc[0, "reason"]
    assert not read_record(run / "fold_0", "explain/cdam")["finished"]
    crop.write_bytes(good)
    explain_run(run)
    assert maps_path(run, 0, "cdam", "b").exists()
    assert not (run / "fold_0/maps/cdam/failed.csv").exists()


def test_other_data_goes_to_another_folder_under_every_fold(run, tmp_path):
    write_data(tmp_path / "new", ["x", "y"])
    explain_run(run, data=tmp_path / "new", out=tmp_path / "out", method="centre", options={"sigma": 0.3})
    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.npz")) == [
        f"fold_{fold}/maps/centre/{key}.npz" for fold in (0, 1) for key in "xy"
    ]


def test_folds_can_be_chosen(run):
    explain_run(run, method="random", folds=[1])
    assert not (run / "fold_0/maps").exists()
    assert maps_path(run, 1, "random", "c").exists()


def test_other_options_or_another_model_are_refused(run):
    explain_run(run, method="random", options={"seed": 1})
    with pytest.raises(LidcCdamError, match=r"made by `explain/random` with options = .*; choose another --out"):
        explain_run(run, method="random", options={"seed": 2})
    write_fold(run, 5, ["a"])
    (run / "fold_5/model.safetensors").replace(run / "fold_0/model.safetensors")
    with pytest.raises(LidcCdamError, match=r"with model.safetensors = "):
        explain_run(run, method="random", options={"seed": 1})


def test_a_checkpoint_of_another_task_is_refused(run):
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"targets": "malignancy"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(
        LidcCdamError, match=r"model.json must belong to the run's targets malignancy, but it is of ano"
    ):
        explain_run(run)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "cdma"}, "--method must be one of"),
        ({"options": {"n": 3}}, "--options of cdam must be among: batch_size; got 'n'"),
        ({"method": "smooth_cdam", "options": {"n": 0}}, "--options.n must be at least 1; got 0"),
        ({"method": "smooth_cdam", "options": {"n": "x"}}, "n of smooth_cdam must be a whole number; got 'x'"),
        ({"method": "smooth_cdam", "options": {"n": 2.5}}, "n of smooth_cdam must be a whole number; got 2.5"),
        ({"method": "smooth_cdam", "options": {"n": True}}, "n of smooth_cdam must be a whole number; got True"),
        ({"method": "smooth_cdam", "options": {"sigma": "NaN"}}, "must be a finite number or null; got 'NaN'"),
        ({"method": "smooth_cdam", "options": {"antithetic": "yes"}}, "must be true or false; got 'yes'"),
        ({"method": "integrated_cdam", "options": {"perturb": "x"}}, "--options.perturb must be one of tokens"),
        ({"method": "cdam", "options": {"batch_size": 0}}, "--batch-size must be at least 1"),
        ({"method": "centre", "options": {"sigma": 0}}, "--options.sigma must be above 0; got 0"),
        ({"slices": (40,)}, r"--slices must be at least one index from 0 to 31; got \[40\]"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"folds": [0, 7]}, r"--folds must be among the folds trained in .*, \[0, 1\]; got \[7\]"),
    ],
)
def test_bad_settings_write_nothing(run, options, sentence):
    with pytest.raises(LidcCdamError, match=sentence):
        explain_run(run, **options)
    assert not list(run.rglob("maps"))
    assert not list(run.rglob("provenance.json"))


def test_other_data_without_a_folder_of_its_own(run, tmp_path):
    for out in (None, run):
        with pytest.raises(LidcCdamError, match="give --out another folder"):
            explain_run(run, data=tmp_path / "data", out=out)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("config.yaml", "--run must be the folder of a run, but .*config.yaml is missing"),
        ("fold_0/statistics.json", "statistics.json is missing; train the fold again"),
        ("fold_0/predictions.csv", "predictions.csv is missing; run `lidc-cdam crossval` first"),
        ("../data/dataset.json", "dataset.json is missing; run `lidc-cdam extract"),
    ],
)
def test_missing_files_are_named(run, name, sentence):
    (run / name).unlink()
    with pytest.raises(LidcCdamError, match=sentence):
        explain_run(run)


def test_damaged_configurations(run):
    (run / "config.yaml").write_text("data: [")
    with pytest.raises(LidcCdamError, match="must be YAML"):
        explain_run(run)
    (run / "config.yaml").write_text("data: somewhere")
    with pytest.raises(LidcCdamError, match="must name views"):
        explain_run(run)
    (run / "config.yaml").write_text("data: somewhere\nviews: [oblique]")
    with pytest.raises(LidcCdamError, match="must list views of axial, coronal, sagittal, but it has"):
        explain_run(run)


def test_a_run_without_a_fold(run):
    for fold in (0, 1):
        (run / f"fold_{fold}/model.safetensors").unlink()
    with pytest.raises(LidcCdamError, match="must hold trained folds"):
        explain_run(run)


def test_the_command_line_reaches_every_option(run, capsys):
    words = ["--run", str(run), "--method", "smooth_cdam", "--slices", "[16]", "--folds", "[1]"]
    assert main(["explain", *words, "--options", '{"n": 2}']) == 0
    assert read_maps(maps_path(run, 1, "smooth_cdam", "c")).slices == (16,)
    assert main(["explain", "--run", str(run), "--method", "cdma"]) == 1
    assert "did you mean 'cdam'?" in capsys.readouterr().err
