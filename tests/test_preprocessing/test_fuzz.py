"""Damaged DICOM: never a crash, a hang or a wrong slice without a flag."""

from pathlib import Path

import numpy as np
import pytest
from dicom_factory import Stack
from dicom_fuzz import files_of_pydicom, fuzz, mutate
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless


def stack(folder: Path, syntax: str = ExplicitVRLittleEndian) -> list[Path]:
    """Five slices of noise."""
    random = np.random.default_rng(1)
    z_mm = (-5.0, -2.5, 0.0, 2.5, 5.0)
    noise = {z: random.integers(-1000, 400, (64, 64)) for z in z_mm}
    return Stack(lambda x, y, z: noise[z], z_mm, syntax=syntax).write(folder)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless])
def test_a_sample_of_damage(tmp_path: Path, syntax: str) -> None:
    outcomes = fuzz(stack(tmp_path / "made", syntax), 100, tmp_path)
    assert outcomes.total() == 100
    assert set(outcomes) >= {"slices: equal", "slices: slice missing", "files: refused"}


@pytest.mark.data
def test_a_sample_of_damage_to_real_slices(tmp_path: Path, shared_data: Path) -> None:
    files = sorted(next((shared_data / "LIDC-IDRI" / "LIDC-IDRI-0001").glob("*/*")).glob("*.dcm"))
    assert fuzz(files[30:35], 100, tmp_path, seed=1).total() == 100


@pytest.mark.slow
@pytest.mark.data
def test_two_thousand_and_more(tmp_path: Path, shared_data: Path) -> None:
    files = sorted(next((shared_data / "LIDC-IDRI" / "LIDC-IDRI-0003").glob("*/*")).glob("*.dcm"))
    (tmp_path / "real").mkdir()
    assert fuzz(files[60:65], 2000, tmp_path / "real", seed=2).total() == 2000
    for syntax in (JPEG2000Lossless, JPEGLSLossless):
        folder = tmp_path / syntax
        assert fuzz(stack(folder / "made", syntax), 500, folder, seed=3).total() == 500


def test_mutations_are_of_every_kind_and_change_the_file() -> None:
    random = np.random.default_rng(0)
    raw = next(path for path in files_of_pydicom() if path.name == "CT_small.dcm").read_bytes()
    damaged = [mutate(raw, random) for _ in range(200)]
    kinds = {one.what.split()[0] for one in damaged}
    assert kinds == {"bits", "anywhere", "truncated", "length", "representation", "delete", "duplicate", "value"}
    assert sum(one.raw != raw for one in damaged) > 190


def test_a_wrong_slice_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocessing.series.Series.flags", lambda self: ())
    with pytest.raises(AssertionError, match="a wrong slice without a flag"):
        fuzz(stack(tmp_path / "made"), 2000, tmp_path)
