import pandas as pd
import pytest

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain.concept_rules import define, define_all, draw_examples

COHORT = pd.DataFrame(
    {
        "nodule_id": list("abcdef"),
        "spiculation": [1.0, 4.0, 4.5, 5.0, 2.0, None],
        "diameter": [5.0, 6.0, 20.0, 8.0, 30.0, 9.0],
        "series_uid": ["1.2"] * 6,
    }
).set_index("nodule_id", drop=False)


def fitting(text):
    found = define(text).fits(COHORT)
    return "".join(found[found].index)


@pytest.mark.parametrize(
    ("rule", "ids"),
    [
        ("spiculation >= 4", "bcd"),
        ("spiculation>4", "cd"),
        ("spiculation < 4", "ae"),
        ("spiculation == 4", "b"),
        ("spiculation != 4", "acde"),
        ("spiculation >= 4 and diameter <= 8", "bd"),
        ("diameter > 1e9 and diameter > 2", None),
        ("diameter > -1.5 and spiculation<=.5e1", None),
        ("diameter > -1.5 and spiculation<=+5.", "abcde"),
    ],
)
def test_a_rule_compares_columns_with_numbers(rule, ids):
    if ids is None:
        with pytest.raises(LidcCdamError, match="must be a rule such as"):
            define(f"x={rule}")
    else:
        assert fitting(f"x={rule}") == ids


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("spiculation >= 4", "--concept must be NAME=RULE or NAME=FILE.csv"),
        ("=spiculation >= 4", "must be NAME=RULE"),
        ("a b=spiculation >= 4", "must be NAME=RULE"),
        ("../x=spiculation >= 4", "must be NAME=RULE"),
        ("spiky=", "must be NAME=RULE"),
        ("margin=spiculation >= 4", "a name of its own, but 'margin' is taken"),
        ("spiky_random_1=spiculation >= 4", "is taken"),
        ("spiky=__import__('os').system('true') > 1", "must be a rule such as"),
        ("spiky=spiculation >= 4 or diameter > 3", "must be a rule such as"),
        ("spiky=4 <= spiculation", "must be a rule such as"),
        ("spiky=spiculation >= four", "must be a rule such as"),
    ],
)
def test_what_is_no_definition_is_one_sentence(text, sentence):
    with pytest.raises(LidcCdamError, match=sentence):
        define(text)


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("spiculaton > 1", "spiculaton is no column of the cohort; did you mean spiculation"),
        ("series_uid > 1", "series_uid is a column of words; choose one of"),
        ("spiculation > 5", "must fit at least one of 6 nodules, but it fits none"),
    ],
)
def test_a_rule_that_does_not_fit_the_cohort_is_one_sentence(rule, sentence):
    with pytest.raises(LidcCdamError, match=sentence):
        define(f"spiky={rule}").fits(COHORT)


def test_a_list_names_nodules(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("nodule_id,why\nc,x\na,y\nc,z\n")
    assert fitting(f"mine={path}") == "ac"
    path.write_text("nodule_id\na\nz\n")
    with pytest.raises(LidcCdamError, match=r"must list nodules of the cohort, but z is none \(1 of 2 are unknown\)"):
        fitting(f"mine={path}")
    path.write_text("nodule_id\n")
    with pytest.raises(LidcCdamError, match="the file has no row"):
        define(f"mine={path}")
    path.write_text("id\na\n")
    with pytest.raises(LidcCdamError, match="nodule_id is missing"):
        define(f"mine={path}")
    with pytest.raises(LidcCdamError, match=r"absent\.csv must name a CSV table"):
        define(f"mine={tmp_path / 'absent.csv'}")


def test_names_must_differ():
    with pytest.raises(LidcCdamError, match="at least once and under different names"):
        define_all(["x=diameter > 1", "x=diameter > 2"])
    with pytest.raises(LidcCdamError, match="got none"):
        define_all([])


def test_examples_are_training_nodules_and_controls_as_many():
    definition = define("x=spiculation >= 4")
    drawn = draw_examples(definition, definition.fits(COHORT), list("abcef"), 30, 3, (0, 1))
    assert set(drawn.concept) == {"b", "c"}
    assert drawn.available == 2
    assert [len(control) for control in drawn.controls] == [2, 2, 2]
    assert set().union(*drawn.controls) <= set("abcef")
    again = draw_examples(definition, definition.fits(COHORT), list("fecba"), 30, 3, (0, 1))
    assert again == drawn
    assert draw_examples(definition, definition.fits(COHORT), list("abcef"), 1, 3, (0, 1)).available == 2
    others = [draw_examples(definition, definition.fits(COHORT), list("abcdef"), 30, 3, (seed, 1)) for seed in range(5)]
    assert len({each.controls for each in others}) > 1
    with pytest.raises(LidcCdamError, match="must fit a training nodule of every fold"):
        draw_examples(definition, definition.fits(COHORT), ["a"], 30, 3, (0, 1))
