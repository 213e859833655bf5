import numpy as np
import pytest
from test_reports import world

from lidc_cdam import artifacts
from lidc_cdam.artifacts import Maps
from reports.context import open_run
from reports.scales import methods_with_maps


def test_a_limit_is_the_99th_percentile_over_all_maps_of_a_model_and_target_rounded_up(tmp_path):
    cohort = world.make(tmp_path, count=4)
    scores = np.linspace(-1, 1, 2 * world.GRID**2, dtype=np.float32).reshape(2, 1, 1, world.GRID, world.GRID)
    for place, nodule in enumerate(cohort.nodules):
        fold, half = divmod(place, 2)
        path = artifacts.maps_path(cohort.biomarkers, fold, "cdam", nodule)
        both = np.stack([scores[half] * (1, 20)[fold], scores[half] * 0.003])
        artifacts.write_maps(path, Maps(both, ("margin", "texture"), ("axial",), (16,)))
    run, _ = open_run(cohort.biomarkers, "cdam")
    exact = np.percentile(np.abs(scores), 99)
    assert run.mapped == {0: 2, 1: 2}
    for fold, target, factor in ((0, "margin", 1), (1, "margin", 20), (0, "texture", 0.003), (1, "texture", 0.003)):
        limit = run.limits[fold][target]
        assert factor * exact <= limit <= 1.1 * factor * exact
        assert f"{limit:.2g}" == f"{limit:g}"


def test_maps_without_any_score_have_a_scale_all_the_same(tmp_path):
    cohort = world.make(tmp_path, count=2)
    path = artifacts.maps_path(cohort.malignancy, 0, "cdam", cohort.nodules[0])
    blank = np.zeros((1, 1, 1, world.GRID, world.GRID), np.float32)
    artifacts.write_maps(path, Maps(blank, ("malignancy",), ("axial",), (16,)))
    assert open_run(cohort.malignancy, "cdam")[0].limits[0] == {"malignancy": 1.0}


def test_other_methods_are_found_with_scales_of_their_own(tmp_path):
    cohort = world.make(tmp_path, count=2)
    made = artifacts.read_maps(artifacts.maps_path(cohort.malignancy, 0, "cdam", cohort.nodules[0]))
    path = artifacts.maps_path(cohort.malignancy, 0, "random", cohort.nodules[0])
    artifacts.write_maps(path, Maps(made.scores * 100, made.targets, made.views, made.slices))
    assert methods_with_maps(cohort.malignancy, [0, 1]) == ["cdam", "random"]
    run, _ = open_run(cohort.malignancy, "cdam")
    assert run.beside["random"][0]["malignancy"] == pytest.approx(100 * run.limits[0]["malignancy"])
