from test_reports import world

from lidc_cdam import artifacts
from reports.context import open_run
from reports.trust import trust_section


def test_each_figure_stands_beside_chance_a_random_map_and_the_run(tmp_path):
    cohort = world.make(tmp_path, count=2)
    run, cases = open_run(cohort.biomarkers, "cdam")
    section = trust_section(run, cases[0])
    assert section["columns"] == ["Inside the consensus", "Strongest pixel", "Fidelity"]
    assert section["rows"][0]["cells"] == [
        "62\u00a0% (chance 18\u00a0%; run 62\u00a0% to 62\u00a0%)",
        "inside the consensus",
        "+12.5 (random map \u22120.25; run +12.5 to +12.5)",
    ]
    assert len(section["rows"]) == 8
    assert "`lidc-cdam evaluate --run RUN --methods cdam,random`" in section["missing"]


def test_without_measurements_the_section_gives_the_command(tmp_path):
    cohort = world.make(tmp_path, count=2)
    (cohort.biomarkers / artifacts.EXPLAINERS).unlink()
    run, cases = open_run(cohort.biomarkers, "cdam")
    section = trust_section(run, cases[0])
    assert (section["columns"], section["notes"]) == ([], [])
    assert "inside the consensus, strongest pixel, fidelity" in section["missing"]
