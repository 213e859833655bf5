from pathlib import Path

import pypdfium2
import pytest
from test_reports import world

from lidc_cdam import drawing
from lidc_cdam.quality import SYNTHETIC
from reports import blocks, html, pdf
from reports.context import open_run
from reports.facts import gather
from reports.plates import FOOT, marked, plate
from reports.run_report import run_content


@pytest.fixture
def figure(tmp_path: Path) -> Path:
    """A figure as a run keeps it."""
    drawn, (axes,) = drawing.canvas(1, 1, 3, 2)
    axes.plot([0, 1], [0, 1])
    return drawing.save(drawn, tmp_path / "run" / "figures" / "roc")[1]


def test_a_marked_figure_is_the_same_over_a_line_of_words(figure):
    made = blocks.row([plate(figure, "ROC", "a curve")])
    (row,) = marked([made], "Synthetic <phantoms>")
    before, after = made["pieces"][0]["svg"], row["pieces"][0]["svg"]
    assert before[before.index("<svg") :].partition(">")[2] in after
    # Its size and that of its frame are in the same unit: nothing is cut off.
    assert '<svg width="216" height="144" ' in after
    assert after.count("<svg") == after.count("</svg>") == 2
    assert "Synthetic &lt;phantoms&gt;</text>" in after
    assert f'viewBox="0 0 216 {144 + FOOT}"' in after
    assert marked([blocks.text("words")], "others") == [blocks.text("words")]
    assert marked([blocks.figure("f", "<svg/>", "of no size")], "w")[0]["svg"] == "<svg/>"


@pytest.mark.parametrize("flags", [(SYNTHETIC,), ()])
def test_figures_of_a_run_on_phantoms_say_so(figure, tmp_path, flags):
    cohort = world.make(tmp_path, count=2, flags=flags)
    kept = cohort.malignancy / "figures" / "roc.svg"
    kept.parent.mkdir()
    kept.write_bytes(figure.read_bytes())
    content = run_content([gather(open_run(cohort.malignancy, "cdam")[0])], {})
    pieces = content["sections"][0]["blocks"][-1]["pieces"]
    assert ("Synthetic phantoms</text>" in pieces[0]["svg"]) == bool(flags)
    assert html.render_run(content, "key").count("data:image/svg+xml") == 1
    opened = pypdfium2.PdfDocument(pdf.render_run(content))
    words = " ".join(page.get_textpage().get_text_range() for page in opened)
    opened.close()
    assert words.count("Synthetic phantoms") == len(flags)
