"""`evaluate --claims`: planted maps on known surfaces get the verdicts that they must."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from caused_run import NODULES, TARGETS, VIEWS, causes_of, distance, write_run

from lidc_cdam.artifacts import EXPLAINER_COLUMNS, Maps, maps_path, write_maps
from lidc_cdam.cause_files import causes_path
from lidc_cdam.cli import main
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import read_json
from lidc_cdam.geometry import take_view
from lidc_cdam.metrics.claims_stage import evaluate_claims


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path)


def plant(run: Path, method: str, make: Callable[[str, float], np.ndarray], slices: tuple[int, ...] = (16,)) -> None:
    """Store maps whose tokens are voxels: `make(target, radius)` gives a cube."""
    for index, nodule_id in enumerate(NODULES):
        cubes = {target: make(target, 5.0 + index) for target in TARGETS}
        scores = np.stack(
            [[[take_view(cubes[target], view, 16)] for view in VIEWS] for target in TARGETS],
        ).astype(np.float32)
        write_maps(maps_path(run, index % 2, method, nodule_id), Maps(scores, TARGETS, VIEWS, slices))


def as_the_paper_says(target: str, radius: float) -> np.ndarray:
    away = distance(radius)
    parts = {
        "margin": 1.0 * (np.abs(away) < 2) - 0.5 * (away < -2),
        "spiculation": 1.0 * causes_of(radius)["spiculation"],
        "diameter": 1.0 * (away < 0),
    }
    return parts[target]


def test_maps_as_the_paper_says_hold_and_their_opposites_fail(run: Path) -> None:
    plant(run, "cdam", as_the_paper_says)
    plant(run, "random", lambda target, radius: -as_the_paper_says(target, radius))
    evaluate_claims(run, ["cdam", "random"], 50, 0)
    found = read_json(run / "claims.json")["methods"]
    verdicts = {
        name: {row["verdict"] for row in found[name]["claims"] if row["figure"] != "level_near"} for name in found
    }
    assert verdicts == {"cdam": {"holds"}, "random": {"fails"}}
    near = next(row for row in found["cdam"]["claims"] if row["claim"] == "near zero just outside")
    assert (near["value"], near["verdict"]) == (0, "holds")
    spicules = found["cdam"]["regions"]["spiculation"]
    assert spicules["level_spicules"]["value"] > 2 * spicules["level_near"]["value"] > 0
    assert spicules["share_core"]["value"] == 0


def test_profile_and_correlations_of_planted_maps(run: Path) -> None:
    plant(run, "cdam", as_the_paper_says)
    evaluate_claims(run, ["cdam"], 20, 0)
    found = read_json(run / "claims.json")
    curve = {
        low: entry["value"]
        for low, entry in zip(found["profile_mm"], found["methods"]["cdam"]["profiles"]["margin"], strict=False)
    }
    assert curve[-4] < 0 < curve[-1]
    assert curve[6] == 0
    assert curve[-10] is None
    assert found["methods"]["cdam"]["correlations"]["margin"]["diameter"]["value"] < 0.5
    assert "spiculation" in found["methods"]["cdam"]["correlations"]["margin"]


def test_files_and_words(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--run", str(run), "--methods", "random", "--fidelity-nodules", "0", "--replicates", "20"]
    assert main([*words, "--claims"]) == 0
    told = capsys.readouterr().out
    assert "Claims, maps by random" in told
    assert "positive at the nodule's edge" in told
    assert tuple(pd.read_csv(run / "claims.csv").columns) == EXPLAINER_COLUMNS
    for ending in ("png", "svg"):
        assert (run / "figures" / f"claims.{ending}").stat().st_size > 5000


def test_real_nodules_have_no_spicules_to_ask_for(run: Path) -> None:
    for nodule_id in NODULES:
        causes_path(run.parent / "data", nodule_id).unlink()
    plant(run, "cdam", as_the_paper_says)
    evaluate_claims(run, ["cdam"], 20, 0)
    claims = read_json(run / "claims.json")["methods"]["cdam"]["claims"]
    assert claims
    assert not any("phantoms" in row["claim"] for row in claims)


def test_maps_of_another_slice_say_what_to_do(run: Path) -> None:
    plant(run, "cdam", as_the_paper_says, slices=(20,))
    with pytest.raises(LidcCdamError, match=r"must hold maps of axial, coronal at slice 16; .* --method cdam"):
        evaluate_claims(run, ["cdam"], 20, 0)
