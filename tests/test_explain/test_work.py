import errno
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from explained_run import ORIGIN_MM, TARGETS, noise, write_data, write_hu, write_run

from lidc_cdam import artifacts, crop_files
from lidc_cdam.cli import main
from lidc_cdam.compute import Workers
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain import EXPLAINERS, Explainer, explain, work
from lidc_cdam.explain.stage import explain_run
from lidc_cdam.geometry import VIEWS, take_view
from lidc_cdam.intensity import Statistics
from lidc_cdam.map_files import read_volume, volume_folder, volume_path
from lidc_cdam.model import NoduleModel
from lidc_cdam.provenance import read_record


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.glob("fold_*/volumes/**/*.*z"))}


def brightness(model, images, targets=None):
    """A planted map: each token's score is the mean of its pixels, doubled from target to target."""
    tokens = torch.nn.functional.avg_pool2d(images[:, :1], 2)
    return torch.cat([tokens * 2**place for place in range(len(targets))], dim=1)


@pytest.mark.parametrize("view", VIEWS)
def test_a_bright_spot_is_found_at_its_place_in_the_patient(run, monkeypatch, view):
    monkeypatch.setitem(EXPLAINERS, "brightness", Explainer("brightness", brightness, "Brightness"))
    hu = np.full((32, 32, 32), -1000, np.int16)
    hu[4:6, 22:24, 10:12] = 300
    write_hu(run.parent / "data", "c", hu)
    explain_run(run, method="brightness", folds=[1], volume=True, views=[view])
    crop = sitk.ReadImage(str(crop_files.crop_path(run.parent / "data", "c")))
    image = sitk.ReadImage(str(volume_path(volume_folder(run, 1, "brightness", "c"), "diameter")))
    assert image.GetPixelID() == sitk.sitkFloat32
    for facts in ("GetOrigin", "GetSpacing", "GetDirection", "GetSize"):
        assert getattr(image, facts)() == getattr(crop, facts)()
    bright = image > float(sitk.GetArrayFromImage(image).max()) - 1e-3
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(sitk.Cast(bright, sitk.sitkUInt8))
    np.testing.assert_allclose(shape.GetCentroid(1), np.add(ORIGIN_MM, (10.5, 22.5, 4.5)))
    assert shape.GetPhysicalSize(1) == 8


def test_volumes_are_the_maps_of_every_slice(run, capsys):
    explain_run(run, volume=True, folds=[0], batch_size=40)
    out = capsys.readouterr().out
    assert "trained on axial and coronal slices only; scores of sagittal slices" in out
    assert "Volumes of 2 nodules take up to 2.1 MB" in out
    assert f"Wrote cdam volumes of 2 nodules (0 were there) to {run}/fold_*/volumes/cdam." in out
    assert "The scores were computed in closed form." in out
    assert read_record(run / "fold_0", "explain --volume/cdam")["results"] == {
        "nodules": 2,
        "method_used": "closed form",
    }
    model, statistics = NoduleModel.load(run / "fold_0"), Statistics.read(run / "fold_0/statistics.json")
    cube = crop_files.read_crop(run.parent / "data", "b").hu
    for target in TARGETS:
        volume = read_volume(volume_folder(run, 0, "cdam", "b"), target)
        assert volume.views == tuple(VIEWS)
        assert volume.scores.dtype == np.float32
        for place, view in enumerate(VIEWS):
            for index in (0, 9, 31):
                image = torch.from_numpy(take_view(cube, view, index).copy())[None]
                scores = explain(model, statistics.intensity.apply(image, 32), [target], resolution="pixel")[0, 0]
                slice_of = take_view(volume.scores[place], view, index)
                np.testing.assert_allclose(slice_of, scores.numpy(), rtol=1e-4, atol=1e-6)
        merged = sitk.ReadImage(str(volume_path(volume_folder(run, 0, "cdam", "b"), target)))
        np.testing.assert_allclose(sitk.GetArrayFromImage(merged), volume.scores.mean(0), rtol=1e-4, atol=1e-7)
        assert merged.GetMetaData("ITK_FileNotes") == f"cdam scores of {target}, raw; research use only"


