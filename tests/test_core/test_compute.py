import pytest

from lidc_cdam.compute import map_items
from lidc_cdam.errors import LidcCdamError


def square(value: int) -> int:
    return value * value


def test_one_worker_keeps_the_order():
    assert list(map_items(square, [3, 1, 2], "Squaring")) == [9, 1, 4]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_two_workers_give_the_same_results():
    assert sorted(map_items(square, [3, 1, 2], "Squaring", workers=2)) == [1, 4, 9]


@pytest.mark.parametrize(("options", "sentence"), [({"workers": 0}, "--workers"), ({"engine": "pigeon"}, "--engine")])
def test_bad_settings_are_told(options, sentence):
    with pytest.raises(LidcCdamError, match=sentence):
        list(map_items(square, [1], "Squaring", **options))
