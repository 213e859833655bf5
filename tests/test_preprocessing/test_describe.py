"""The flow of a cohort: its numbers, its words, its figure."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from lidc_cdam import artifacts, cli
from preprocessing import cohort as stage
from preprocessing.annotations import load_scans
from preprocessing.describe import FIGURES, draw
from preprocessing.flow import Flow, flow_lines, flow_of
from preprocessing.selection import Selection, read_preset


@pytest.fixture(scope="module")
def flow(cohorts: dict[str, Path]) -> Flow:
    return read_flow(cohorts["paper"])


def read_flow(data: Path, selection: Selection | None = None) -> Flow:
    excluded = artifacts.read_table(data / artifacts.EXCLUDED, artifacts.EXCLUDED_COLUMNS, "cohort")
    return flow_of(artifacts.read_cohort(data), excluded, load_scans(), selection or read_preset("paper")[1])


def test_the_papers_flow(flow: Flow) -> None:
    assert (flow.scans, flow.patients, flow.outlined_scans, flow.readings) == (1018, 1010, 883, 6859)
    assert str(flow.outlined) == "2651 nodules of 875 patients"
    assert [(step.title, step.nodules, step.left.nodules) for step in flow.steps] == [
        ("number of readings", 1273, 1378),
        ("series named in the preset", 9, 1369),
        ("second scan", 12, 1357),
        ("place in the scan", 2, 1355),
    ]
    assert flow.steps[-1].left == flow.chosen
    assert {label: tally.nodules for label, tally in flow.labels.items()} == {
        "benign (median below 3)": 442,
        "indeterminate (median 3)": 501,
        "malignant (median above 3)": 412,
    }


def test_the_lines_tell_each_exclusion_with_its_count(flow: Flow) -> None:
    lines = flow_lines(flow)
    assert "6859 readings, grouped by pylidc's rule into 2651 nodules of 875 patients" in lines
    assert "    1259  fewer than 3 readers" in lines
    assert "- 12 on the patient's second scan; 1357 nodules of 683 patients left" in lines
    assert lines[-1] == "     412  malignant (median above 3), 308 patients"


def test_other_rules_are_told(cohorts) -> None:
    flow = read_flow(cohorts["paper"], Selection(clustering="mm", crowded="split", label_rule="mean"))
    assert (flow.clustering, flow.crowded) == (
        "pylidc's rule with distances in mm",
        "clusters of more than 4 readings divided",
    )
    assert next(iter(flow.labels)) == "benign (mean below 3)"


def test_the_figure_holds_its_numbers_inside_its_page_and_is_the_same_each_time(flow: Flow, tmp_path: Path) -> None:
    draw(flow, tmp_path)
    first = [(tmp_path / name).read_bytes() for name in FIGURES]
    draw(flow, tmp_path)
    assert [(tmp_path / name).read_bytes() for name in FIGURES] == first
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FIGURES)
    # matplotlib writes each text as a comment beside its letters' outlines.
    texts = re.findall(r"<!-- (.*) -->", first[0].decode())
    for text in ("1018 CT scans of 1010 patients", "Left out: 12 nodules (on the patient's second scan)", "Chosen"):
        assert text in texts
    with Image.open(tmp_path / "flow.png") as image:
        assert image.width == 2160
        border = image.convert("L").load()
        edges = [(x, y) for x in range(image.width) for y in (0, image.height - 1)]
        edges += [(x, y) for x in (0, image.width - 1) for y in range(image.height)]
        assert min(border[place] for place in edges) == 255


def test_a_figure_without_exclusions(flow: Flow, tmp_path: Path) -> None:
    bare = Flow(**{**vars(flow), "steps": ()})
    draw(bare, tmp_path)
    assert (tmp_path / "flow.png").stat().st_size > 10_000


def test_describe_on_a_finished_and_on_a_fresh_cohort(
    cohorts, tmp_path: Path, every_nodule, monkeypatch, capsys
) -> None:
    data = shutil.copytree(cohorts["paper"], tmp_path / "finished")
    assert cli.main(["cohort", "--out", str(data), "--describe"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"The cohort in {data} is finished; nothing to do.\nFlow of {data} (preset paper, rules ")
    assert "patients with several of them: 330; most in one patient: 12" in said
    assert said.endswith(f"Drawn in {data}: flow.svg, flow.png.\n")
    few = [nodule for nodule in every_nodule if nodule.scan.patient_id in ("LIDC-IDRI-0001", "LIDC-IDRI-0003")]
    monkeypatch.setattr(stage, "load_nodules", lambda **_: few)
    fresh = tmp_path / "fresh"
    assert cli.main(["cohort", "--describe", "--out", str(fresh)]) == 0
    said = capsys.readouterr().out
    assert "Preset all: " in said
    assert "4 nodules of 2 patients chosen" in said
    assert all((fresh / name).is_file() for name in FIGURES)


def test_a_damaged_table_is_one_sentence(cohorts, tmp_path: Path, capsys) -> None:
    data = shutil.copytree(cohorts["all"], tmp_path / "data")
    pd.DataFrame({"nodule_id": ["a"]}).to_csv(data / artifacts.EXCLUDED, index=False)
    assert cli.main(["cohort", "--out", str(data), "--describe"]) == 1
    said = capsys.readouterr()
    assert "excluded.csv must have the columns" in said.err
    assert said.err.count("\n") == 1
    assert not (data / FIGURES[0]).exists()


def test_a_cohort_of_nothing_is_described(tmp_path: Path, every_nodule, monkeypatch, capsys) -> None:
    preset = tmp_path / "none.yaml"
    preset.write_text("max_slice_thickness_mm: 0.1")
    monkeypatch.setattr(stage, "load_nodules", lambda **_: every_nodule[:5])
    assert cli.main(["cohort", "--preset", str(preset), "--out", str(tmp_path / "data"), "--describe"]) == 0
    assert "= 0 nodules of 0 patients chosen" in capsys.readouterr().out
