import re
import shutil
import subprocess
import zlib

import pytest
from test_reports.test_html import HOSTILE

from reports import pdf, sections
from reports.context import open_run
from reports.material import load


def content_of(made, both: bool = True) -> dict:
    cohort, _ = made
    opened = [open_run(run, "cdam") for run in (cohort.biomarkers, cohort.malignancy)[: 2 if both else 1]]
    return sections.document(load([run for run, _ in opened], [cases[0] for _, cases in opened]))


def plain(document: bytes) -> bytes:
    """A PDF with its compressed streams opened."""
    parts = [document]
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", document, flags=re.DOTALL):
        try:
            parts.append(zlib.decompress(stream))
        except zlib.error:
            continue
    return b"\n".join(parts)


def pages(document: bytes) -> int:
    return len(re.findall(rb"/Type\s*/Page\b", plain(document)))


def text_of(document: bytes) -> str:
    program = shutil.which("pdftotext")
    if program is None:
        pytest.skip("pdftotext (poppler-utils) is not installed")
    done = subprocess.run([program, "-", "-"], input=document, capture_output=True, check=True)
    return done.stdout.decode()


@pytest.mark.parametrize("both", [True, False])
def test_a_report_is_three_pages_and_claims_both_standards(made, both):
    document = pdf.render_case(content_of(made, both))
    assert pages(document) == 3
    opened = plain(document)
    assert b"pdfuaid:part>1<" in opened
    assert b"pdfaid:part>2<" in opened
    assert b"pdfaid:conformance>A<" in opened
    assert b"Research use only" in opened
    assert b"FontFile" in opened


def test_all_nine_targets_in_one_run_still_fit_on_three_pages(made):
    content = content_of(made)
    content["runs"] = [{**content["runs"][0], "panels": content["runs"][0]["panels"] + content["runs"][1]["panels"]}]
    assert pages(pdf.render_case(content)) == 3


def test_the_same_content_gives_the_same_bytes(made):
    assert pdf.render_case(content_of(made)) == pdf.render_case(content_of(made))


def test_every_page_says_research_use_only(made):
    document = pdf.render_case(content_of(made))
    sheets = text_of(document).split("\f")[:3]
    assert all(sheet.count("Research use only - not for diagnosis") >= 2 for sheet in sheets)


def test_hostile_text_is_shown_as_text(made):
    content = content_of(made)
    content |= {"title": HOSTILE, "facts": [(HOSTILE, HOSTILE)], "cite": [HOSTILE], "sentences": [HOSTILE]}
    document = pdf.render_case(content)
    assert '#panic("x") $x$' in text_of(document).replace("“", '"').replace("”", '"').replace("\n", " ")


def test_a_stand_alone_picture_refers_to_no_page(made):
    content = content_of(made)
    alone = pdf.stand_alone(content, content["shared"])
    for panel in [*alone["ct"], *alone["runs"][0]["panels"], *alone["targets"]]:
        assert "<use" not in panel["svg"]
        assert "var(" not in panel["svg"]


def test_many_flags_are_counted_and_do_not_add_a_page(made):
    content = content_of(made)
    content["flags"] = [f"Flag number {index} with some words." for index in range(40)]
    document = pdf.render_case(content)
    assert pages(document) == 3
    assert "34 more in the HTML report" in text_of(document)
