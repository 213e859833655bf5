import pytest

from lidc_cdam import quality


def test_a_flag_is_told_with_its_details_and_its_meaning():
    assert quality.flag_words(quality.GAP).startswith("Gap: slices are missing: ")
    told = quality.flag_words("wide reader range: margin, texture")
    assert told == f"Wide reader range (margin, texture): {quality.FLAGS[quality.WIDE_RANGE]}."
    assert quality.flag_words("of another version") == "Of another version."


def test_every_flag_has_a_meaning():
    named = {value for name, value in vars(quality).items() if name.isupper() and isinstance(value, str)}
    assert named - {quality.BETWEEN} == set(quality.FLAGS)
    assert not any(quality.BETWEEN.strip() in flag or ":" in flag for flag in quality.FLAGS)


@pytest.mark.parametrize(
    ("cell", "flags"),
    [("gap; irregular z", ("gap", "irregular z")), (" gap ;", ("gap",)), ("", ()), (float("nan"), ()), (None, ())],
)
def test_flags_of_a_tables_cell(cell, flags):
    assert quality.read_flags(cell) == flags


def test_flags_of_several_sources_stand_once_in_their_order():
    assert quality.merge_flags(("gap", "padded"), ["padded", "irregular z"], ()) == ("gap", "padded", "irregular z")
