from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from lidc_cdam.artifacts import (
    COHORT_COLUMNS,
    EXPLAINER_COLUMNS,
    Dataset,
    NoduleRecord,
    fold_folder,
    maps_path,
    read_maps,
    write_dataset,
    write_predictions,
)
from lidc_cdam.backbones import build_backbone
from lidc_cdam.cli import main
from lidc_cdam.crop_files import Crop, crop_path, read_crop, write_crop
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain.stage import explain_run
from lidc_cdam.files import read_json
from lidc_cdam.intensity import Intensity, Scaling, Statistics
from lidc_cdam.metrics.faithfulness import fidelity
from lidc_cdam.metrics.localisation import relevance_mass
from lidc_cdam.metrics.measures import (
    FIDELITY,
    LOCALISATION,
    Measurement,
    consensus_masks,
    measure_fidelity,
    measure_localisation,
)
from lidc_cdam.metrics.stage import evaluate
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


def test_every_nodule_method_target_and_metric_has_a_row(run: Path) -> None:
    evaluate(run, fidelity_nodules=1, steps=2, replicates=50)
    table = pd.read_csv(run / "explainers.csv")
    assert tuple(table.columns) == EXPLAINER_COLUMNS
    counts = table.groupby(["method", "target", "metric"]).size().unstack()
    assert set(counts.index) == {(method, target) for method in ("cdam", "random") for target in TARGETS}
    assert (counts[list(LOCALISATION)].to_numpy() == 6).all()
    # One nodule of each fold.
    assert (counts[list(FIDELITY)].to_numpy() == 2).all()
    sampled = table[table["metric"] == "fidelity"].groupby("method")["nodule_id"].agg(set)
    assert sampled["cdam"] == sampled["random"]
    wide = table[table["metric"].str.startswith("fidelity")].pivot_table(
        index=["nodule_id", "method", "target"], columns="metric", values="value"
    )
    np.testing.assert_allclose(wide["fidelity"], wide["fidelity_lif"] - wide["fidelity_mif"], atol=1e-9)
    summary = read_json(run / "explainers.json")
    assert summary["settings"] == {"fidelity_nodules": 1, "steps": 2, "blur_sigma": None, "seed": 0}
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


def test_consensus_is_at_least_half_of_the_readers() -> None:
    counts = np.zeros((32, 32, 32), np.uint8)
    counts[16, 10, :4] = (1, 2, 3, 4)
    crop = Crop(counts.astype(np.int16), counts, (0.0, 0.0, 0.0))
    assert consensus_masks(crop, 4, ["axial"])[0, 10, :5].tolist() == [False, True, True, True, False]
    assert consensus_masks(crop, 3, ["axial"])[0, 10, :5].tolist() == [False, True, True, True, False]


def test_a_view_without_the_nodule_is_left_out_of_the_mean() -> None:
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, :16] = True
    scores = torch.ones(1, 2, 16, 16)
    assert measure_localisation(scores, masks, torch.ones_like(masks))["relevance_mass"].tolist() == [0.5]
    assert np.isnan(measure_localisation(scores, masks & False, torch.ones_like(masks))["relevance_mass"][0])


def test_fidelity_reads_each_targets_own_output_for_its_own_map_and_view() -> None:
    torch.manual_seed(0)
    model = NoduleModel(build_backbone("tiny"), TARGETS).eval()
    torch.nn.init.normal_(model.head.weight)
    images, scores = torch.randn(3, 3, 32, 32), torch.randn(2, 3, 16, 16)
    found = measure_fidelity(model, images, scores, Measurement(None, 3, None, 0), batch_size=5)
    for target in (0, 1):
        alone = [fidelity(model, images[view, None], scores[target, view, None], target, 3).area for view in range(3)]
        assert found["fidelity"][target] == pytest.approx(np.mean(alone), rel=1e-4)


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
    failed = pd.read_csv(fold_folder(run, 0) / "evaluation" / "failed_random.csv")
    assert failed["reason"].str.contains("at slice 16, but it holds .* run `lidc-cdam explain` again").all()


