import errno
import multiprocessing

import pytest

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import held, read_json, replacing, unfinished, write_json


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "table.nii.gz"
    with replacing(path) as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "cohort.csv"
    path.write_text("old")
    with pytest.raises(type(error)), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, replacing(tmp_path / "a.csv"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a.csv")


def test_json_without_nan(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"value": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_unreadable_json_is_told_in_a_sentence(tmp_path):
    with pytest.raises(LidcCdamError, match=r"is missing; run the step"):
        read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(LidcCdamError, match=r"must be JSON"):
        read_json(tmp_path / "bad.json")


def test_what_a_killed_write_left_goes_with_the_next(tmp_path):
    path = tmp_path / "cohort.csv"
    unfinished(path).write_text("half")
    with replacing(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_held_by_one_at_a_time_and_nothing_is_left(tmp_path):
    with held(tmp_path) as mine, held(tmp_path) as other, held(tmp_path, name=".claim") as another:
        assert (mine, other, another) == (True, False, True)
    with held(tmp_path) as mine:
        assert mine
    assert not list(tmp_path.iterdir())


def count_up(path):
    for _ in range(50):
        with held(path.parent, wait=True):
            path.write_text(str(int(path.read_text()) + 1))


def test_processes_that_wait_for_a_folder_take_turns(tmp_path):
    path = tmp_path / "number"
    path.write_text("0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=count_up, args=(path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert path.read_text() == "200"
