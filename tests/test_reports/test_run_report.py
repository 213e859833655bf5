import errno
import html as entities
import io
import re
from pathlib import Path

import pikepdf
import pytest
from test_reports import world
from test_reports.test_html import HOSTILE
from test_reports.test_pdf import elements, outline, text_of

from lidc_cdam import artifacts
from lidc_cdam.files import read_json, write_json
from reports import html, pdf
from reports.answers import FIXED, answers_of
from reports.checklists import CHECKLISTS, published
from reports.context import open_run
from reports.facts import gather
from reports.run_report import run_content, write_run_report
from reports.stage import report

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="60" height="40"><rect width="60" height="40" fill="#0072B2"/></svg>'
)


def figure(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05}


def write_summary(run: Path, **more) -> None:
    """A summary of a run of nine targets."""
    keys = artifacts.predicted_keys(artifacts.read_predictions(run / artifacts.PREDICTIONS))
    metrics = {key: {"z_mse": figure(0.6), "icc": figure(0.4), "within_1": figure(0.8)} for key in keys}
    metrics |= {"biomarkers": {"mean_z_mse": figure(0.61)}, "malignancy": {"auc": figure(0.87), "ece": figure(0.1)}}
    baselines = {
        "ruler": {"malignancy": {"auc": figure(0.93)}},
        "model_minus_ruler": {"malignancy": {"auc": figure(-0.06)}},
    }
    stored = {"schema": 1, "metrics": metrics, "baselines": baselines, "noise_floor": {"biomarkers": 0.23}}
    write_json(run / artifacts.SUMMARY, stored | {"readers": {"malignancy": {"icc": 0.61}}} | more)


def write_comparison(run: Path) -> None:
    """What `evaluate` writes, of two methods."""
    rows = {"relevance_mass": figure(0.4), "relevance_mass_chance": figure(0.1), "fidelity": figure(7.5)}
    methods = {method: {"all": rows, "spiculation": rows} for method in ("cdam", "random")}
    stored = {"schema": 1, "settings": {"steps": 8}, "nodules": 4, "patients": 4, "methods": methods}
    write_json(run / "explainers.json", stored | {"minus_random": {"cdam": {"all": {"fidelity": figure(6.5)}}}})


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[world.World, Path]:
    """A run with everything a run report can show, and its reports."""
    root = tmp_path_factory.mktemp("run")
    cohort = world.make(root, count=4)
    write_summary(cohort.biomarkers)
    write_comparison(cohort.biomarkers)
    names = ["roc", "reliability", "biomarkers", "learning_curves", "explainers/methods", "explainers/gallery_margin"]
    for name in names:
        path = cohort.biomarkers / "figures" / f"{name}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SVG)
    (cohort.data / "flow.svg").write_text(SVG)
    report(cohort.biomarkers, root / "out", nodules=[cohort.nodules[0]])
    return cohort, root / "out"


def page_of(out: Path) -> str:
    return entities.unescape((out / "run.html").read_text(encoding="utf-8"))


def test_the_page_has_every_part_with_its_figures(whole):
    _, out = whole
    page = page_of(out)
    sections = re.findall(r'<h2 id="([\w-]+)">', page)
    parts = ["performance", "subgroups", "explainers", "cohort", "splits", "training", "card"]
    assert sections == ["in-short", *parts, *(each.key for each in CHECKLISTS), "provenance", "cite"]
    assert "0.610 (0.560\u00a0to\u00a00.660)" in page
    assert "0.930 (0.880\u00a0to\u00a00.980)" in page
    assert "AUC minus that of the readers' mean diameter: −0.060 (−0.110\u00a0to\u00a0−0.010)." in page
    assert "0.40 (0.35\u00a0to\u00a00.45); chance 0.10" in page
    assert "+6.5 (+6.5\u00a0to\u00a0+6.5)" in page or "+6.5 (+6.4\u00a0to\u00a0+6.5)" in page
    assert "No test nodule shares its patient with a training or validation nodule of its fold." in page
    assert page.count("data:image/svg+xml;base64,") == 5
    assert page.count("<details>") == 1
    assert re.search(r"<dt>backbone</dt><dd>tiny</dd>", page)


def test_the_paper_says_the_same_tagged_and_with_bookmarks(whole):
    _, out = whole
    document = (out / "run.pdf").read_bytes()
    with pikepdf.open(io.BytesIO(document)) as opened:
        claims = opened.Root["/Metadata"].read_bytes().decode()
    assert "pdfuaid:part>1<" in claims
    assert "pdfaid:conformance>A<" in claims
    titles = [title for title, _ in outline(document)]
    assert titles == re.findall(r'<h2 id="(?!in-short)[\w-]+">([^<]+)</h2>', page_of(out))
    found = elements(document)
    assert all(words for kind, words in found if kind == "/Figure")
    assert [kind for kind, _ in found].count("/Table") >= 8
    text = " ".join(" ".join(text_of(document)).split())
    assert "0.610 (0.560 to 0.660)" in text
    assert text.count("uthor must answer") > 20


