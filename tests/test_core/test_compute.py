import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lidc_cdam import compute
from lidc_cdam.compute import Pool, Workers, map_items
from lidc_cdam.errors import LidcCdamError


def square(value: int) -> int:
    return value * value


def deadly(value: int) -> int:
    """Ends its process for one value."""
    if value == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01)
    return value


def refusing(value: int) -> int:
    raise LidcCdamError(f"no {value}")


def surroundings(value: int) -> tuple[dict[str, str | None], bool]:
    """Thread limits, and whether Ctrl-C is left to the parent."""
    threads = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")}
    return threads, signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def hungry(megabytes: int) -> int:
    """Needs memory for a while."""
    held = bytearray(megabytes << 20)
    time.sleep(1.5)
    return len(held) >> 20


def lost(value: int, reason: LidcCdamError) -> str:
    return f"{value}: {reason}"


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(Workers(2)) as started:
        yield started


def test_one_worker_keeps_the_order() -> None:
    assert list(map_items(square, [3, 1, 2], "Squaring")) == [9, 1, 4]


def test_two_workers_give_the_same_results(pool: Pool) -> None:
    assert sorted(map_items(square, range(40), "Squaring", pool)) == sorted(map_items(square, range(40), "Squaring"))


def test_nothing_starts_without_items() -> None:
    with Pool(Workers(64)) as pool:
        assert list(map_items(square, [], "Squaring", pool)) == []
        assert pool._client is None


def test_an_item_that_ends_its_workers_is_lost_alone(pool: Pool) -> None:
    results = set(map_items(deadly, range(70), "Dying", pool, lost))
    (row,) = {one for one in results if isinstance(one, str)}
    assert results - {row} == set(range(70)) - {7}
    assert row.startswith("7: The process that worked on this was ended again and again")
    assert "--engine-options memory=4GiB" in row


@pytest.mark.slow
def test_a_lost_item_without_a_row_is_an_error(pool: Pool) -> None:
    with pytest.raises(LidcCdamError, match="ended again and again"):
        list(map_items(deadly, [7, 8], "Dying", pool))


def test_an_error_stops_the_map(pool: Pool) -> None:
    with pytest.raises(LidcCdamError, match=r"no \d"):
        list(map_items(refusing, range(40), "Refusing", pool))


def test_workers_use_one_thread_and_leave_interrupts_alone(pool: Pool) -> None:
    ((threads, deaf),) = map_items(surroundings, [0], "Looking", pool)
    assert set(threads.values()) == {"1"}
    assert deaf


def test_few_items_are_under_way_at_once(pool: Pool) -> None:
    class Items(list[int]):
        drawn = 0

        def __iter__(self) -> Iterator[int]:
            for item in super().__iter__():
                Items.drawn += 1
                yield item

    results = map_items(square, Items(range(200)), "Squaring", pool)
    ahead = [Items.drawn - done for done, _ in enumerate(results)]
    assert len(ahead) == 200
    most = 200 // (2 * compute.SHARES)
    assert 1 < most < compute.BATCH
    assert max(ahead) <= (2 * compute.AHEAD + 1) * most


def test_scratch_folders_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(Path.cwd().iterdir())
    with Pool(Workers(1, engine_options=("memory=1GiB",))) as pool:
        pool.client()
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
    assert set(Path.cwd().iterdir()) == before


@pytest.mark.slow
def test_a_worker_that_outgrows_its_memory_is_ended() -> None:
    workers = Workers(2, engine_options=("memory=300MiB",))
    assert {str(one)[:3] for one in map_items(hungry, [1, 500, 2], "Eating", workers, lost)} == {"1", "2", "500"}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"workers": 0}, r"--workers must be at least 1; got 0"),
        ({"engine": "pigeon"}, r"--engine must be local, slurm, .* \(tcp://host:8786\); got 'pigeon'"),
        ({"engine_options": ("queue=long",)}, r"NAME of memory for --engine local; got 'queue=long'"),
        ({"engine_options": ("memory=4",)}, r"memory of --engine-options must be a size with its unit.* got '4'"),
        ({"engine_options": ("memory",)}, r"must be NAME=VALUE .* got 'memory'"),
        ({"engine": "tcp://a:1", "engine_options": ("memory=1GiB",)}, r"must be left out for --engine tcp://a:1"),
    ],
)
def test_wrong_settings(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(LidcCdamError, match=sentence):
        Workers(**settings)
