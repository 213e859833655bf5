import shutil

import pytest
from dicom_factory import Stack, flat
from pydicom.pixels import get_decoder
from pydicom.uid import JPEG2000Lossless

from lidc_cdam.errors import LidcCdamError
from preprocessing.annotations import load_scans
from preprocessing.doctor import doctor


def test_an_installation_without_dicom_is_well(tmp_path, capsys):
    doctor(out=tmp_path, check_nodules=False)
    shown = capsys.readouterr().out
    assert "1018 scans, 1010 patients" in shown
    assert "BAD" not in shown
    assert list(tmp_path.iterdir()) == []


def test_a_missing_root_is_bad(tmp_path, capsys):
    with pytest.raises(LidcCdamError, match="1 of the points above"):
        doctor(dicom=tmp_path / "none", out=tmp_path, check_nodules=False)
    assert "BAD  dicom     --dicom must be a folder" in capsys.readouterr().out


def test_an_output_that_cannot_be_written_is_bad(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(LidcCdamError):
        doctor(out=tmp_path / "file", check_nodules=False)
    assert "BAD  disk      cannot write to" in capsys.readouterr().out


def test_compressed_and_faulty_series_are_counted(tmp_path, capsys, monkeypatch):
    scan = load_scans()[0]
    z_mm = (*scan.slice_z_mm, scan.slice_z_mm[3])
    made = Stack(flat(0), z_mm, scan.series_uid, (32, 32), (scan.pixel_spacing_mm,) * 2, syntax=JPEG2000Lossless)
    made.write(tmp_path / "dicom")
    doctor(dicom=tmp_path / "dicom", out=tmp_path, check_nodules=False)
    shown = capsys.readouterr().out
    assert "ok   dicom     1 series carry the flag `duplicate slices`" in shown
    assert "ok   decoders  every compression of CT slices can be read" in shown
    monkeypatch.setattr(get_decoder(JPEG2000Lossless), "_available", {})
    with pytest.raises(LidcCdamError):
        doctor(dicom=tmp_path / "dicom", out=tmp_path, check_nodules=False)
    shown = capsys.readouterr().out
    name = "JPEG 2000 Image Compression (Lossless Only)"
    assert f"ok   decoders  not installed for {name}; if your DICOM is" in shown
    assert f"BAD  dicom     1 series are compressed ({name}): `pip install 'lidc-cdam[compressed]'`" in shown


@pytest.mark.data
def test_an_incomplete_series_is_named(tmp_path, capsys, shared_data):
    series = next((shared_data / "LIDC-IDRI" / "LIDC-IDRI-0001").glob("*/*"))
    shutil.copytree(series, tmp_path / "dicom")
    doctor(dicom=tmp_path / "dicom", out=tmp_path, check_nodules=False)
    assert "1 of 1018 series found" in capsys.readouterr().out
    sorted((tmp_path / "dicom").glob("*.dcm"))[40].unlink()
    with pytest.raises(LidcCdamError):
        doctor(dicom=tmp_path / "dicom", out=tmp_path, check_nodules=False)
    assert "LIDC-IDRI-0001: 1 of 133 slices are missing (z = " in capsys.readouterr().out