def test_targets_and_views_can_be_chosen_and_targets_added(run, capsys):
    words = ["explain", "--run", str(run), "--folds", "1", "--upsampling", "area", "--views", "coronal,axial"]
    assert main([*words, "--volume", "--targets", "diameter"]) == 0
    folder = volume_folder(run, 1, "cdam", "c")
    assert sorted(path.name for path in folder.iterdir()) == ["diameter.nii.gz", "diameter.npz"]
    assert read_volume(folder, "diameter").views == ("axial", "coronal")
    before = (folder / "diameter.npz").stat().st_mtime_ns
    assert main([*words, "--volume"]) == 0
    assert "Wrote cdam volumes of 1 nodules" in capsys.readouterr().out
    assert len(list(folder.iterdir())) == 4
    assert (folder / "diameter.npz").stat().st_mtime_ns == before
    assert read_record(run / "fold_1", "explain --volume/cdam")["finished"]
    assert main([*words, "--volume"]) == 0
    assert "All 1 nodules have their volumes" in capsys.readouterr().out
    assert main([*words, "--volume", "--upsampling", "nearest"]) == 1
    assert 'with upsampling = "area", but this call has upsampling = "nearest"' in capsys.readouterr().err


def test_some_targets_of_maps_are_recorded(run):
    explain_run(run, targets=["diameter"])
    assert artifacts.read_maps(artifacts.maps_path(run, 1, "cdam", "c")).targets == ("diameter",)
    with pytest.raises(LidcCdamError, match=r"with targets = \[\"diameter\"\], but this call has targets = null"):
        explain_run(run)


def test_an_interrupted_volume_goes_on_to_the_same_bytes(run, monkeypatch, tmp_path):
    explain_run(run, folds=[0], volume=True, out=tmp_path / "whole")
    original, calls = work.write_volume, []

    def interrupt(folder, target, volume, note):
        calls.append(target)
        if len(calls) == 4:
            raise KeyboardInterrupt
        original(folder, target, volume, note)

    with monkeypatch.context() as patch:
        patch.setattr(work, "write_volume", interrupt)
        with pytest.raises(KeyboardInterrupt):
            explain_run(run, folds=[0], volume=True)
    assert len(contents(run)) == 6
    assert not read_record(run / "fold_0", "explain --volume/cdam")["finished"]
    (volume_folder(run, 0, "cdam", "b") / ".writing-diameter.npz").write_bytes(b"of a killed process")
    explain_run(run, folds=[0], volume=True)
    assert contents(run) == contents(tmp_path / "whole")
    assert len(contents(run)) == 8


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_two_workers_write_the_same_bytes(run, tmp_path):
    explain_run(run, volume=True)
    explain_run(run, volume=True, out=tmp_path / "two", workers=Workers(2))
    assert contents(run) == contents(tmp_path / "two")


@pytest.mark.parametrize(
    ("method", "options", "used"),
    [
        ("smooth_cdam", {"n": 1}, "closed form"),
        ("smooth_cdam", {"n": 1, "perturb": "block_input"}, "autograd"),
        ("random", {}, None),
    ],
)
def test_the_record_says_how_scores_were_computed(run, capsys, method, options, used):
    explain_run(run, method=method, options=options, folds=[1])
    assert read_record(run / "fold_1", f"explain/{method}")["results"].get("method_used") == used
    assert ("were computed" in capsys.readouterr().out) == (used is not None)


def test_maps_do_not_depend_on_where_a_call_stopped(run, tmp_path):
    for method in ("cdam", "smooth_cdam"):
        explain_run(run, method=method, out=tmp_path / "whole", folds=[0])
        artifacts.maps_path(tmp_path, 0, method, "b").parent.mkdir(parents=True)
        explain_run(run, method=method, folds=[0])
        path = artifacts.maps_path(run, 0, method, "b")
        path.unlink()
        explain_run(run, method=method, folds=[0])
        assert path.read_bytes() == artifacts.maps_path(tmp_path / "whole", 0, method, "b").read_bytes()


