"""The demo: its steps are commands that exist, with options that they have, in an order that works."""

import importlib
from pathlib import Path

import pytest
import yaml

from lidc_cdam import demo as demo_module
from lidc_cdam.artifacts import read_dataset
from lidc_cdam.cli import COMMANDS, command_parser, main
from lidc_cdam.configuration import bundled
from lidc_cdam.demo import NOTE, RUNS, demo, steps
from lidc_cdam.provenance import sha256
from lidc_cdam.quality import SYNTHETIC

CHAIN = (
    ["phantom", "cohort", "extract", "extract", "causes", "split"]
    + 2 * ["crossval", "explain", "explain", "evaluate"]
    + ["report"]
)


def test_steps_are_the_whole_chain_in_order(tmp_path: Path) -> None:
    assert [step.command for step in steps(tmp_path, 2, 96, 3, 0)] == CHAIN


@pytest.mark.parametrize("index", range(len(CHAIN)))
def test_a_step_is_what_its_command_understands(tmp_path: Path, index: int) -> None:
    step = steps(tmp_path, 2, 96, 3, 0)[index]
    module, name = COMMANDS[step.command].function.split(":")
    parser = command_parser(step.command, getattr(importlib.import_module(module), name))
    words = [word.replace("-", "_").replace("__", "--") if word.startswith("--") else word for word in step.words]
    values = parser.parse_args(words)
    if step.command == "crossval":
        assert (values.backbone, values.seed) == ("tiny", 0)


def test_everything_is_written_below_the_demo_s_folder(tmp_path: Path) -> None:
    for step in steps(tmp_path, 2, 96, 3, 0):
        values = dict(zip(step.words[::2], step.words[1::2], strict=True))
        for name in ("--out", "--data", "--dicom", "--pack", "--run", "--also-run"):
            assert Path(values.get(name, tmp_path)).is_relative_to(tmp_path), (step, name)


@pytest.mark.parametrize("name", RUNS)
def test_configs_begin_with_their_command(name: str) -> None:
    text = bundled("demo", f"{name}_tiny").read_text(encoding="utf-8")
    assert "lidc-cdam crossval --config" in text.split("\n\n")[0]
    values = yaml.safe_load(text)
    assert (values["targets"], values["backbone"]) == (name, "tiny")


def test_each_command_is_told_before_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(demo_module, "run_command", lambda command, words: ran.append(command))
    demo(tmp_path)
    told = capsys.readouterr().out
    assert ran == CHAIN
    assert [line.split()[2] for line in told.splitlines() if line.startswith("$ lidc-cdam")] == CHAIN
    assert told.count(NOTE) == 2
    assert told.rstrip().endswith("report/index.html")


def contents(folder: Path) -> dict[Path, str]:
    return {path: sha256(path) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_the_whole_demo(tmp_path: Path) -> None:
    words = ["demo", "--out", str(tmp_path), "--scans", "1", "--nodules", "40"]
    assert main(words) == 0
    report = tmp_path / "report"
    assert (report / "index.html").is_file()
    assert len(list(report.glob("*.pdf"))) == len(read_dataset(tmp_path / "data").nodules)
    assert all(SYNTHETIC in record.flags for record in read_dataset(tmp_path / "data").nodules.values())
    before = contents(tmp_path)
    assert main(words) == 0
    assert contents(tmp_path) == before
