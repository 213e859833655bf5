import pytest

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.vocabulary import BIOMARKERS, MALIGNANCY, RATINGS, TARGETS, resolve_targets

ORDER = ["subtlety", "calcification", "sphericity", "margin", "lobulation", "spiculation", "texture", "diameter"]


def test_the_eight_biomarkers_stand_in_the_published_order():
    assert [biomarker.key for biomarker in BIOMARKERS] == ORDER
    assert list(TARGETS) == ["malignancy", *ORDER]
    assert {*ORDER[:-1], "malignancy", "internalStructure"} == set(RATINGS)


@pytest.mark.parametrize("target", [target for target in TARGETS.values() if target.words])
def test_each_code_has_a_word(target):
    assert len(target.words) == target.high - target.low + 1
    assert target.word(target.low) == target.words[0]
    assert target.word(99) == target.words[-1]


def test_a_word_is_that_of_the_nearest_code():
    assert TARGETS["margin"].word(3.6) == "near sharp"
    assert TARGETS["diameter"].word(12.0) == ""


def test_halfway_between_two_codes_both_words_are_named():
    assert MALIGNANCY.word(2.5) == "between moderately unlikely and indeterminate"
    assert MALIGNANCY.word(3.5) == "between indeterminate and moderately suspicious"
    assert TARGETS["margin"].word(4.5) == "between near sharp and sharp"


def test_groups_and_keys_resolve_in_vocabulary_order():
    assert resolve_targets("biomarkers") == BIOMARKERS
    assert resolve_targets(["diameter", "malignancy", "diameter"]) == (MALIGNANCY, TARGETS["diameter"])
    assert resolve_targets("joint") == tuple(TARGETS.values())


@pytest.mark.parametrize("names", ["malignant", [], ["texture", "size"]])
def test_an_unknown_target_is_refused_by_name(names):
    with pytest.raises(LidcCdamError, match=r"--targets must name at least one of malignancy, subtlety"):
        resolve_targets(names)
