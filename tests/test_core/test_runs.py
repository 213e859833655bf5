import pytest

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.runs import fold_numbers, read_config, shown_words


def test_a_configuration_is_read_as_it_was_written(tmp_path):
    (tmp_path / "config.yaml").write_text("data: DATA\nviews: [axial]\ntargets: [margin]\n")
    assert read_config(tmp_path) == {"data": "DATA", "views": ["axial"], "targets": ["margin"]}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, r"--run must be the folder of a run, but .*config\.yaml is missing; run `lidc-cdam crossval --out"),
        ("a: [", r"config\.yaml must be YAML, but it cannot be read"),
        ("", r"config\.yaml must name data and views; run `lidc-cdam crossval` again\."),
        ("data: DATA\nviews: []\n", r"config\.yaml must name views;"),
        ("data: 5\nviews: [axial]\n", r"must name a folder or file under `data`, but it has 5; run"),
        (
            "data: DATA\nsplits: [a]\nviews: [axial]\n",
            r"must name a folder or file under `splits`, but it has \['a'\];",
        ),
        ("data: DATA\nviews: 7\n", r"must list views of axial, coronal, sagittal, but it has 7; run"),
        ("data: DATA\nviews: [{a: b}]\n", r"must list views of axial, coronal, sagittal, but it has"),
    ],
)
def test_what_is_no_configuration_is_told(tmp_path, text, sentence):
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(LidcCdamError, match=sentence):
        read_config(tmp_path)


def test_the_option_that_named_a_run_is_told(tmp_path):
    with pytest.raises(LidcCdamError, match=r"^--also-run must be the folder of a run"):
        read_config(tmp_path, "--also-run")


def test_folds_come_in_the_order_of_their_numbers_and_copies_are_passed_over(tmp_path):
    for name in ("fold_10", "fold_2", "fold_0 copy", "fold_", "fold_3"):
        (tmp_path / name).mkdir()
        if name != "fold_3":
            (tmp_path / name / "model.json").touch()
    assert fold_numbers(tmp_path, "model.json") == [2, 10]
    assert fold_numbers(tmp_path / "absent", "model.json") == []


def test_results_say_what_models_are_shown():
    assert shown_words({"mask_channel": False}) == []
    words = " ".join(shown_words({"mask_channel": True, "radiomics": True}))
    assert "only nodules that someone has outlined" in words
    assert "image's part of the output alone" in words
    assert "radiomics say already" not in words
    fitted = shown_words({"mask_channel": True, "radiomics": True, "side_head": "kernel"})
    assert fitted[:-1] == shown_words({"mask_channel": True, "radiomics": True})
    assert "maps show nothing that radiomics say already" in fitted[-1]
