"""A cohort's rules decide what the later steps take for a nodule."""

from pathlib import Path

import numpy as np
import pytest
from dicom_factory import Stack, linear
from small_lidc import CORNER_MM, contents, write_cohort

from lidc_cdam import artifacts, crop_files, provenance
from preprocessing.annotations import Nodule, load_nodules
from preprocessing.extract import extract
from preprocessing.native import nodules_of
from preprocessing.pack import pack, read_pack
from preprocessing.selection import GROUPINGS, Selection, grouping_of

PATIENT = "LIDC-IDRI-0137"
WHOLE, PART, OTHER = (f"{PATIENT}_{place}" for place in ("n03", "n03b", "n02"))


@pytest.fixture(scope="module")
def whole() -> Nodule:
    """A cluster of five readings: four of one nodule, and one of a part of it."""
    return next(nodule for nodule in load_nodules(patients=[PATIENT]) if nodule.nodule_id == WHOLE)


@pytest.fixture(scope="module")
def root(whole: Nodule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The slices around it as DICOM."""
    folder = tmp_path_factory.mktemp("dicom")
    scan = whole.scan
    marked = [contour.slice_index for reading in whole.readings for contour in reading.contours]
    margin = int(25 / np.median(np.diff(scan.slice_z_mm))) + 1
    z_mm = scan.slice_z_mm[max(min(marked) - margin, 0) : max(marked) + margin + 1]
    spacing_mm = (scan.pixel_spacing_mm,) * 2
    Stack(linear((2, -1.5, 3)), z_mm, scan.series_uid, (512, 512), spacing_mm, CORNER_MM).write(folder)
    return folder


def test_extract_and_pack_make_the_nodules_that_the_cohort_names(root: Path, tmp_path: Path) -> None:
    direct, packed = tmp_path / "direct", tmp_path / "packed"
    for data in (direct, packed):
        write_cohort(data, [PATIENT], crowded="split")
        assert {WHOLE, PART} & set(artifacts.read_cohort(data).index) == {PART}
    extract(direct, dicom=root)
    assert set(artifacts.read_dataset(direct).nodules) == {OTHER, PART}
    assert crop_files.read_crop(direct, PART).readers.max() == 4
    pack(root, tmp_path / "pack")
    assert set(read_pack(tmp_path / "pack").index) - {OTHER} == {WHOLE, PART}
    extract(packed, pack=tmp_path / "pack")
    for kind in ("crops", "masks"):
        name = f"{kind}/{PART}.nii.gz"
        assert contents(packed)[name] == contents(direct)[name]


def test_the_undivided_cluster_is_another_nodule(root: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path, [PATIENT], crowded="keep")
    extract(tmp_path, dicom=root)
    assert set(artifacts.read_dataset(tmp_path).nodules) == {OTHER, WHOLE}
    assert crop_files.read_crop(tmp_path, WHOLE).readers.max() == 4
    assert crop_files.read_crop(tmp_path, WHOLE).consensus(5).any()


def test_the_rules_digest_goes_into_the_dataset(root: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path, [PATIENT], crowded="keep")
    config = provenance.read_record(tmp_path, "cohort")["config"]
    extract(tmp_path, dicom=root)
    assert artifacts.read_dataset(tmp_path).parameters["rules_sha256"] == config["rules_sha256"]


def test_a_folder_without_a_record_has_pylidcs_clusters(tmp_path: Path) -> None:
    assert grouping_of(tmp_path) == GROUPINGS[0] == Selection().grouping
    write_cohort(tmp_path, [PATIENT], clustering="mm", crowded="split")
    assert grouping_of(tmp_path) == GROUPINGS[-1] == {"clustering": "mm", "split_crowded": True}


def test_every_grouping_gives_each_nodule_once(whole: Nodule) -> None:
    uid = whole.scan.series_uid
    names = [nodule.nodule_id for nodule in nodules_of({uid}, [PATIENT], GROUPINGS)[uid]]
    own = [nodule.nodule_id for nodule in nodules_of({uid}, [PATIENT])[uid]]
    assert len(names) == len(set(names))
    assert set(names) - set(own) == {f"{WHOLE}a", f"{WHOLE}b"}
