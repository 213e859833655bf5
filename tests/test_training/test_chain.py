"""The chain from crops to reports by the command line, undisturbed and with a fault in the middle of each step."""

import errno
import shutil
from pathlib import Path

import pytest

from lidc_cdam.cli import main
from lidc_cdam.files import unfinished

FAULTS = {
    "full disk": (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    "Ctrl-C": (KeyboardInterrupt(), "interrupted; what is finished is kept"),
}
FEW_TREES = ["--trees", "5"]
STEPS = ("crossval", "explain", "evaluate", "report")


def words(step: str, data: Path, root: Path) -> list[str]:
    """A step's command line."""
    run = root / "run"
    options = {
        "crossval": ["--data", data, "--out", run, "--targets", "malignancy,diameter", "--epochs", "1", *FEW_TREES],
        "explain": ["--run", run],
        "evaluate": ["--run", run, "--fidelity-nodules", "1", "--steps", "2", "--replicates", "20"],
        "report": ["--run", run, "--out", root / "report"],
    }
    return [step, *map(str, options[step])]


def leftovers(root: Path) -> list[Path]:
    """Files that a broken write left behind."""
    return [path for path in root.rglob("*") if path.name.startswith(".writing-")]


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed chain."""
    root = tmp_path_factory.mktemp("chain")
    for step in STEPS:
        assert main(words(step, data, root)) == 0
    return root


def test_the_chain_ends_with_a_report_of_every_nodule(finished: Path) -> None:
    pages = {path.name for path in (finished / "report").iterdir()}
    assert "index.html" in pages
    assert sum(name.endswith(".pdf") and name != "run.pdf" for name in pages) == 24
    assert not leftovers(finished)


@pytest.mark.parametrize("step", STEPS)
def test_a_finished_step_does_nothing(
    step: str, data: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.n*z") if path.is_file()}
    assert main(words(step, data, finished)) == 0
    assert capsys.readouterr().err == ""
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("step", "write"), [("crossval", 6), ("explain", 6), ("evaluate", 4), ("report", 6)])
def test_a_fault_is_one_sentence_and_a_rerun_goes_on(
    step: str,
    write: int,
    fault: str,
    data: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    earlier = STEPS[: STEPS.index(step)]
    if earlier:
        shutil.copytree(finished / "run", tmp_path / "run")
    undo = {"explain": "fold_*/maps", "evaluate": "fold_*/evaluation"}
    for folder in (tmp_path / "run").glob(undo.get(step, "none")):
        shutil.rmtree(folder)
    error, sentence = FAULTS[fault]
    calls = 0

    def faulty(path: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == write:
            raise error
        return unfinished(path)

    with monkeypatch.context() as patch:
        patch.setattr("lidc_cdam.files.unfinished", faulty)
        assert main(words(step, data, tmp_path)) == 1
    shown = capsys.readouterr().err
    assert sentence in shown
    assert "Traceback" not in shown
    assert shown.count("\n") == 1
    assert not leftovers(tmp_path)
    assert main(words(step, data, tmp_path)) == 0
    for path in (finished / "run").rglob("maps/cdam/*.npz"):
        again = tmp_path / path.relative_to(finished)
        if step in ("explain", "evaluate"):
            assert again.read_bytes() == path.read_bytes()
