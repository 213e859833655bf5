import numpy as np
import pytest
from test_reports import world

from lidc_cdam import artifacts, crop_files
from lidc_cdam.artifacts import Latents
from lidc_cdam.errors import LidcCdamError
from reports.context import open_run
from reports.neighbours import nearest, similar_section


def latents() -> Latents:
    vectors = np.array([[1, 0], [0, 2], [3, 3], [-1, 0], [5, 0.1], [9, 0]], np.float32)
    return Latents(tuple("abcdef"), ("test", "train", "train", "train", "train", "val"), vectors)


def test_the_nearest_are_training_nodules_by_the_angle_of_their_latents():
    found, median = nearest(latents(), "a", 3)
    assert [one.nodule_id for one in found] == ["e", "c", "b"]
    assert found[1].similarity == pytest.approx(0.5**0.5)
    assert median == pytest.approx(np.median([0, 0.5**0.5, -1, found[0].similarity]))


def test_a_nodule_that_the_latents_lack_is_told():
    with pytest.raises(LidcCdamError, match=r"latents\.npz must hold z and training nodules"):
        nearest(latents(), "z")


def test_the_section_shows_readers_ratings_and_pictures(tmp_path):
    cohort = world.make(tmp_path, count=6)
    run, cases = open_run(cohort.biomarkers, "cdam")
    section = similar_section(run, cases[0])
    expected, _ = nearest(artifacts.read_latents(cohort.biomarkers / "fold_0" / "latents.npz"), cases[0].nodule_id)
    assert [one["nodule_id"] for one in section["nodules"]] == [one.nodule_id for one in expected]
    assert {one.nodule_id for one in expected} <= set(cohort.nodules[3:])
    table = artifacts.read_cohort(cohort.data)
    first = section["nodules"][0]
    assert dict(first["ratings"])["Diameter"] == f"{table.loc[first['nodule_id'], 'diameter']:.1f} mm"
    assert first["svg"].startswith("<svg")
    assert not first["same_patient"]
    assert not section["missing"]


def test_a_run_of_an_older_version_names_what_is_missing(tmp_path):
    cohort = world.make(tmp_path, count=4)
    (cohort.biomarkers / "fold_0" / "latents.npz").unlink()
    run, cases = open_run(cohort.biomarkers, "cdam")
    assert "fold_0/latents.npz is missing" in similar_section(run, cases[0])["missing"]
    assert similar_section(run, cases[3])["nodules"]


def test_a_neighbour_without_a_crop_has_no_picture(tmp_path):
    cohort = world.make(tmp_path, count=2)
    crop_files.crop_path(cohort.data, cohort.nodules[1]).unlink()
    run, cases = open_run(cohort.biomarkers, "cdam")
    (only,) = similar_section(run, cases[0])["nodules"]
    assert only["svg"] == ""
    assert only["ratings"]
