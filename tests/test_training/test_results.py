import pytest

from training.results import told_interval, told_summary

FIGURE = {"value": 0.9, "low": 0.85, "high": 0.95}
BOTH = {"malignancy": {"accuracy": FIGURE, "auc": FIGURE}}


def test_an_earlier_versions_summary_is_still_told():
    lines = told_summary({"metrics": BOTH, "noise_floor": {}, "baselines": {"ruler": BOTH}})
    assert [line.split("  ")[0] for line in lines] == ["Malignancy", "", ""]
    assert "mean reader diameter with one threshold" in lines[2]
    margin = {"z_mse": FIGURE, "r2": FIGURE}
    lines = told_summary({"metrics": {"margin": margin}, "noise_floor": {"margin": 0.27}, "baselines": {}})
    assert "radiomics" not in lines[0]
    assert lines[1].split() == ["Margin", "0.900", "(0.850", "to", "0.950)", "0.270", "0.900"]


def test_every_rival_has_its_line_and_its_difference():
    names = ("ruler", "radiomics", "radiomics_kernel", "readers_logistic", "one_reader")
    baselines = dict.fromkeys(names, BOTH) | {f"model_minus_{name}": BOTH for name in names}
    lines = told_summary(
        {"metrics": BOTH, "noise_floor": {}, "baselines": baselines, "bottleneck": {"metrics": BOTH["malignancy"]}}
    )
    told = "\n".join(lines)
    for words in ("model", "concept bottleneck", "radiomics of the consensus mask", "one reader against the others"):
        assert f"  {words}  " in told
    for words in ("radiomics", "radiomics by kernel ridge"):
        assert f"AUC minus that of {words}: 0.900 (0.850 to 0.950)" in told
    assert len({line.index("0.900 (0.850") for line in lines[1:8]}) == 1


def test_an_absent_baseline_is_told_with_its_reason():
    summary = {"metrics": BOTH, "noise_floor": {}, "baselines": {}, "absent": {"radiomics": "The masks are missing."}}
    assert told_summary(summary)[-1] == "No radiomics: The masks are missing."


@pytest.mark.parametrize("figure", [None, {"value": None, "low": None, "high": None}])
def test_what_is_not_defined_is_a_dash(figure):
    assert told_interval(figure) == "-"
