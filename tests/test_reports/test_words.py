import dataclasses

import pytest

from lidc_cdam.artifacts import NoduleRecord
from lidc_cdam.vocabulary import BIOMARKERS, MALIGNANCY, TARGETS
from reports import words
from reports.context import Case, Run, open_run

READINGS = tuple({"margin": float(value), "diameter": 8.0, "malignancy": 4.0} for value in (2, 3, 3, 4))
CASE = Case("n", "p", 0, 1, 4.0, READINGS, {"margin": 4.9, "diameter": 8.5}, {"margin": 3.0, "diameter": 8.0}, {}, None)


def mass(share: float, chance: float) -> dict[str, float]:
    return {"relevance_mass": share, "relevance_mass_chance": chance}


@pytest.fixture
def run(made) -> Run:
    facts, _ = open_run(made[0].biomarkers, "cdam")
    return dataclasses.replace(facts, targets=("margin", "diameter"), spread={"margin": 0.5, "diameter": 4.0})


def test_the_biomarker_that_is_furthest_is_named_with_its_numbers(run):
    (sentence,) = words.lead_sentences([(run, CASE)], None)
    assert sentence == (
        "Margin is furthest off: predicted 4.9 (sharp) against the readers' mean 3.0 (medium margin), 3.8 SD of the "
        "cohort above and outside the readers' own range; 1 of 2 biomarkers lie within half an SD of the readers' mean."
    )


def test_malignancy_is_always_the_readers_assessment(run):
    case = dataclasses.replace(CASE, predicted={"malignancy": 0.83}, true={"malignancy": 1.0})
    malignancy = dataclasses.replace(run, targets=("malignancy",))
    (sentence,) = words.lead_sentences([(malignancy, case)], None)
    assert sentence == (
        "The model gives a reader-assessed likelihood of malignancy of 83\u00a0%; the readers' median is 4 "
        "(moderately suspicious)."
    )


def test_relevance_is_shown_beside_chance(run):
    case = dataclasses.replace(CASE, measures={"margin": mass(0.4, 0.1), "diameter": mass(0.7, 0.1)})
    sentence = words.lead_sentences([(run, case)], None)[1]
    assert sentence == (
        "Of what raises a prediction, 55\u00a0% lies on the nodule (inside the readers' consensus) in the median of 2 "
        "maps, from 40\u00a0% (margin) to 70\u00a0% (diameter); 10\u00a0% would be chance."
    )


def test_maps_with_the_same_share_are_told_together(run):
    case = dataclasses.replace(CASE, measures={"margin": mass(0.4, 0.1), "diameter": mass(0.401, 0.1)})
    assert words.lead_sentences([(run, case)], None)[1] == (
        "Of what raises a prediction, 40\u00a0% lies on the nodule (inside the readers' consensus) in each of 2 maps; "
        "10\u00a0% would be chance."
    )


def test_one_map_below_chance_is_not_told_as_the_best_of_several(run):
    case = dataclasses.replace(CASE, measures={"diameter": mass(0.08, 0.18)})
    assert words.lead_sentences([(run, case)], None)[1] == (
        "8\u00a0% of what raises the predicted diameter lies on the nodule (inside the readers' consensus); 18\u00a0% "
        "would be chance."
    )


@pytest.mark.parametrize(("share", "told"), [(0.53, True), (0.1, True), (0.09, False), (0.0, False)])
def test_a_large_share_that_was_not_read_is_told_before_any_map(run, share, told):
    case = dataclasses.replace(CASE, record=NoduleRecord("n", "pack", "scan", share, 0.7, 2.5, ()))
    sentence = words.lead_sentences([(run, case)], None)[0]
    expected = f"{share * 100:.0f}\u00a0% of the cube was not read (hatched): the model saw mirrored tissue there, and "
    assert sentence.startswith(expected) == told


