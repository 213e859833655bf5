import dataclasses

import numpy as np
import pytest

from lidc_cdam.vocabulary import TARGETS
from reports import findings
from reports.figures import Cut

SIDE = 32
SQUARE = np.zeros((SIDE, SIDE), bool)
SQUARE[8:24, 8:24] = True


def cut(view="axial", padded=False):
    unread = np.zeros((SIDE, SIDE), bool)
    if padded:
        unread[:4] = True
    return Cut(view, np.zeros((SIDE, SIDE), np.int16), SQUARE.astype(np.uint8), SQUARE, unread, float(SIDE))


def test_zones_are_what_lies_deeper_than_two_millimetres_and_farther_than_two():
    zones = findings.zone_of(cut(padded=True))
    assert (zones == -1).sum() == 4 * SIDE
    assert zones[16, 16] == 0
    # pixel centres lie half a millimetre from the outline at 8 and 23, and 2.5 at 10
    assert [int(zones[16, column]) for column in (4, 5, 6, 9, 10)] == [2, 2, 1, 1, 0]
    assert (zones == 0).sum() == 12**2


def test_shares_are_of_the_scores_that_were_read():
    scores = np.zeros((1, 16, 16), np.float32)
    scores[0, 8, 8], scores[0, 2, 2], scores[0, 8, 4] = 3.0, 1.0, -2.0
    found = findings.find([cut()], scores)
    assert found.raising == pytest.approx(4 / 6)
    assert found.positive == pytest.approx({"core": 0.75, "rim": 0, "outside": 0.25})
    assert found.negative == pytest.approx({"core": 0, "rim": 1, "outside": 0})
    assert found.unread == 0
    assert sum(found.area.values()) == pytest.approx(1)
    scores[0, 0, 0] = 6.0
    found = findings.find([cut(padded=True)], scores)
    assert found.unread == pytest.approx(0.5)
    assert found.raising == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("view", "token", "away"),
    [
        ("axial", (8, 12), (("L", 9.0), ("P", 1.0))),
        ("axial", (4, 3), (("R", 9.0), ("A", 7.0))),
        ("coronal", (4, 3), (("R", 9.0), ("H", 7.0))),
        ("sagittal", (12, 12), (("P", 9.0), ("F", 9.0))),
    ],
)
def test_the_strongest_token_is_placed_in_the_patient(view, token, away):
    scores = np.full((1, 16, 16), 0.1, np.float32)
    scores[0][token] = -2.0
    found = findings.strongest_token([cut(view)], scores)
    assert (found.score, found.view, found.away) == (-2.0, view, away)


def test_sentences_state_their_numbers():
    scores = np.zeros((1, 16, 16), np.float32)
    scores[0, 8, 8], scores[0, 2, 2], scores[0, 8, 4] = 3.0, 1.0, -2.0
    told = findings.sentences(TARGETS["spiculation"], findings.find([cut()], scores), 1)
    assert told == [
        "67\u00a0% of the score raises spiculation: 75\u00a0% in the core, 0\u00a0% at the rim, 25\u00a0% outside.",
        "33\u00a0% lowers it: 0\u00a0% in the core, 100\u00a0% at the rim, 0\u00a0% outside.",
        "Strongest token: +3, in the core, 1\u00a0mm left and 1\u00a0mm posterior of the centre.",
    ]


def test_what_lies_on_mirrored_tissue_is_told_and_left_out():
    scores = np.zeros((1, 16, 16), np.float32)
    scores[0, 8, 8], scores[0, 0, 0] = 1.0, -3.0
    told = findings.sentences(TARGETS["margin"], findings.find([cut(padded=True)], scores), 3)
    assert told == [
        "100\u00a0% of the score raises margin: 100\u00a0% in the core, 0\u00a0% at the rim, 0\u00a0% outside.",
        "Strongest token: −3, on mirrored tissue, 15\u00a0mm right and 15\u00a0mm anterior of the centre in the axial "
        "view.",
        "75\u00a0% of all score, on mirrored tissue, is left out above.",
    ]


def test_what_only_lowers_names_its_target():
    told = findings.sentences(TARGETS["margin"], findings.find([cut()], np.full((1, 16, 16), -1, np.float32)), 1)
    assert told[0].startswith("100\u00a0% of the score lowers margin: 14\u00a0% in the core")


def test_the_zones_are_told_with_their_areas():
    found = findings.find([cut()], np.ones((1, 16, 16), np.float32))
    assert found.positive == pytest.approx(found.area)
    assert findings.zone_words(found.area, 1) == (
        "Core: deeper than 2\u00a0mm inside the readers' consensus (14\u00a0% of the area read); rim: within 2\u00a0mm "
        f"of its outline ({found.area['rim'] * 100:.0f}\u00a0%); outside: farther out "
        f"({found.area['outside'] * 100:.0f}\u00a0%). A map that prefers no place has its scores in these shares."
    )
    assert "of the area read, pooled over 3 views)" in findings.zone_words(found.area, 3)


def test_a_blank_map_and_a_nodule_without_consensus_are_told():
    blank = np.zeros((1, 16, 16), np.float32)
    assert findings.find([cut()], blank) is None
    assert findings.sentences(TARGETS["margin"], None, 1) == ["The map of margin has no score on what was read."]
    none = dataclasses.replace(cut(), consensus=np.zeros((SIDE, SIDE), bool))
    found = findings.find([none], blank + 1)
    assert found.positive == {"outside": 1.0}
    assert "raises margin: 100\u00a0% outside." in findings.sentences(TARGETS["margin"], found, 1)[0]
    assert "(0\u00a0% of the area read)" in findings.zone_words(found.area, 1)
