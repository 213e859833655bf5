import io
import re

import numpy as np
import pikepdf
import pypdfium2
import pytest
from test_reports.test_html import HOSTILE

from lidc_cdam.errors import LidcCdamError
from reports import pdf, sections
from reports.context import open_run
from reports.material import load
from reports.pdf import stand_alone

RIGHT_TO_LEFT = "דוח של גוש"
LONG = "x" * 3000


def content_of(made, both: bool = True, place: int = 0) -> dict:
    cohort, _ = made
    opened = [open_run(run, "cdam") for run in (cohort.biomarkers, cohort.malignancy)[: 2 if both else 1]]
    return sections.document(load([run for run, _ in opened], [cases[place] for _, cases in opened]))


@pytest.fixture(scope="module")
def paper(made) -> bytes:
    """A nodule's PDF of both runs."""
    return pdf.render_case(content_of(made))


def pages(document: bytes) -> int:
    with pikepdf.open(io.BytesIO(document)) as opened:
        return len(opened.pages)


def text_of(document: bytes) -> list[str]:
    """Text of each page in its order of reading."""
    opened = pypdfium2.PdfDocument(document)
    texts = [page.get_textpage().get_text_range() for page in opened]
    opened.close()
    return texts


def elements(document: bytes) -> list[tuple[str, str]]:
    """Every tagged element's kind and alternative text, in order."""
    with pikepdf.open(io.BytesIO(document)) as opened:
        found: list[tuple[str, str]] = []

        def walk(node) -> None:
            if isinstance(node, pikepdf.Array):
                for child in node:
                    walk(child)
            elif isinstance(node, pikepdf.Dictionary) and "/S" in node:
                found.append((str(node["/S"]), str(node.get("/Alt", ""))))
                walk(node.get("/K", pikepdf.Array()))

        walk(opened.Root["/StructTreeRoot"]["/K"])
        return found


def outline(document: bytes) -> list[tuple[str, list[str]]]:
    """Bookmarks: titles with those of their children."""
    with pikepdf.open(io.BytesIO(document)) as opened, opened.open_outline() as tree:
        return [(item.title, [child.title for child in item.children]) for item in tree.root]


@pytest.mark.parametrize("both", [True, False])
def test_a_report_is_three_or_four_pages_and_claims_both_standards(made, both):
    document = pdf.render_case(content_of(made, both))
    assert pages(document) in (3, 4)
    with pikepdf.open(io.BytesIO(document)) as opened:
        claims = opened.Root["/Metadata"].read_bytes().decode()
        assert opened.Root["/MarkInfo"]["/Marked"]
        assert str(opened.Root["/Lang"]) == "en"
        assert opened.Root["/ViewerPreferences"]["/DisplayDocTitle"]
    assert re.search(r"pdfuaid:part>1<", claims)
    assert re.search(r"pdfaid:part>2<", claims)
    assert re.search(r"pdfaid:conformance>A<", claims)
    assert "Research use only" in claims
    assert "1970-01-01" in claims
    assert claims.count("20") < 40  # no clock: no year of today beside those of the standards' addresses


def test_fonts_are_embedded(paper):
    with pikepdf.open(io.BytesIO(paper)) as opened:
        fonts = [each for each in opened.objects if isinstance(each, pikepdf.Dictionary) and "/FontName" in each]
        assert fonts
        assert all({"/FontFile", "/FontFile2", "/FontFile3"} & set(font.keys()) for font in fonts)


def test_every_picture_has_words_tables_have_heads_and_headings_are_bookmarks(made, paper):
    found = elements(paper)
    kinds = [kind for kind, _ in found]
    assert all(words for kind, words in found if kind == "/Figure")
    assert kinds.count("/Figure") >= 4 + 9 + 1 + 9  # CT, maps, the scale of both runs, dot lines
    assert {"/Table", "/TH", "/TD", "/H1", "/L"} <= set(kinds)
    titles = [title for title, _ in outline(paper)]
    assert titles[:3] == [
        "CT and the readers' outlines",
        "Prediction against the readers",
        "What raised and lowered the prediction: Biomarkers; Malignancy (cdam)",
    ]
    assert {"How far to trust these maps (cdam)", "Similar nodules: Malignancy", "Provenance"} <= set(titles)