def test_checklists_beside_it_say_what_the_page_says(whole):
    _, out = whole
    page = page_of(out)
    for each in CHECKLISTS:
        for line in (out / "checklists" / f"{each.key}.md").read_text().splitlines()[6:]:
            number, _, item, status, _ = (cell.strip() for cell in line.strip("|").split(" | "))
            assert f'<th scope="row">{number}</th>' in page
            assert item in page
            assert status in ("filled in", "in part", "author must answer")


def test_every_answer_that_a_list_asks_for_is_known_by_name(whole):
    cohort, _ = whole
    answers = answers_of(gather(open_run(cohort.biomarkers, "cdam")[0]))
    asked = {row["answer"] for each in CHECKLISTS for row in published(each.key)} - {""}
    assert asked <= set(answers)
    assert set(FIXED) <= asked
    assert "sound" in answers["partition"]
    assert answers["performance"].startswith("Malignancy: AUC 0.870")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda world: (world.biomarkers / "summary.json").unlink(), "Not measured. RUN/summary.json is missing"),
        (
            lambda world: write_summary(world.biomarkers, schema=7),
            "RUN/summary.json must have schema 1, but it has 7; run its step again with this version.",
        ),
        (
            lambda world: (world.biomarkers / "explainers.json").unlink(),
            "Not measured: run `lidc-cdam evaluate --run RUN --methods cdam,random`, then this report again.",
        ),
        (
            lambda world: (world.biomarkers / "explainers.json").write_text("{"),
            "RUN/explainers.json must be JSON, but it cannot be read",
        ),
        (lambda world: (world.data / "splits.json").unlink(), "The file of splits that config.yaml names is not here"),
        (lambda world: None, "Biomarkers against the readers: figures/biomarkers.svg is missing"),
        (lambda world: None, "No exclusions: DATA/excluded.csv is missing; run `lidc-cdam cohort` first."),
    ],
)
def test_what_is_missing_or_damaged_is_named_in_its_place(tmp_path, damage, sentence):
    cohort = world.make(tmp_path, count=2)
    write_summary(cohort.biomarkers)
    write_comparison(cohort.biomarkers)
    damage(cohort)
    write_run_report(tmp_path / "out", [open_run(cohort.biomarkers, "cdam")[0]], "renderer")
    page = page_of(tmp_path / "out")
    assert sentence.replace("`", "") in re.sub("</?code>", "", page)
    assert str(tmp_path) not in page
    words = re.sub(r"\W+", "", sentence)
    assert words in re.sub(r"\W+", "", "".join(text_of((tmp_path / "out" / "run.pdf").read_bytes())))


def test_a_full_disk_is_one_error_and_leaves_nothing_half_written(whole, tmp_path, monkeypatch):
    cohort, _ = whole

    def full(self, *_):
        with self.open("w") as stream:
            stream.write("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_run_report(tmp_path / "out", [open_run(cohort.biomarkers, "cdam")[0]], "renderer")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_run_report_that_cannot_be_made_is_a_sentence_on_the_index(whole, tmp_path, monkeypatch, capsys):
    cohort, _ = whole
    refused = pdf.render_run
    monkeypatch.setattr(pdf, "render_run", lambda content: refused({**content, "sections": [{}]}))
    report(cohort.malignancy, tmp_path / "out", nodules=[cohort.nodules[0]])
    index = entities.unescape((tmp_path / "out" / "index.html").read_text())
    assert "No run report: The PDF must be set from the template run.typ, but typst refuses it" in index
    assert not (tmp_path / "out" / "run.html").exists()
    assert "There is no run report" in capsys.readouterr().out


def test_the_same_artefacts_are_not_rendered_again(whole):
    cohort, out = whole
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("run.*")}
    index = out / "index.html"
    index.unlink()
    report(cohort.biomarkers, out, nodules=[cohort.nodules[0]])
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("run.*")} == before


def test_hostile_text_is_shown_as_text(whole):
    cohort, _ = whole
    facts = gather(open_run(cohort.biomarkers, "cdam")[0])
    facts.config["backbone"] = HOSTILE
    facts.summary["absent"] = {"radiomics": HOSTILE}
    facts.cohort["reason"] = HOSTILE
    content = run_content([facts], dict.fromkeys(answers_of(facts), HOSTILE))
    page = html.render_run(content, "key")
    assert "<script" not in page
    assert "{{ 7*7 }}" in page
    text = "".join(text_of(pdf.render_run(content))).replace("“", '"').replace("”", '"')
    assert '#panic("x")' in re.sub(r"\s+", " ", text)


def test_two_runs_make_one_report_and_what_both_say_stands_once(made):
    _, out = made
    page = page_of(out)
    titles = re.findall(r"<h2[^>]*>([^<]+)</h2>", page)
    assert "Performance: biomarkers" in titles
    assert "Performance: malignancy" in titles
    assert sum(title.startswith("Cohort") for title in titles) == 1
    assert len(set(re.findall(r'id="([\w-]+)"', page))) == len(re.findall(r'id="([\w-]+)"', page))
    assert read_json(out / "provenance.json")["report"]["finished"]
