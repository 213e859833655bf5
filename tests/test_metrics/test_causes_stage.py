"""`evaluate --phantom`: planted models and maps get what they deserve; files, restarts and refusals."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from caused_run import NODULES, TARGETS, VIEWS, write_run

from lidc_cdam.artifacts import EXPLAINER_COLUMNS
from lidc_cdam.cause_files import causes_path
from lidc_cdam.channels import SLICE
from lidc_cdam.cli import main
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import read_json
from lidc_cdam.intensity import Intensity, Scaling, Statistics
from lidc_cdam.metrics import causes_stage
from lidc_cdam.metrics.causes_stage import Judge, effects, evaluate_causes, figures, read_known
from lidc_cdam.model import NoduleModel


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path)


class Linear(NoduleModel):
    """A model whose outputs are weighted sums of the image, so that weight x pixel is its perfect map.

    Margin falls with brightness, spiculation and diameter rise with it.
    """

    targets = TARGETS
    image_size = (32, 32)

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.weight = torch.nn.Parameter(torch.tensor([-0.05, 0.05, 0.05]))

    def parts(self, images: torch.Tensor) -> torch.Tensor:
        # From the darkest that the window has, so that air adds nothing.
        return self.weight[:, None, None] * (images[:, :1] + 1.0)

    def forward(self, images: torch.Tensor, features: None = None) -> torch.Tensor:
        return self.parts(images).sum((-2, -1))


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    model = Linear()
    statistics = Statistics(Intensity(0.3, 0.3), Scaling(TARGETS, (0.0,) * 3, (1.0,) * 3))
    generator = torch.Generator().manual_seed(0)

    def planted(model: Linear, images: torch.Tensor, targets: list[str], method: str, resolution: str) -> torch.Tensor:
        assert resolution == "native"
        maps = model.parts(images)[:, [TARGETS.index(target) for target in targets]].detach()
        return maps if method == "perfect" else torch.rand(maps.shape, generator=generator) * 2 - 1

    monkeypatch.setattr(causes_stage, "explain", planted)
    return Judge(model, statistics, VIEWS, SLICE, 7)


def rows_of(judge: Judge, data: Path, method: str) -> pd.DataFrame:
    known = {key: read_known(data, key, judge.keys) for key in NODULES}
    rows = []
    for key in NODULES:
        changes = {
            str(row["target"]): float(row["value"])
            for row in effects(judge, known[key])
            if row["metric"] == f"effect_of_{row['target']}"
        }
        rows += [{"nodule_id": key, **row} for row in figures(judge, known[key], method, changes)]
    return pd.DataFrame(rows).pivot(index=["nodule_id", "target"], columns="metric", values="value")


def test_a_perfect_map_agrees_with_every_effect(judge: Judge, run: Path) -> None:
    found = rows_of(judge, run.parent / "data", "perfect")
    assert (found[["sign_with_cause", "sign_of_change"]] == 1).all(axis=None)
    # Margin's output falls with its cause, the others rise.
    assert (found["output_change"].unstack() > 0).all().to_dict() == {
        "diameter": True,
        "margin": False,
        "spiculation": True,
    }
    moved = found["region_most"] - found["region_least"]
    np.testing.assert_allclose(moved, found["output_change"], rtol=1e-3)
    assert (found["cause_in_nodule"].unstack()["diameter"] > 1).all()
    sizes = found["size_correlation"].unstack()
    assert (sizes["spiculation"] > 0.999).all()
    assert (sizes["margin"] < -0.999).all()
    assert sizes["diameter"].isna().all()


def test_a_random_map_agrees_with_effects_by_chance(judge: Judge, run: Path) -> None:
    rounds = [rows_of(judge, run.parent / "data", "random") for _ in range(8)]
    found = pd.concat(rounds)
    assert found["sign_of_change"].mean() == pytest.approx(0.5, abs=0.17)
    assert found["cause_mass"].mean() == pytest.approx(found["cause_share"].mean(), rel=0.05)
    assert abs(found["size_correlation"].mean()) < 0.02


def test_effects_are_those_of_the_outputs(judge: Judge, run: Path) -> None:
    known = read_known(run.parent / "data", NODULES[0], judge.keys)
    found = {(row["target"], row["metric"]): row["value"] for row in effects(judge, known)}
    assert set(found) == {(target, f"effect_of_{changed}") for target in TARGETS for changed in TARGETS}
    for changed in TARGETS:
        assert found["margin", f"effect_of_{changed}"] == pytest.approx(-found["diameter", f"effect_of_{changed}"])
        assert found["diameter", f"effect_of_{changed}"] > 0


def test_every_file_is_written_and_a_second_call_measures_nothing(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--run", str(run), "--methods", "cdam,random", "--fidelity-nodules", "0", "--replicates", "20"]
    assert main([*words, "--phantom"]) == 0
    told = capsys.readouterr().out
    assert "most moved other" in told
    assert "Measured 12 sets of maps against known causes" in told
    table = pd.read_csv(run / "causes.csv")
    assert tuple(table.columns) == EXPLAINER_COLUMNS
    assert set(table["method"]) == {"model", "cdam", "random"}
    assert (table.groupby(["method", "nodule_id"]).size().unstack().notna()).all(axis=None)
    found = read_json(run / "causes.json")
    assert (found["phantoms"], found["patients"]) == (4, 4)
    assert set(found["methods"]["cdam"]) == set(TARGETS)
    entry = found["methods"]["cdam"]["margin"]["cause_mass"]
    assert entry["low"] <= entry["value"] <= entry["high"]
    assert entry["phantoms"] == 4
    for ending in ("png", "svg"):
        assert (run / "figures" / f"causes.{ending}").stat().st_size > 5000
    before = (run / "causes.csv").read_bytes()
    assert main([*words, "--phantom"]) == 0
    assert "Measured 0 sets" in capsys.readouterr().out
    assert (run / "causes.csv").read_bytes() == before


def test_a_choice_of_phantoms_grows_and_joins(run: Path) -> None:
    evaluate_causes(run, ["random"], 1, 10, 0, 16)
    assert pd.read_csv(run / "causes.csv")["nodule_id"].nunique() == 2
    evaluate_causes(run, ["random", "centre"], None, 10, 0, 16)
    table = pd.read_csv(run / "causes.csv")
    assert (table.groupby("method")["nodule_id"].nunique() == 4).all()
    assert not table.duplicated(["nodule_id", "method", "target", "metric"]).any()


def test_figures_do_not_depend_on_the_batch(run: Path) -> None:
    evaluate_causes(run, ["cdam"], 1, 10, 0, 3)
    one = pd.read_csv(run / "causes.csv")
    for path in run.glob("fold_*/causes/*"):
        path.unlink()
    evaluate_causes(run, ["cdam"], 1, 10, 0, 64)
    other = pd.read_csv(run / "causes.csv")
    np.testing.assert_allclose(one["value"], other["value"], atol=1e-4, equal_nan=True)


def test_real_nodules_have_no_causes(run: Path) -> None:
    for nodule_id in NODULES:
        causes_path(run.parent / "data", nodule_id).unlink()
    with pytest.raises(LidcCdamError, match=r"needs phantoms with known causes, .* run `lidc-cdam causes --data .*`"):
        evaluate_causes(run, ["random"], None, 10, 0, 16)


def test_a_run_that_is_shown_outlines_is_refused(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "mask_channel": True}))
    with pytest.raises(LidcCdamError, match=r"--phantom .* has a mask channel; train one without --mask-channel"):
        evaluate_causes(run, ["random"], None, 10, 0, 16)
