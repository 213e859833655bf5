import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lidc_cdam.backbones import BACKBONES
from lidc_cdam.compute import Workers
from lidc_cdam.errors import LidcCdamError
from training import fit, folds
from training.crossval import crossval
from training.folds import FoldTask, child_environment, own_gpus, train_in_child
from training.settings import TrainingSettings

SETTINGS = TrainingSettings(targets="joint", epochs=1, batch_size=8, views=["axial"], dropout=0.1)
FILES = ("model.safetensors", "model.json", "statistics.json", "history.csv", "predictions.csv", "validation.csv")
PLAIN = BACKBONES["tiny"]
SIDE_BY_SIDE = Workers(2)
ROOT = Path(folds.__file__).parents[1]


@pytest.fixture
def plain_backbone(monkeypatch):
    """`tiny` as the folds' own processes know it."""
    monkeypatch.setitem(BACKBONES, "tiny", PLAIN)


@pytest.fixture
def one_thread():
    """Sums depend on the number of threads in their last digit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("plain_backbone", "one_thread")
def test_folds_side_by_side_are_those_of_one_after_another(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folds, "cores", lambda: 2)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    crossval(data, tmp_path / "beside", SETTINGS, trees=0, workers=SIDE_BY_SIDE)
    assert capsys.readouterr().out.count("is best on validation") == 2
    crossval(data, tmp_path / "after", SETTINGS, trees=0)
    for index in (0, 1):
        beside, after = (tmp_path / name / f"fold_{index}" for name in ("beside", "after"))
        assert all((beside / name).read_bytes() == (after / name).read_bytes() for name in FILES)
        assert (beside / "train.log").read_text().startswith(f"Fold {index}: epoch 0 of 1 is best")
        assert {path.name for path in beside.iterdir()} == {*FILES, "provenance.json", "train.log"}
    for name in ("predictions.csv", "summary.json"):
        assert (tmp_path / "beside" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()
    crossval(data, tmp_path / "beside", SETTINGS, trees=0, workers=SIDE_BY_SIDE)
    assert capsys.readouterr().out.endswith(
        f"All 2 folds are finished already: {tmp_path / 'beside' / 'summary.json'}.\n"
    )


def fake_fold(monkeypatch, program):
    """Let a fold's process run `program` instead."""
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **more: start([sys.executable, "-c", program], **more))


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("pass", ""),
        ("import sys; print('first'); sys.exit('lidc-cdam train: Fold 1 is empty.')", "Fold 1 is empty."),
        ("import sys; sys.exit(1)", "it said nothing"),
        ("import os; os.kill(os.getpid(), 9)", "its process ended with status -9: it said nothing"),
    ],
)
def test_a_folds_end_is_told_by_its_log(tmp_path, monkeypatch, program, reason):
    fake_fold(monkeypatch, program)
    assert train_in_child(FoldTask(1, (), str(tmp_path), 1)).reason == reason


def test_one_failed_fold_leaves_the_others_and_is_named(data, tmp_path, monkeypatch, capsys):
    crossval(data, tmp_path / "run", SETTINGS, folds=[0], trees=0)
    (tmp_path / "run" / "summary.json").unlink()

    def beside(function, items, *_):
        assert [task.index for task in items] == [1]
        return iter([folds.FoldEnd(1, "Fold 1 is empty.")])

    monkeypatch.setattr(folds, "map_items", beside)
    with pytest.raises(LidcCdamError, match=r"Fold 1 failed: Fold 1 is empty\. Its log is .*fold_1/train.log\."):
        crossval(data, tmp_path / "run", SETTINGS, trees=0, workers=SIDE_BY_SIDE)
    assert "kept from before" in capsys.readouterr().out
    assert (tmp_path / "run" / "fold_0" / "predictions.csv").exists()


def test_a_folds_process_has_its_share_of_threads_and_no_batch_system():
    around = {"SLURM_NTASKS": "4", "SLURM_CPUS_PER_TASK": "6", "OMP_NUM_THREADS": "1", "HOME": "/home"}
    own = child_environment(around, 3, "1")
    assert not [name for name in own if name.startswith("SLURM")]
    assert (own["OMP_NUM_THREADS"], own["CUDA_VISIBLE_DEVICES"], own["HOME"]) == ("3", "1", "/home")
    assert child_environment(around, None, None)["OMP_NUM_THREADS"] == "6"
    assert child_environment({}, None, None)["OMP_NUM_THREADS"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in child_environment({}, None, None)


def test_folds_of_one_machine_take_different_gpus(tmp_path, monkeypatch):
    with own_gpus(tmp_path) as gpu:
        assert gpu is None
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with own_gpus(tmp_path) as first, own_gpus(tmp_path) as second, own_gpus(tmp_path) as third:
        assert (first, second, third) == ("3", "5", None)
    with own_gpus(tmp_path) as again:
        assert again == "3"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
    with own_gpus(tmp_path, 2) as first, own_gpus(tmp_path, 2) as second, own_gpus(tmp_path, 2) as third:
        assert (first, second, third) == ("0,1", "2,3", None)
        with own_gpus(tmp_path) as left:
            assert left == "4"


def test_a_folds_process_ends_with_the_one_that_started_it(tmp_path):
    program = "from training import child; child.main = lambda: __import__('time').sleep(60)"
    program = f"{program}; child._end_with_parent()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, cwd=ROOT) as process:
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(timeout=30) == 1


def test_two_commands_on_one_fold_take_turns(data, tmp_path, monkeypatch):
    program = "import sys, pathlib; from lidc_cdam.files import held; lock = held(pathlib.Path(sys.argv[1]))"
    program = f"{program}; lock.__enter__(); print('held', flush=True); sys.stdin.read(); lock.__exit__(*3 * [None])"
    words = [sys.executable, "-c", program, str(tmp_path / "run" / "fold_0")]
    told = []
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout.readline() == b"held\n"

        def say(sentence):
            told.append(sentence)
            process.stdin.close()

        monkeypatch.setattr("lidc_cdam.files.say", say)
        fit.train(data, tmp_path / "run", SETTINGS)
        assert process.wait() == 0
    assert told == [f"Another process trains fold 0 of {tmp_path / 'run'}; waiting for it."]
