import base64
import zlib

import numpy as np
import pytest
from test_reports import world

from lidc_cdam import artifacts, crop_files
from lidc_cdam.artifacts import Maps
from lidc_cdam.geometry import VIEWS
from lidc_cdam.map_files import Volume, volume_folder, write_volume
from reports.context import MOST_METHODS, SHOWN, open_run
from reports.html import render_case
from reports.material import load
from reports.sections import document
from reports.viewer import viewer_data


def unpacked(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), kind)


def data_of(run_folder, place: int = 0):
    run, cases = open_run(run_folder, "cdam")
    material = load([run], [cases[place]])
    return run, material, viewer_data(material, document(material))


def test_the_cube_the_counts_and_the_scores_are_exact(tmp_path):
    cohort = world.make(tmp_path, count=2)
    run, material, data = data_of(cohort.biomarkers)
    np.testing.assert_array_equal(unpacked(data["hu"], "<i2"), material.crop.hu.ravel())
    np.testing.assert_array_equal(unpacked(data["marked"], "u1"), material.crop.readers.ravel())
    layer, random = data["layers"]
    np.testing.assert_array_equal(unpacked(random["scores"], "<f4"), material.random_maps[0].scores.ravel())
    assert random["limits"] == run.random_limits[0]
    np.testing.assert_array_equal(unpacked(layer["scores"], "<f4"), material.maps[0].scores.ravel())
    assert layer["limits"] == run.limits[0]
    assert (layer["rows"], layer["columns"], data["side"], data["central"]) == (16, 16, 32, 16)
    assert data["unread"] == crop_files.PADDING_HU


def test_each_reader_travels_where_extraction_saw_them(tmp_path):
    cohort = world.make(tmp_path, count=2)
    assert data_of(cohort.malignancy)[2]["each"] is None
    masks = np.random.default_rng(3).random((4, *(world.SIDE,) * 3)) > 0.5
    crop_files.write_reader_masks(cohort.data, cohort.nodules[0], masks, [1, 2, 3, 4])
    each = data_of(cohort.malignancy)[2]["each"]
    bits = unpacked(each["bits"], "<u2").reshape(masks.shape[1:])
    assert [np.array_equal((bits >> place) & 1, masks[place]) for place in range(each["count"])] == [True] * 4
    crop_files.reader_masks_path(cohort.data, cohort.nodules[0]).write_bytes(b"damaged")
    assert data_of(cohort.malignancy)[2]["each"] is None


def test_other_methods_travel_too_and_damaged_ones_do_not(tmp_path):
    cohort = world.make(tmp_path, count=2)
    own = artifacts.read_maps(artifacts.maps_path(cohort.malignancy, 0, "cdam", cohort.nodules[0]))
    path = artifacts.maps_path(cohort.malignancy, 0, "random", cohort.nodules[0])
    artifacts.write_maps(path, Maps(own.scores * 2, own.targets, own.views, own.slices))
    own = ["cdam", "cdam, random weights"]
    assert [layer["method"] for layer in data_of(cohort.malignancy)[2]["layers"]] == [*own, "random"]
    path.write_bytes(b"damaged")
    assert [layer["method"] for layer in data_of(cohort.malignancy)[2]["layers"]] == own


def write_margin(run_folder, nodule: str) -> np.ndarray:
    scores = np.random.default_rng(1).normal(size=(1, *(world.SIDE,) * 3)).astype(np.float32)
    folder = volume_folder(run_folder, 0, "cdam", nodule)
    write_volume(folder, "margin", Volume(scores, ("axial",), (0.0, 0.0, 0.0), 1.0, ""))
    return scores[0]


def test_volumes_are_a_method_of_their_own_with_the_maps_scale(tmp_path, monkeypatch):
    cohort = world.make(tmp_path, count=2)
    scores = write_margin(cohort.biomarkers, cohort.nodules[0])
    run, _, data = data_of(cohort.biomarkers)
    layer = data["layers"][1]
    assert (layer["method"], layer["targets"]) == ("cdam, every slice", ["margin"])
    assert layer["limits"] == {"margin": run.limits[0]["margin"]}
    np.testing.assert_array_equal(unpacked(layer["scores"], "<f4"), scores.ravel())
    monkeypatch.setattr("reports.viewer.MOST_VOLUME_BYTES", 1000)
    assert len(data_of(cohort.biomarkers)[2]["layers"]) == 2


@pytest.mark.parametrize(("geometry", "patient"), [("patient", True), ("scan", False)])
def test_a_frame_that_is_not_the_patients_is_told(tmp_path, geometry, patient):
    cohort = world.make(tmp_path, count=1)
    dataset = artifacts.read_dataset(cohort.data)
    (record,) = dataset.nodules.values()
    changed = artifacts.nodule_record({**vars(record), "geometry": geometry})
    artifacts.write_dataset(cohort.data, artifacts.Dataset(dataset.parameters, {record.nodule_id: changed}))
    assert data_of(cohort.biomarkers)[2]["patient"] is patient


def test_a_nodule_without_maps_has_no_layer(tmp_path):
    cohort = world.make(tmp_path, count=1, maps=False)
    assert data_of(cohort.biomarkers)[2]["layers"] == []


def test_a_nodule_without_maps_does_not_open_with_those_of_random_weights(tmp_path):
    cohort = world.make(tmp_path, count=2)
    artifacts.maps_path(cohort.malignancy, 0, "cdam", cohort.nodules[0]).unlink()
    _, material, data = data_of(cohort.malignancy)
    assert material.random_maps[0] is not None
    assert data["layers"] == []


def test_a_page_that_holds_all_it_can_stays_below_five_megabytes(tmp_path):
    cohort = world.make(tmp_path, count=2)
    nodule, generator = cohort.nodules[0], np.random.default_rng(2)
    for run, keys in ((cohort.biomarkers, SHOWN[:8]), (cohort.malignancy, SHOWN[8:])):
        for method in ("cdam", *(f"method_{number}" for number in range(MOST_METHODS))):
            scores = generator.normal(size=(len(keys), 3, 1, 28, 28)).astype(np.float32)
            made = Maps(scores, tuple(keys), tuple(VIEWS), (16,))
            artifacts.write_maps(artifacts.maps_path(run, 0, method, nodule), made)
        for key in keys:
            volume = generator.normal(size=(1, *(world.SIDE,) * 3)).astype(np.float32)
            folder = volume_folder(run, 0, "cdam", nodule)
            write_volume(folder, key, Volume(volume, ("axial",), (0.0, 0.0, 0.0), 1.0, ""))
    opened = [open_run(run, "cdam") for run in (cohort.biomarkers, cohort.malignancy)]
    material = load([run for run, _ in opened], [found[0] for _, found in opened])
    content = document(material)
    data = viewer_data(material, content)
    assert len(data["layers"]) == 2 * (3 + MOST_METHODS)
    assert 1_500_000 < len(render_case(content, "key", data)) < 5_000_000
