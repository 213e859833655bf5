import base64
import io

import numpy as np
import pytest
from PIL import Image
from test_reports import world

from lidc_cdam import artifacts
from lidc_cdam.artifacts import Maps
from lidc_cdam.map_files import random_maps_path, read_random_maps
from lidc_cdam.vocabulary import BIOMARKERS
from reports.context import Case, Run, case_key, open_run
from reports.material import load
from reports.trust import trust_section


def section_of(run: Run, case: Case) -> dict[str, object]:
    return trust_section(load([run], [case]), 0)


def test_each_figure_stands_beside_chance_a_random_map_and_the_run(tmp_path):
    cohort = world.make(tmp_path, count=2)
    run, cases = open_run(cohort.biomarkers, "cdam")
    section = section_of(run, cases[0])
    assert section["columns"] == ["Inside the consensus", "Strongest pixel", "Fidelity", "Random weights"]
    assert section["rows"][0]["cells"] == [
        "62\u00a0% (chance 18\u00a0%; run 62\u00a0% to 62\u00a0%)",
        "inside the consensus",
        "+12.5 (random map \u22120.25; run +12.5 to +12.5)",
        "\u22120.31 (run \u22120.31 to \u22120.31)",
    ]
    assert len(section["rows"]) == 8
    assert "`lidc-cdam evaluate --run RUN --methods cdam,random --metrics all`" in section["missing"]


def test_without_measurements_the_section_gives_the_command(tmp_path):
    cohort = world.make(tmp_path, count=2)
    (cohort.biomarkers / artifacts.EXPLAINERS).unlink()
    run, cases = open_run(cohort.biomarkers, "cdam")
    section = section_of(run, cases[0])
    assert (section["columns"], section["notes"]) == ([], [])
    assert "inside the consensus, strongest pixel, fidelity" in section["missing"]


def test_a_map_stands_beside_that_of_random_weights_on_its_own_scale(tmp_path):
    cohort = world.make(tmp_path, count=4)
    run, cases = open_run(cohort.biomarkers, "cdam")
    section = section_of(run, cases[0])
    assert [twin["title"] for twin in section["twins"]] == [biomarker.title for biomarker in BIOMARKERS]
    place = run.targets.index("margin")
    kept = [read_random_maps(random_maps_path(run.folder, 0, "cdam", name)).scores for name in cohort.nodules[:2]]
    whole = np.percentile(np.abs([scores[place] for scores in kept]), 99)
    limit = run.random_limits[0]["margin"]
    assert whole <= limit < 1.1 * whole
    assert limit < 0.1 * run.limits[0]["margin"]
    margin = section["twins"][3]
    assert margin["random"]["limit"] == f"\u00b1{limit:.3g}"
    assert margin["words"] == "correlation \u22120.31"
    assert "by the model with random weights" in margin["random"]["alt"]
    assert not np.array_equal(colours(margin["own"]["svg"]), colours(margin["random"]["svg"]))
    # The picture shows this map: its strongest token has the colour of its sign.
    scores = kept[0][place, 0, 0][3:-3, 3:-3]
    row, column = np.unravel_index(np.abs(scores).argmax(), scores.shape)
    red, _, blue = colours(margin["random"]["svg"])[round((row + 3.5) * 6), round((column + 3.5) * 6)]
    assert (red > blue) == (scores[row, column] > 0)


@pytest.mark.parametrize(
    ("views", "slices", "grid", "shown"),
    [
        (("axial",), (12, 16), 16, "axial"),
        (("coronal", "axial"), (16,), 16, "axial"),
        (("coronal", "sagittal"), (16,), 16, "coronal"),
        (("axial",), (16,), 8, "axial"),
        (("axial",), (12, 20), 16, None),
    ],
)
def test_maps_of_other_slices_views_and_grids_stand_beside_random_ones_where_both_are(
    tmp_path, views, slices, grid, shown
):
    cohort = world.make(tmp_path, count=2)
    path = artifacts.maps_path(cohort.malignancy, 0, "cdam", cohort.nodules[0])
    generator = np.random.default_rng(1)
    made = generator.normal(size=(1, len(views), len(slices), grid, grid)).astype(np.float32)
    artifacts.write_maps(path, Maps(made, ("malignancy",), views, slices))
    random = generator.normal(size=(1, 3, 1, 16, 16)).astype(np.float32)
    kept = Maps(random, ("malignancy",), ("axial", "coronal", "sagittal"), (16,))
    artifacts.write_maps(random_maps_path(cohort.malignancy, 0, "cdam", cohort.nodules[0]), kept)
    run, cases = open_run(cohort.malignancy, "cdam")
    twins = section_of(run, cases[0])["twins"]
    assert [twin["own"]["alt"].startswith(f"Small {shown} map") for twin in twins] == ([True] if shown else [])


def test_a_missing_or_damaged_map_of_random_weights_leaves_the_pictures_out(tmp_path):
    cohort = world.make(tmp_path, count=2)
    random_maps_path(cohort.biomarkers, 0, "cdam", cohort.nodules[0]).unlink()
    random_maps_path(cohort.biomarkers, 1, "cdam", cohort.nodules[1]).write_bytes(b"no map")
    run, cases = open_run(cohort.biomarkers, "cdam")
    for section in (section_of(run, case) for case in cases):
        assert section["twins"] == []
        assert "`lidc-cdam evaluate --run RUN --methods cdam --metrics randomised` keeps it." in section["missing"]
    (cohort.biomarkers / artifacts.EXPLAINERS).unlink()
    run, cases = open_run(cohort.biomarkers, "cdam")
    assert "--metrics randomised" not in section_of(run, cases[0])["missing"]


def test_a_new_map_of_random_weights_makes_the_document_anew(tmp_path):
    cohort = world.make(tmp_path, count=2)
    run, cases = open_run(cohort.biomarkers, "cdam")
    before = case_key([run], cases[:1], "")
    assert case_key([run], cases[:1], "") == before
    maps = artifacts.read_maps(artifacts.maps_path(run.folder, 0, "cdam", cohort.nodules[0]))
    world.write_random_maps(run.folder, 0, cohort.nodules[0], maps, sign=-1.0)
    again, same = open_run(cohort.biomarkers, "cdam")
    assert again.random_limits == run.random_limits
    assert case_key([again], same[:1], "") != before


def colours(svg):
    """The raster of a thumbnail."""
    _, _, encoded = svg.partition("base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded.partition('"')[0])))).astype(int)
