"""Which readings are of one nodule: distances in mm, divided clusters, identifiers under every rule."""

from itertools import chain, combinations

import numpy as np
import pytest

from preprocessing.annotations import Nodule, load_nodules, of_one_reader
from preprocessing.clusters import LEAST_OVERLAP, cluster, split
from preprocessing.selection import GROUPINGS

CROWDED = {
    "LIDC-IDRI-0055_n01": (3, 1, 2),
    "LIDC-IDRI-0092_n02": (4, 1),
    "LIDC-IDRI-0137_n03": (1, 4),
    "LIDC-IDRI-0204_n01": (1, 1, 4),
    "LIDC-IDRI-0252_n01": (4, 1),
    "LIDC-IDRI-0332_s2_n01": (1, 4),
    "LIDC-IDRI-0340_n01": (4, 1, 3),
    "LIDC-IDRI-0366_n01": (3, 4),
    "LIDC-IDRI-0404_n05": (3, 4),
    "LIDC-IDRI-0608_n06": (4, 1),
    "LIDC-IDRI-0815_n01": (4, 1),
    "LIDC-IDRI-0863_n02": (1, 4),
    "LIDC-IDRI-0865_n01": (4, 1),
    "LIDC-IDRI-0942_n01": (4, 3),
}
"""The 14 clusters of more than four readings, with the readings of each part."""
CHANGED_BY_MM = ("LIDC-IDRI-0179", "LIDC-IDRI-0188", "LIDC-IDRI-0733", "LIDC-IDRI-0753")


@pytest.fixture(scope="module")
def in_mm() -> list[Nodule]:
    return load_nodules(clustering="mm")


@pytest.fixture(scope="module")
def parts() -> list[Nodule]:
    return load_nodules(patients={name[:14] for name in CROWDED}, split_crowded=True)


def ids(nodule: Nodule) -> tuple[int, ...]:
    return tuple(reading.annotation_id for reading in nodule.readings)


def grid(corner: tuple[int, int, int]) -> np.ndarray:
    return np.array(corner) + np.array([[0, 0, 0], [0, 1, 0], [1, 1, 0]])


def test_distances_in_voxels_and_in_mm_differ_where_voxels_are_small() -> None:
    readings = [grid((10, 10, 5)), grid((10, 14, 5))]
    assert cluster(readings, 2.0) == [[0], [1]]
    in_mm = [points * [0.5, 0.5, 2.0] for points in readings]
    assert cluster(readings, 2.0, in_mm) == [[0, 1]]


def test_neighbouring_slices_are_a_thickness_apart_whatever_rounding_makes_of_it() -> None:
    readings = [grid((10, 10, 0)), grid((10, 10, 1))]
    # -102.3 - -103.5 is 1.2000000000000028.
    assert -102.3 - -103.5 > 1.2
    in_mm = [
        np.column_stack([points[:, :2] * 0.7, np.full(3, z)])
        for points, z in zip(readings, (-103.5, -102.3), strict=True)
    ]
    assert cluster(readings, 1.2, in_mm) == [[0, 1]]


def test_mm_changes_four_scans_and_not_the_number_of_nodules(every_nodule: list[Nodule], in_mm: list[Nodule]) -> None:
    assert len(in_mm) == len(every_nodule) == 2651
    before, after = ({ids(nodule): nodule for nodule in nodules} for nodules in (every_nodule, in_mm))
    changed = {nodule.scan.patient_id for key, nodule in after.items() if key not in before}
    assert sorted(changed) == sorted(CHANGED_BY_MM)
    assert {nodule.scan.patient_id for key, nodule in before.items() if key not in after} == changed
    assert sorted(chain.from_iterable(after)) == sorted(chain.from_iterable(before))


def test_an_identifier_means_the_same_readings_under_every_rule(every_nodule, in_mm, parts) -> None:
    both = load_nodules(patients=[*CHANGED_BY_MM, "LIDC-IDRI-0055"], **GROUPINGS[-1])
    known: dict[str, tuple[int, ...]] = {}
    for nodule in (*every_nodule, *in_mm, *parts, *both):
        assert known.setdefault(nodule.nodule_id, ids(nodule)) == ids(nodule)
    assert len(known) == len(set(known.values())) == 2651 + 6 + sum(map(len, CROWDED.values()))
    assert {name for name in known if "_mm" in name} == {
        *(f"LIDC-IDRI-0179_mm{number:02d}" for number in (7, 11)),
        "LIDC-IDRI-0188_mm01",
        "LIDC-IDRI-0733_mm03",
        *(f"LIDC-IDRI-0753_mm{number:02d}" for number in (1, 2)),
    }


def test_each_crowded_cluster_is_divided(every_nodule: list[Nodule], parts: list[Nodule]) -> None:
    whole = {nodule.nodule_id: nodule for nodule in every_nodule if len(nodule.readings) > 4}
    assert set(whole) == set(CROWDED)
    for name, sizes in CROWDED.items():
        members = [nodule for nodule in parts if nodule.nodule_id[:-1] == name]
        assert [nodule.nodule_id[-1] for nodule in members] == list("abc")[: len(sizes)]
        assert tuple(len(nodule.readings) for nodule in members) == sizes
        assert sorted(sum((ids(nodule) for nodule in members), ())) == sorted(ids(whole[name]))
        assert all(nodule.divided and nodule.number == whole[name].number for nodule in members)
        for nodule in members:
            assert not any(of_one_reader(*pair) for pair in combinations(nodule.readings, 2))
    others = {ids(nodule): nodule.nodule_id for nodule in every_nodule if nodule.nodule_id not in CROWDED}
    assert all(others[ids(nodule)] == nodule.nodule_id for nodule in parts if not nodule.divided)


def test_names_tell_readers_apart(every_nodule: list[Nodule]) -> None:
    """The rule of `of_one_reader` is not documented; the clusters of up to four readings bear it out."""
    ordinary = [nodule for nodule in every_nodule if len(nodule.readings) <= 4]
    against = [n.nodule_id for n in ordinary if any(of_one_reader(*pair) for pair in combinations(n.readings, 2))]
    assert len(ordinary) == 2637
    assert against == ["LIDC-IDRI-0060_n04", "LIDC-IDRI-0249_n02", "LIDC-IDRI-0436_n01", "LIDC-IDRI-0707_n05"]


def matrix(size: int, pairs: dict[tuple[int, int], float]) -> np.ndarray:
    overlap = np.eye(size)
    for (one, other), value in pairs.items():
        overlap[one, other] = overlap[other, one] = value
    return overlap


def test_the_whole_goes_with_the_part_that_it_is_most_alike() -> None:
    overlap = matrix(5, {(0, 1): 0.7, (2, 3): 0.6, (0, 4): 0.6, (1, 4): 0.5, (2, 4): 0.1, (3, 4): 0.1})
    assert split(overlap, overlap == 0) == [[0, 1, 4], [2, 3]]


def test_a_reading_that_fits_no_part_stays_alone() -> None:
    little = LEAST_OVERLAP / 2
    overlap = matrix(5, {(0, 1): 0.7, (2, 3): 0.6, **{(index, 4): little for index in range(4)}})
    assert split(overlap, overlap == 0) == [[0, 1], [2, 3], [4]]


def test_a_part_has_at_most_four_readings_and_no_forbidden_pair() -> None:
    alike = np.full((6, 6), 0.9)
    assert sorted(map(len, split(alike, np.zeros((6, 6), dtype=bool)))) == [2, 4]
    apart = np.zeros((6, 6), dtype=bool)
    apart[0, 1] = apart[1, 0] = True
    assert all(not {0, 1} <= set(part) for part in split(alike, apart))
