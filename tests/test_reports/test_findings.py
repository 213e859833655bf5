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
    assert found.positive == pytest.approx({"inside": 0.75, "edge": 0, "outside": 0.25})
    assert found.negative == pytest.approx({"inside": 0, "edge": 1, "outside": 0})
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
    assert 2 <= len(told) <= 4
    assert told[0] == "67\u00a0% of the map's score raises the predicted spiculation, 33\u00a0% lowers it."
    assert "75\u00a0% in the consensus' core, 0\u00a0% within 2 mm of its edge and 25\u00a0% farther outside" in told[1]
    assert told[3] == (
        "The strongest token (+3) raises it: axial view, 1 mm towards the left and 1 mm towards the back of the crop's "
        "centre, in the consensus' core."
    )


def test_a_blank_map_and_a_nodule_without_consensus_are_told():
    blank = np.zeros((1, 16, 16), np.float32)
    assert findings.find([cut()], blank) is None
    assert findings.sentences(TARGETS["margin"], None, 1) == ["The map of margin has no score on what was read."]
    none = dataclasses.replace(cut(), consensus=np.zeros((SIDE, SIDE), bool))
    found = findings.find([none], blank + 1)
    assert found.positive == {"outside": 1.0}
    assert "100\u00a0% farther outside (by area alone 100\u00a0%)" in findings.sentences(TARGETS["margin"], found, 1)[1]
