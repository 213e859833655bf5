import numpy as np
import pytest
from test_reports import world

from lidc_cdam import artifacts, crop_files
from lidc_cdam.artifacts import Maps
from lidc_cdam.crop_files import Crop
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
    hu[:3] = crop_files.PADDING_HU
    crop = Crop(hu, generator.integers(0, 5, shape).astype(np.uint8), (0.0, 0.0, 0.0))
    crop_files.write_crop(cohort.data, cohort.nodules[0], crop)
    run, cases = open_run(cohort.malignancy, "cdam")
    cut = load([run], [cases[0]]).cut(view, 11)
    np.testing.assert_array_equal(cut.hu, take_view(hu, view, 11))
    np.testing.assert_array_equal(cut.readers, take_view(crop.readers, view, 11))
    np.testing.assert_array_equal(cut.consensus, take_view(crop.readers, view, 11) >= 2)
    np.testing.assert_array_equal(cut.padded, take_view(hu, view, 11) == crop_files.PADDING_HU)


@pytest.mark.parametrize(
    ("view", "token", "place"),
    [("axial", (8, 8), "inside"), ("axial", (1, 14), "outside"), ("coronal", (1, 14), "unread")],
)
def test_the_strongest_score_is_found_with_its_sign_and_place(tmp_path, view, token, place):
    cohort = world.make(tmp_path, count=2)
    scores = np.zeros((1, 1, 1, world.GRID, world.GRID), dtype=np.float32)
    scores[0, 0, 0][token] = -0.3
    path = artifacts.maps_path(cohort.malignancy, 0, "cdam", cohort.nodules[0])
    artifacts.write_maps(path, Maps(scores, ("malignancy",), (view,), (16,)))
    run, cases = open_run(cohort.malignancy, "cdam")
    found = strongest_score(load([run], [cases[0]]))
    assert found is not None
    assert (found.target.key, found.view.lower(), found.place) == ("malignancy", view, place)
    assert found.score == pytest.approx(-0.3)
