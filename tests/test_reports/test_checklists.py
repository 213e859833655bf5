import csv
import re

import pytest

from reports.checklists import AUTHOR, CHECKLISTS, FILLED, PART, Checklist, counted, filled, published, write_checklists

NUMBERS = {
    "claim": [str(number) for number in range(1, 45)],
    "metrics": [str(number) for number in range(1, 31)],
}


@pytest.mark.parametrize("key", NUMBERS)
def test_items_have_the_published_numbers(key):
    assert [row["number"] for row in published(key)] == NUMBERS[key]


def test_tripod_has_its_27_items_in_52_parts():
    numbers = [row["number"] for row in published("tripod")]
    assert len(numbers) == len(set(numbers)) == 52
    assert list(dict.fromkeys(re.sub(r"[a-z]", "", number) for number in numbers)) == [str(n) for n in range(1, 28)]
    assert [number for number in numbers if number.startswith("12")] == [f"12{letter}" for letter in "abcdefg"]


@pytest.mark.parametrize("checklist", CHECKLISTS, ids=lambda checklist: checklist.key)
def test_what_is_not_known_is_left_to_the_author(checklist: Checklist):
    assert {item.status for item in filled(checklist, {})} == {AUTHOR}
    rows = published(checklist.key)
    items = filled(checklist, {row["answer"]: "Known." for row in rows if row["answer"]})
    for row, item in zip(rows, items, strict=True):
        expected = AUTHOR if not row["answer"] else PART if row["rest"] else FILLED
        assert item.status == expected
        if expected == PART:
            assert item.answer == f"Known. Author must answer: {row['rest']}."
    assert f"{sum(item.status == AUTHOR for item in items)} for the author" in counted(items)


def test_files_hold_every_item_and_text_stays_text(tmp_path):
    answers = {"model": 'a | b <script>alert(1)</script>\n"quoted", =1+1'}
    written = write_checklists(tmp_path, answers)
    assert {path.name for path in written} == {f"{each.key}.{end}" for each in CHECKLISTS for end in ("csv", "md")}
    with (tmp_path / "checklists" / "claim.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 44
    assert next(row["answer"] for row in rows if row["number"] == "22") == answers["model"]
    page = (tmp_path / "checklists" / "claim.md").read_text()
    assert "<script" not in page
    assert all(re.search(r"(?<!\\)\|", line) for line in page.splitlines() if line.startswith("| 22"))
    assert sum(line.startswith("| ") for line in page.splitlines()) == 1 + 44