def test_a_full_disk_leaves_no_half_file(run, monkeypatch):
    write = Path.write_bytes

    def full(path, raw):
        write(path, raw[:50])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left") as caught:
            explain_run(run, volume=True)
    assert caught.value.filename.endswith("volumes/cdam/a/margin.nii.gz")
    assert [path.name for path in contents(run)] == ["margin.npz"]
    assert not list(run.rglob(".writing-*"))


def test_a_crop_that_is_gone_is_a_row(run, capsys):
    shutil.move(crop_files.crop_path(run.parent / "data", "a"), run.parent / "aside.nii.gz")
    explain_run(run, folds=[0], volume=True)
    assert "Could not explain 1 of the nodules" in capsys.readouterr().out
    failed = pd.read_csv(run / "fold_0/volumes/cdam/failed.csv")
    assert failed["nodule_id"].tolist() == ["a"]
    assert "is missing; run `lidc-cdam extract` again" in failed.loc[0, "reason"]
    assert not read_record(run / "fold_0", "explain --volume/cdam")["finished"]
    shutil.move(run.parent / "aside.nii.gz", crop_files.crop_path(run.parent / "data", "a"))
    explain_run(run, folds=[0], volume=True)
    assert "Wrote cdam volumes of 1 nodules (1 were there)" in capsys.readouterr().out
    assert not list(run.rglob("failed.csv"))


@pytest.mark.parametrize("volume", [False, True])
def test_files_of_another_crop_are_refused(run, volume):
    data = run.parent / "data"
    explain_run(run, folds=[1], volume=volume, targets=["margin"] if volume else None)
    crop = crop_files.crop_path(data, "c")
    good = crop.read_bytes()
    write_hu(data, "c", noise(7))
    with pytest.raises(LidcCdamError, match=r"explains another crop of c than .*data holds now; delete .*fold_\*"):
        explain_run(run, folds=[1], volume=volume)
    crop.write_bytes(good[:100])
    explain_run(run, folds=[1], volume=volume, targets=["margin"] if volume else None)  # what is damaged says nothing
    crop.write_bytes(good)
    explain_run(run, folds=[1], volume=volume)


def test_maps_of_older_versions_name_no_crop(run):
    explain_run(run, folds=[1])
    path = artifacts.maps_path(run, 1, "cdam", "c")
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored if name != "crop_sha256"}
    np.savez(path, **arrays)
    explain_run(run, folds=[1])
    assert artifacts.read_maps(path).crop_sha256 == ""


def test_a_model_that_was_replaced_is_not_kept(run, tmp_path):
    write_data(tmp_path / "new", ["x"])
    explain_run(run, data=tmp_path / "new", out=tmp_path / "before", method="cdam")
    shutil.copy(run / "fold_1/model.safetensors", run / "fold_0/model.safetensors")
    explain_run(run, data=tmp_path / "new", out=tmp_path / "after", method="cdam")
    scores = {
        (when, fold): artifacts.read_maps(artifacts.maps_path(tmp_path / when, fold, "cdam", "x")).scores
        for when in ("before", "after")
        for fold in (0, 1)
    }
    assert not np.array_equal(scores["before", 0], scores["after", 0])
    np.testing.assert_array_equal(scores["after", 0], scores["after", 1])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"targets": ["texture"]}, "--targets must be among this run's targets, margin, diameter; got texture"),
        ({"targets": ["marign"]}, "--targets must name at least one of malignancy"),
        ({"targets": []}, "--targets must name at least one of malignancy.*got none"),
        ({"views": ["oblique"]}, r"--views must name views out of axial, coronal, sagittal; got \['oblique'\]"),
        ({"views": []}, "--views must name views out of axial, coronal, sagittal; got none"),
        ({"slices": (14, 15)}, r"--volume explains every slice, so it does not go with --slices \[14, 15\]"),
        ({"volume": False, "upsampling": "area"}, "--upsampling area makes volumes of maps.*add --volume"),
        ({"folds": []}, r"--folds must be among the folds trained in .*; got none"),
    ],
)
def test_bad_settings_write_no_volume(run, options, sentence):
    with pytest.raises(LidcCdamError, match=sentence):
        explain_run(run, **({"volume": True} | options))
    assert not list(run.rglob("volumes"))
