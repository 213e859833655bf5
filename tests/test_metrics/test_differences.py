import numpy as np
import pandas as pd
import pytest

from lidc_cdam.metrics.differences import FLOOR, enough, holm, paired_differences, two_sided


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_two_sided_p_of_replicates() -> None:
    drawn = np.array([-1.0, 1, 1, 1, 1, 1, 1, 1, 1])
    assert two_sided(drawn) == pytest.approx(2 * 2 / 10)
    assert two_sided(np.abs(drawn)) == pytest.approx(2 / 10)
    assert two_sided(np.zeros(9)) == 1
    assert two_sided(np.full(9, np.nan)) is None


def test_p_is_uniform_without_a_difference_and_small_with_one() -> None:
    rng = np.random.default_rng(0)
    patients = [f"p{index // 2}" for index in range(120)]
    p = []
    for _ in range(200):
        values = rng.normal(size=(120, 2))
        wide = pd.DataFrame(values, columns=pd.MultiIndex.from_product([["a", "b"], ["m"]], names=["method", "metric"]))
        p.append(paired_differences(wide, patients, 400)[0]["p"])
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.09
    assert 0.4 <= np.mean(p) <= 0.6


def test_pairs_are_within_a_metric_and_over_common_nodules() -> None:
    rng = np.random.default_rng(1)
    names = pd.MultiIndex.from_product([["a", "b", "c"], ["m", "n"]], names=["method", "metric"])
    wide = pd.DataFrame(rng.normal(size=(60, 6)), columns=names)
    wide["a", "m"] += 2
    wide.loc[:9, ("a", "m")] = np.nan
    found = {
        (each["metric"], each["first"], each["second"]): each
        for each in paired_differences(wide, [str(i) for i in range(60)], 700)
    }
    assert len(found) == 6
    first = found["m", "a", "b"]
    assert first["value"] == pytest.approx((wide["a", "m"] - wide["b", "m"]).mean())
    assert first["nodules"] == 50
    assert first["low"] > 0
    assert first["p"] == pytest.approx(2 / 701)
    assert first["p_holm"] == pytest.approx(3 * first["p"])
    assert found["n", "a", "b"]["p_holm"] > 0.05


def test_equal_methods_have_no_difference() -> None:
    names = pd.MultiIndex.from_product([["a", "b"], ["m"]], names=["method", "metric"])
    values = np.random.default_rng(2).normal(size=40)
    found = paired_differences(pd.DataFrame(np.stack([values, values + 1e-15], 1), columns=names), list("ab" * 20), 100)
    assert (found[0]["value"], found[0]["p"]) == (0, 1)


def test_many_methods_can_still_differ_after_the_correction() -> None:
    names = pd.MultiIndex.from_product([[f"m{number}" for number in range(15)], ["m"]], names=["method", "metric"])
    wide = pd.DataFrame(np.random.default_rng(0).normal(size=(30, 15)), columns=names)
    wide["m0", "m"] += 9
    found = paired_differences(wide, [str(i) for i in range(30)], 20)
    assert min(record["p_holm"] for record in found) == pytest.approx(FLOOR, rel=1e-3)
    assert (enough(2, 2000), enough(15, 2000), enough(1, 20)) == (2000, 20999, 20)


def test_a_target_that_one_method_does_not_answer_is_left_out_of_the_pair() -> None:
    names = pd.MultiIndex.from_product([["a", "b"], ["s", "t"], ["m"]], names=["method", "target", "metric"])
    wide = pd.DataFrame([[1.0, 9.0, 0.0, np.nan], [2.0, 5.0, 1.0, 4.0], [3.0, np.nan, np.nan, 1.0]], columns=names)
    found = paired_differences(wide, list("xyz"), 50)[0]
    assert (found["value"], found["nodules"]) == (1, 2)
