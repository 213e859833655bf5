"""Cubes of another size than the paper's go through every later step, and are not mixed with them."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from test_training.conftest import make_data

from lidc_cdam import artifacts, crop_files
from lidc_cdam.cli import main
from lidc_cdam.files import read_json
from lidc_cdam.geometry import Grid

GRID = Grid(24, 0.7)


def call(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on small cubes, with maps, figures and reports."""
    folder = tmp_path_factory.mktemp("grids")
    make_data(folder / "data", 12, grid=GRID)
    options = ("--targets", "diameter", "--epochs", 1)
    assert call("crossval", "--data", folder / "data", "--out", folder / "run", *options) == 0
    assert call("explain", "--run", folder / "run") == 0
    options = ("--fidelity-nodules", 1, "--steps", 2, "--replicates", 20)
    assert call("evaluate", "--run", folder / "run", *options) == 0
    assert call("report", "--run", folder / "run", "--out", folder / "report", "--nodules", "SYN-000_n01") == 0
    return folder


def test_every_step_follows_the_grid(root: Path) -> None:
    assert read_json(root / "run" / "fold_0" / "statistics.json")["grid"] == {"side": 24, "spacing_mm": 0.7}
    maps = artifacts.read_maps(next((root / "run").glob("fold_0/maps/cdam/*.npz")))
    assert maps.slices == (12,)
    table = pd.read_csv(root / "run" / artifacts.EXPLAINERS)
    chance = table[(table["method"] == "cdam") & (table["metric"] == "relevance_mass_chance")]
    assert set(chance["nodule_id"]) == set(artifacts.read_dataset(root / "data").nodules)
    # The central slice of a body of 3 to 9 mm radius in a plane of 16.8 mm.
    assert chance["value"].between(0.08, 0.9).all()
    page = (root / "report" / "SYN-000_n01.html").read_text()
    assert "16.8 mm cube at 0.7 mm" in page


def test_a_consensus_of_more_readers_is_what_maps_are_measured_against(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "run", tmp_path / "run")
    shutil.copytree(root / "data", tmp_path / "data")
    for folder in (tmp_path / "run").glob("fold_*/evaluation"):
        shutil.rmtree(folder)
    config = tmp_path / "run" / artifacts.CONFIG
    config.write_text(config.read_text().replace(str(root / "data"), str(tmp_path / "data")))
    dataset = read_json(tmp_path / "data" / artifacts.DATASET)
    dataset["parameters"]["consensus_level"] = 1.0
    artifacts.write_dataset(
        tmp_path / "data",
        artifacts.Dataset(dataset["parameters"], artifacts.read_dataset(root / "data").nodules),
    )
    for name in artifacts.read_dataset(root / "data").nodules:
        crop = crop_files.read_crop(root / "data", name)
        crop.readers[:, :, :12] = (crop.readers[:, :, :12] > 0) * 3
        crop_files.write_crop(tmp_path / "data", name, crop)
    assert call("evaluate", "--run", tmp_path / "run", "--fidelity-nodules", 0, "--replicates", 20) == 0
    before, after = (
        pd.read_csv(folder / "run" / artifacts.EXPLAINERS).query("metric == 'relevance_mass_chance'")["value"].mean()
        for folder in (root, tmp_path)
    )
    assert after < 0.7 * before


def test_slices_are_those_of_the_grid(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("explain", "--run", root / "run", "--slices", "24") == 1
    assert "--slices must be at least one index from 0 to 23; got [24]" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["predict", "explain"])
def test_a_model_refuses_cubes_of_another_grid(
    command: str, root: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(command, "--run", root / "run", "--data", data, "--out", tmp_path / "out") == 1
    shown = capsys.readouterr().err
    assert "must have 24 voxels of 0.7 mm a side, as those that the model was trained on" in shown
    assert "with --side 24 --spacing-mm 0.7." in shown
    assert not (tmp_path / "out").is_file()
