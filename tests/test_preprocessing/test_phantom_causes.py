"""The `causes` command: files that fit the crops, whatever made them, and sentences where there is nothing to know."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lidc_cdam.artifacts import read_dataset
from lidc_cdam.cause_files import causes_path, counterfactuals_path, has_causes, read_causes, read_counterfactuals
from lidc_cdam.cli import main
from lidc_cdam.crop_files import read_crop
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.vocabulary import BIOMARKERS
from preprocessing import cohort as cohort_stage
from preprocessing import phantom_causes, phantom_stage
from preprocessing.annotations import Nodule, load_nodules
from preprocessing.crops import CropSettings
from preprocessing.extract import extract
from preprocessing.phantom import Phantom
from preprocessing.phantom_causes import ROUNDING_HU, causes, other_values, settings_of
from preprocessing.phantom_dicom import in_plane_origin_mm

KEYS = [biomarker.key for biomarker in BIOMARKERS]


@pytest.fixture(scope="module")
def members() -> list[Nodule]:
    return load_nodules(patients=["LIDC-IDRI-0437", "LIDC-IDRI-0719"])


def extracted(root: Path, members: list[Nodule], change: Callable[[Phantom], Phantom] = lambda made: made) -> Path:
    """Crops of two phantoms of seed 3, each changed before it is written, that went through a pack."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom_stage, "load_nodules", lambda: members)
        patch.setattr(phantom_stage, "Phantom", lambda *given: change(Phantom(*given)))
        patch.setattr(cohort_stage, "load_nodules", lambda **_: members)
        phantom_stage.phantom(root / "out", scans=0, nodules=2, seed=3)
        cohort_stage.cohort(root / "data")
    extract(root / "data", pack=root / "out" / "pack")
    return root / "data"


@pytest.fixture(scope="module")
def data(members: list[Nodule], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two phantoms with their causes and counterfactuals."""
    folder = extracted(tmp_path_factory.mktemp("phantoms"), members)
    causes(folder, seed=3)
    return folder


def test_causes_are_the_phantom_s_on_the_crop_s_grid(data: Path, members: list[Nodule]) -> None:
    for nodule_id in read_dataset(data).nodules:
        nodule = next(nodule for nodule in members if nodule.nodule_id == nodule_id)
        made = Phantom(nodule, [one for one in members if one.scan == nodule.scan], 3)
        crop = read_crop(data, nodule_id)
        corner = (*in_plane_origin_mm(made.scan), 0.0)
        axes = [origin - first + np.arange(32.0) for origin, first in zip(crop.origin_mm, corner, strict=True)]
        expected, found = made.causes(*axes), read_causes(data, nodule_id)
        assert all(np.array_equal(found[key], expected[key]) for key in KEYS)
        assert found["diameter"][16, 16, 16] or found["diameter"][14:19, 14:19, 14:19].any()


@pytest.mark.parametrize("key", KEYS)
def test_a_counterfactual_is_the_crop_of_the_changed_phantom(
    data: Path, members: list[Nodule], tmp_path: Path, key: str
) -> None:
    """Against phantoms that are changed first and then go through pack and extraction like any other."""
    stored = {nodule_id: read_counterfactuals(data, nodule_id, key) for nodule_id in read_dataset(data).nodules}
    for nodule_id, found in stored.items():
        assert set(found.values) <= set(other_values(key, found.own)), nodule_id

    # The value that is furthest from the phantom's own; none where no value changes a voxel.
    places = {n: int(np.abs(f.values - f.own).argmax()) if len(f.values) else None for n, f in stored.items()}

    def change(made: Phantom) -> Phantom:
        found, place = stored[made.nodule.nodule_id], places[made.nodule.nodule_id]
        assert found.own == made.ratings[key]
        return made if place is None else made.with_rating(key, float(found.values[place]))

    other = extracted(tmp_path, members, change)
    for nodule_id, found in stored.items():
        own, changed = read_crop(data, nodule_id).hu, read_crop(other, nodule_id).hu
        place = places[nodule_id]
        cube = own if place is None else found.cube(own, place)
        assert np.abs(cube.astype(int) - changed).max() <= ROUNDING_HU, nodule_id
        # The change itself is far larger than what rounding leaves.
        assert place is None or np.abs(changed.astype(int) - own).max() > 10 * ROUNDING_HU, nodule_id


def test_a_second_call_does_nothing_and_a_lost_file_is_made_again(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    causes(data, seed=3)
    assert "are known; nothing to do" in capsys.readouterr().out
    nodule_id = next(iter(read_dataset(data).nodules))
    path, other = counterfactuals_path(data, nodule_id, "texture"), causes_path(data, nodule_id)
    before = read_counterfactuals(data, nodule_id, "texture").added_hu
    path.unlink()
    assert not has_causes(data, nodule_id)
    causes(data, seed=3)
    assert np.array_equal(read_counterfactuals(data, nodule_id, "texture").added_hu, before)
    assert other.exists()


def test_another_seed_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(LidcCdamError, match=r"seed = 3, but this call has seed = 0; give the --seed of"):
        causes(data)
    for name in ("crops", "masks", "dataset.json"):
        (tmp_path / name).symlink_to(data / name)
    with pytest.raises(
        LidcCdamError, match=r"2 of 2 phantoms have no causes; the crop of .* of seed 5, but it differs"
    ):
        causes(tmp_path, seed=5)
    # What made nothing binds nobody.
    causes(tmp_path, seed=3)


def test_real_nodules_have_no_causes(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (data / "dataset.json").read_text().replace("synthetic phantom", "padded")
    (tmp_path / "dataset.json").write_text(text)
    assert main(["causes", "--data", str(tmp_path)]) == 1
    assert "must hold crops of phantoms, but none of the 2" in capsys.readouterr().err


def test_settings_are_those_of_the_folder(data: Path) -> None:
    assert settings_of(read_dataset(data)) == CropSettings()


def test_a_phantom_is_given_other_values_than_its_own() -> None:
    assert other_values("spiculation", 5.0) == (1.0,)
    assert other_values("calcification", 4.0) == (6.0, 3.0)
    assert other_values("diameter", 10.0) == (7.5, 13.0)
    assert phantom_causes.STAGE == "causes"