def test_what_the_page_says_is_in_the_paper_in_the_same_order(made, paper):
    content = content_of(made)
    text = " ".join(" ".join(text_of(paper)).split())
    said = [
        *(sentence.split(":")[0] for sentence in content["sentences"]),
        "Prediction against the readers",
        content["targets"][1]["interval"],
        content["runs"][0]["panels"][0]["limit"],
        "How far to trust",
        "Similar nodules",
        "What this map cannot say",
    ]
    places = [text.find(" ".join(words.split())[:60]) for words in said]
    assert -1 not in places
    assert places == sorted(places)
    plain = re.sub(r"\W+", "", text)
    for panel in content["runs"][0]["panels"]:
        assert all(re.sub(r"\W+", "", sentence) in plain for sentence in panel["findings"])


def test_pictures_show_the_maps(made, paper):
    without = content_of(made)
    for run in without["runs"]:
        for panel in run["panels"]:
            panel["svg"] = without["ct"][0]["svg"]
    first, second = (
        np.asarray(pypdfium2.PdfDocument(document)[1].render(scale=1).to_pil().convert("RGB"), dtype=int)
        for document in (paper, pdf.render_case(without))
    )
    assert first.shape == second.shape
    red, blue = first[..., 0], first[..., 2]
    assert ((red - blue) > 60).mean() > 0.002
    assert ((blue - red) > 60).mean() > 0.002
    assert (np.abs(first - second).max(axis=-1) > 20).mean() > 0.02


def test_all_nine_targets_in_one_run_still_fit_on_four_pages(made):
    content = content_of(made)
    content["runs"] = [{**content["runs"][0], "panels": content["runs"][0]["panels"] + content["runs"][1]["panels"]}]
    assert pages(pdf.render_case(content)) <= 4


def test_the_same_content_gives_the_same_bytes(made, paper):
    assert pdf.render_case(content_of(made)) == paper


def test_every_page_says_research_use_only(paper):
    assert all(sheet.count("Research use only - not for diagnosis") >= 2 for sheet in text_of(paper))


def spoiled(value, text: str):
    """A document whose every word is `text`; pictures, keys and numbers stay."""
    if isinstance(value, dict):
        return {key: part if key in ("svg", "shared", "key") else spoiled(part, text) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [spoiled(part, text) for part in value]
    return text if isinstance(value, str) and value else value


@pytest.mark.parametrize("text", [HOSTILE, RIGHT_TO_LEFT, LONG, "../../etc/passwd", '#import "/x.typ"'])
def test_hostile_text_is_shown_as_text(made, text):
    document = pdf.render_case(spoiled(content_of(made), text))
    shown = "".join(text_of(document))
    if text is HOSTILE:
        assert '#panic("x") $x$' in shown.replace("“", '"').replace("”", '"').replace("\r\n", " ")
    elif text is LONG:
        assert shown.count("x") >= 3000
    elif text is RIGHT_TO_LEFT:
        assert set("דוחגש") <= set(shown)
    else:
        assert text[-6:].strip('"') in shown.replace("”", '"')


def test_a_stand_alone_picture_refers_to_no_page(made):
    content = content_of(made)
    alone = stand_alone(content, content["shared"])
    for panel in [*alone["ct"], *alone["runs"][0]["panels"], *alone["targets"]]:
        assert "<use" not in panel["svg"]
        assert "var(" not in panel["svg"]


def test_many_flags_are_counted_and_do_not_add_a_page(made):
    content = content_of(made)
    content["flags"] = [f"Flag number {index} with some words." for index in range(40)]
    document = pdf.render_case(content)
    assert pages(document) <= pages(pdf.render_case(content_of(made)))
    assert "34 more in the HTML report" in " ".join(" ".join(text_of(document)).split())


def test_chosen_nodules_make_one_file_with_a_bookmark_each(made):
    cohort, _ = made
    contents = [content_of(made, place=place) for place in (0, 2)]
    document = pdf.render_combined([stand_alone(each, each["shared"]) for each in contents])
    assert pages(document) == 1 + sum(pages(pdf.render_case(each)) for each in contents)
    found = dict(outline(document))
    assert [f"Nodule {cohort.nodules[place]}" for place in (0, 2)] == list(found)[-2:]
    assert "Provenance" in found[f"Nodule {cohort.nodules[2]}"]
    texts = text_of(document)
    assert cohort.nodules[2] in texts[0]
    assert cohort.nodules[2] in texts[-1].split("\n")[0]


def test_a_document_that_the_template_refuses_is_one_sentence(made):
    content = content_of(made)
    del content["targets"]
    with pytest.raises(LidcCdamError, match=r"must be set from the template case\.typ, but typst refuses it"):
        pdf.render_case(content)