@pytest.mark.parametrize(
    ("score", "place", "text"),
    [
        (0.5, "inside", "raises the predicted margin (+0.5, sagittal view) and lies on what at least half"),
        (-0.5, "outside", "lowers the predicted margin (−0.5, sagittal view) and lies outside what at least half"),
        (-1e-9, "unread", "lowers the predicted margin (−1e−09, sagittal view) and lies where nothing was read"),
    ],
)
def test_the_strongest_score_says_where_it_lies(run, score, place, text):
    strongest = words.Strongest(TARGETS["margin"], score, "Sagittal", place)
    sentence = words.lead_sentences([(run, CASE)], strongest)[-1]
    assert sentence.startswith(f"The strongest score of all maps, each on its own scale, {text}")


def test_the_published_word_goes_with_each_number():
    spiculation = TARGETS["spiculation"]
    assert words.with_word(spiculation, 3.9) == {"number": "3.9", "word": "near marked spiculation"}
    assert words.with_word(TARGETS["diameter"], 8.25)["number"] == "8.2 mm"
    assert words.with_word(MALIGNANCY, 0.2)["number"] == "20\u00a0%"
    halfway = {"number": "4.5", "word": "between moderately suspicious and highly suspicious"}
    assert words.with_word(MALIGNANCY, 4.5, median=True) == halfway
    assert words.with_word(spiculation, None) == {"number": "–", "word": ""}


@pytest.mark.parametrize(
    ("prediction", "mean", "text"),
    [
        (0.9, 4.0, "same side of 3"),
        (0.9, 2.0, "other side of 3"),
        (0.1, 2.5, "same side of 3"),
        (0.4, 3, "median is 3"),
    ],
)
def test_malignancy_is_compared_by_the_side_of_three(prediction, mean, text):
    assert words.difference_in_deviations(MALIGNANCY, prediction, mean, None) == text


def test_every_biomarker_but_diameter_has_its_share_of_size():
    assert set(words.SIZE_R2) == {biomarker.key for biomarker in BIOMARKERS} - {"diameter"}
    text = " ".join(words.caution_sentences(["cdam"]))
    for phrase in (
        "head and last block only",
        "attention's artefacts",
        "spiculation 0.38",
        "category",
        "not pathology",
    ):
        assert phrase in text


def test_what_every_result_must_say_follows_the_sentences(run):
    control = dataclasses.replace(run, shown=("The labels were permuted.",))
    assert words.lead_sentences([(control, CASE), (control, CASE)], None)[-1] == "The labels were permuted."
    assert words.lead_sentences([(control, CASE), (control, CASE)], None).count("The labels were permuted.") == 1
    assert "The labels were permuted." not in words.lead_sentences([(run, CASE)], None)


def test_attentions_artefacts_are_told_of_methods_that_go_through_it():
    assert "attention's artefacts" in " ".join(words.caution_sentences(["integrated_gradients", "cdam"]))
    assert "attention's artefacts" not in " ".join(words.caution_sentences(["integrated_gradients"]))
    assert "not what the model makes of it" in " ".join(words.caution_sentences(["attention"]))


def test_data_quality_is_told_in_words():
    record = NoduleRecord("n", "pack", "scan", 0.25, 0.7, 2.5, ("irregular z", "padded", "wide reader range: margin"))
    text = " ".join(words.flag_sentences(dataclasses.replace(CASE, record=record)))
    assert "25\u00a0% of the cube lies outside what was read" in text
    assert "The model saw mirrored tissue there" in text
    assert "no patient geometry" in text
    assert "Irregular z: the distance of neighbouring slices varies within the scan." in text
    assert "Padded" not in text
    assert "margin (2 to 4)" in text
    assert "Wide reader range" not in text
    without = " ".join(words.flag_sentences(dataclasses.replace(CASE, record=record, readings=())))
    assert "Wide reader range (margin): the readers' ratings of the named biomarkers differ by two or more." in without
    assert words.flag_sentences(dataclasses.replace(CASE, readings=())) == ["None."]


def test_whose_voxels_make_the_consensus():
    assert words.consensus_words(0.5) == "at least half of the readers"
    assert words.consensus_words(0.75) == "at least 75\u00a0% of the readers"


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0"), (0.004, "below 1"), (0.5, "50"), (0.994, "99"), (0.9951, "above 99"), (1.0, "100")]
)
def test_only_none_is_printed_as_none_and_only_all_as_all(share, text):
    assert words.percent(share) == f"{text}\u00a0%"
