import numpy as np
import pytest
from test_reports import world

from lidc_cdam import artifacts
from lidc_cdam.artifacts import Crop, Maps
from lidc_cdam.geometry import VIEWS, take_view
from reports.context import open_run
from reports.maps import strongest_score
from reports.material import load


@pytest.mark.parametrize("view", list(VIEWS))
def test_every_layer_of_a_cut_is_the_same_slice_as_it_is_looked_at(tmp_path, view):
    cohort = world.make(tmp_path, count=2)
    generator = np.random.default_rng(5)
    shape = (world.SIDE,) * 3
    hu = generator.integers(-1000, 400, shape).astype(np.int16)
    hu[:3] = world.PADDING_HU
    crop = Crop(hu, generator.integers(0, 5, shape).astype(np.uint8), (0.0, 0.0, 0.0))
    artifacts.write_crop(cohort.data, cohort.nodules[0], crop)
    run, cases = open_run(cohort.malignancy, "cdam")
    cut = load([run], [cases[0]]).cut(view, 11)
    np.testing.assert_array_equal(cut.hu, take_view(hu, view, 11))
    np.testing.assert_array_equal(cut.readers, take_view(crop.readers, view, 11))
    np.testing.assert_array_equal(cut.consensus, take_view(crop.readers, view, 11) >= 2)
    np.testing.assert_array_equal(cut.padded, take_view(hu, view, 11) == world.PADDING_HU)


def test_the_limit_is_the_99th_percentile_over_all_nodules_rounded_up(tmp_path):
    cohort = world.make(tmp_path, count=2)
    scores = np.linspace(-1, 1, 2 * world.GRID**2, dtype=np.float32).reshape(2, 1, 1, 1, world.GRID, world.GRID)
    for fold, nodule in enumerate(cohort.nodules):
        path = artifacts.maps_path(cohort.malignancy, fold, "cdam", nodule)
        artifacts.write_maps(path, Maps(scores[fold], ("malignancy",), ("axial",), (16,)))
    run, _ = open_run(cohort.malignancy, "cdam")
    exact = np.percentile(np.abs(scores), 99)
    assert run.limit is not None
    assert exact <= run.limit <= exact + 0.01
    assert f"{run.limit:.2g}" == f"{run.limit:g}"


@pytest.mark.parametrize(("token", "inside"), [((8, 8), True), ((1, 14), False)])
def test_the_strongest_score_is_found_with_its_sign_and_place(tmp_path, token, inside):
    cohort = world.make(tmp_path, count=2, padded=0)
    scores = np.zeros((1, 1, 1, world.GRID, world.GRID), dtype=np.float32)
    scores[0, 0, 0][token] = -0.3
    path = artifacts.maps_path(cohort.malignancy, 0, "cdam", cohort.nodules[0])
    artifacts.write_maps(path, Maps(scores, ("malignancy",), ("axial",), (16,)))
    run, cases = open_run(cohort.malignancy, "cdam")
    found = strongest_score(load([run], [cases[0]]))
    assert found is not None
    assert (found[0].key, found[2]) == ("malignancy", inside)
    assert found[1] == pytest.approx(-0.3)
