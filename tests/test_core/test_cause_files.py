from pathlib import Path

import numpy as np
import pytest

from lidc_cdam.cause_files import (
    Counterfactuals,
    causes_path,
    counterfactuals_path,
    has_causes,
    read_causes,
    read_counterfactuals,
    write_causes,
    write_counterfactuals,
)
from lidc_cdam.crop_files import PADDING_HU, Crop, write_crop
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.map_files import crop_digest
from lidc_cdam.vocabulary import BIOMARKERS

KEYS = [biomarker.key for biomarker in BIOMARKERS]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    hu = np.random.default_rng(0).integers(-900, 100, (8, 8, 8)).astype(np.int16)
    write_crop(tmp_path, "a", Crop(hu, np.zeros(hu.shape, np.uint8), (0.0, 0.0, 0.0)))
    return tmp_path


def counterfactuals(data: Path, count: int = 2) -> Counterfactuals:
    added = np.zeros((count, 8, 8, 8), np.int16)
    added[:, 3] = 100
    return Counterfactuals(2.5, np.linspace(1, 5, count), added, crop_digest(data, "a") or "")


def test_masks_come_back_in_the_vocabulary_s_order(data: Path) -> None:
    masks = {key: np.random.default_rng(i).random((8, 8, 8)) > 0.5 for i, key in enumerate(reversed(KEYS))}
    write_causes(data, "a", masks)
    found = read_causes(data, "a")
    assert list(found) == KEYS
    assert all(np.array_equal(found[key], masks[key]) and found[key].dtype == bool for key in KEYS)


def test_a_counterfactual_is_the_crop_and_what_it_adds(data: Path) -> None:
    write_counterfactuals(data, "a", "margin", counterfactuals(data))
    found = read_counterfactuals(data, "a", "margin")
    assert (found.own, found.values.tolist()) == (2.5, [1.0, 5.0])
    hu = np.full((8, 8, 8), -800, np.int16)
    hu[3, 0, 0] = PADDING_HU
    cube = found.cube(hu, 1)
    assert cube.dtype == np.int16
    assert cube[3, 0, 0] == PADDING_HU
    assert cube[3, 1, 1] == -700
    assert cube[0, 0, 0] == -800


def test_no_change_at_all_is_a_file_too(data: Path) -> None:
    write_counterfactuals(data, "a", "margin", counterfactuals(data, 0))
    assert read_counterfactuals(data, "a", "margin").added_hu.shape == (0, 8, 8, 8)


def test_a_nodule_has_causes_when_all_files_are_there(data: Path) -> None:
    write_causes(data, "a", dict.fromkeys(KEYS, np.zeros((8, 8, 8), bool)))
    for key in KEYS:
        assert not has_causes(data, "a")
        write_counterfactuals(data, "a", key, counterfactuals(data))
    assert has_causes(data, "a")


def test_damaged_missing_and_foreign_files_say_what_to_do(data: Path) -> None:
    with pytest.raises(LidcCdamError, match=r"causes/a\.npz is missing; run `lidc-cdam causes` first"):
        read_causes(data, "a")
    causes_path(data, "a").parent.mkdir()
    causes_path(data, "a").write_bytes(b"damaged")
    with pytest.raises(LidcCdamError, match=r"must be an NPZ file .* run `lidc-cdam causes` again"):
        read_causes(data, "a")
    write_counterfactuals(data, "a", "margin", counterfactuals(data))
    assert counterfactuals_path(data, "a", "margin").exists()
    other = np.zeros((8, 8, 8), np.int16)
    write_crop(data, "a", Crop(other, other.astype(np.uint8), (0.0, 0.0, 0.0)))
    with pytest.raises(LidcCdamError, match=r"must belong to the crop of a in .* but that has changed; delete"):
        read_counterfactuals(data, "a", "margin")