def test_a_rerun_does_nothing_and_another_method_joins(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(run, ["random"], fidelity_nodules=0, replicates=5)
    part = fold_folder(run, 0) / "evaluation" / "random.csv"
    before = part.stat().st_mtime_ns
    capsys.readouterr()
    evaluate(run, "random", fidelity_nodules=0, replicates=5)
    assert "All maps were measured before (random)" in capsys.readouterr().out
    assert part.stat().st_mtime_ns == before
    evaluate(run, "centre", fidelity_nodules=0, replicates=5)
    assert set(pd.read_csv(run / "explainers.csv")["method"]) == {"random", "centre"}


def test_an_interrupted_evaluation_goes_on(run: Path) -> None:
    evaluate(run, "random", fidelity_nodules=1, steps=2, replicates=5)
    whole = pd.read_csv(run / "explainers.csv")
    part = fold_folder(run, 1) / "evaluation" / "random.csv"
    pd.read_csv(part).query("nodule_id != @NODULES[3]").to_csv(part, index=False)
    (fold_folder(run, 0) / "evaluation" / "random.csv").unlink()
    evaluate(run, "random", fidelity_nodules=1, steps=2, replicates=5)
    order = ["nodule_id", "target", "metric"]
    again = pd.read_csv(run / "explainers.csv")
    pd.testing.assert_frame_equal(*(each.sort_values(order, ignore_index=True) for each in (whole, again)))


def test_an_interrupt_keeps_what_is_measured(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explain_run(run, method="random")
    seen = []

    def interrupt(data: Path, nodule_id: str) -> Crop:
        seen.append(nodule_id)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return read_crop(data, nodule_id)

    monkeypatch.setattr("lidc_cdam.metrics.stage.read_crop", interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, "random", fidelity_nodules=0, replicates=5)
    part = pd.read_csv(fold_folder(run, 0) / "evaluation" / "random.csv")
    assert part["nodule_id"].unique().tolist() == seen[:2]
    evaluate(run, "random", fidelity_nodules=0, replicates=5)
    # The third is measured again, the first two are not.
    assert seen[3:] == [seen[2], *NODULES[1::2]]


def test_other_settings_are_refused(run: Path) -> None:
    evaluate(run, "random", fidelity_nodules=0, replicates=5)
    with pytest.raises(LidcCdamError, match=r"fidelity_nodules = 0, but this call has fidelity_nodules = 1; .* delete"):
        evaluate(run, "random", fidelity_nodules=1, replicates=5)


def test_a_damaged_crop_or_map_is_a_row_and_the_others_go_on(run: Path, data: Path) -> None:
    evaluate(run, "random", fidelity_nodules=0, replicates=5)
    for path in run.glob("fold_*/evaluation/*"):
        path.unlink()
    crop_path(data, NODULES[0]).write_bytes(b"damaged")
    maps_path(run, 1, "random", NODULES[1]).write_bytes(b"damaged")
    evaluate(run, "random", fidelity_nodules=0, replicates=5)
    assert set(pd.read_csv(run / "explainers.csv")["nodule_id"]) == set(NODULES[2:])
    for fold, name in ((0, "crops"), (1, "NPZ")):
        failed = pd.read_csv(fold_folder(run, fold) / "evaluation" / "failed_random.csv")
        assert failed["nodule_id"].tolist() == [NODULES[fold]]
        assert name in failed["reason"][0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"methods": "cdam,cdma"}, r"--methods must name at least one of .*; got 'cdma'\."),
        ({"methods": ""}, r"--methods must name at least one of .*; got none\."),
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


def test_only_what_was_read_counts_for_localisation() -> None:
    masks = torch.zeros(1, 32, 32, dtype=torch.bool)
    masks[0, 12:20, 12:20] = True
    read = torch.zeros_like(masks)
    read[0, 8:24, 8:24] = True
    scores = torch.ones(1, 1, 16, 16)
    found = measure_localisation(scores, masks, read)
    assert found["relevance_mass"].tolist() == found["relevance_mass_chance"].tolist() == [0.25]
    assert found["relevance_rank"].tolist() == found["pointing_game"].tolist() == [0.25]
