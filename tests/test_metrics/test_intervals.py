import numpy as np
import pytest
from scipy.stats import binomtest

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.metrics import weighted
from lidc_cdam.metrics.intervals import bootstrap, column_means, difference, draw_weights, proportion

PATIENTS = ["a", "a", "a", "b", "c", "c"]


def test_all_nodules_of_a_drawn_patient_come_together() -> None:
    weights = draw_weights(PATIENTS, 200, seed=1)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 4] == weights[:, 5]).all()
    # As many patients as there are, whatever their number of nodules.
    assert (weights[:, [0, 3, 4]].sum(1) == 3).all()
    assert weights.max() == 3


def test_weights_stand_for_copies_of_nodules() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=6)
    weights = draw_weights(PATIENTS, 20, seed=2)
    copies = [np.repeat(values, row.astype(int)).mean() for row in weights]
    np.testing.assert_allclose(weighted.mean(values)(weights), copies)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    patients = [f"p{index // 3}" for index in range(180)]
    hits = 0
    for repetition in range(200):
        # Nodules of one patient share an effect, which an interval over nodules would miss.
        values = np.repeat(rng.normal(size=60), 3) + 0.3 * rng.normal(size=180)
        found = bootstrap(weighted.mean(values), patients, replicates=300, seed=repetition)
        hits += found.low <= 0 <= found.high
    assert 0.89 <= hits / 200 <= 0.99


def test_nodule_level_interval_would_be_too_narrow() -> None:
    values = np.repeat(np.random.default_rng(4).normal(size=60), 3)
    by_patient = bootstrap(weighted.mean(values), [f"p{index // 3}" for index in range(180)])
    by_nodule = bootstrap(weighted.mean(values), [f"p{index}" for index in range(180)])
    assert by_patient.high - by_patient.low > 1.4 * (by_nodule.high - by_nodule.low)


def test_paired_difference_sees_the_same_replicates() -> None:
    rng = np.random.default_rng(5)
    patients = [f"p{index}" for index in range(50)]
    values = rng.normal(size=50)
    found = bootstrap(difference(weighted.mean(values + 0.5), weighted.mean(values)), patients)
    assert found.value == pytest.approx(0.5)
    assert found.low == pytest.approx(0.5)
    assert found.high == pytest.approx(0.5)


def test_replicates_without_an_answer_are_left_out_and_counted() -> None:
    labels = np.array([1.0, 0, 0, 0])
    found = bootstrap(weighted.auc(np.array([3.0, 1, 2, 0]), labels), ["a", "b", "c", "d"], replicates=1000, seed=0)
    # Patient a, the only positive, is not drawn with probability (3/4)^4 = 0.316; drawn alone with 1/256.
    assert 250 < found.skipped < 390
    assert found.value == 1
    assert found.as_dict()["skipped"] == found.skipped


def test_a_figure_that_never_has_an_answer_is_null_in_json() -> None:
    found = bootstrap(weighted.auc(np.array([1.0, 2.0]), np.array([1.0, 1.0])), ["a", "b"], replicates=10)
    assert found.as_dict() == {"value": None, "low": None, "high": None, "skipped": 10}


def test_column_means_equal_one_column_at_a_time() -> None:
    rng = np.random.default_rng(6)
    values = rng.normal(size=(6, 3))
    values[1, 2] = np.nan
    weights = draw_weights(PATIENTS, 100, seed=0)
    found = column_means(values, weights)
    for column in (0, 1):
        alone = bootstrap(weighted.mean(values[:, column]), PATIENTS, replicates=100, seed=0)
        assert (found[column].value, found[column].low) == pytest.approx((alone.value, alone.low))
    assert found[2].value == pytest.approx(np.nanmean(values[:, 2]))


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.arange(6.0)
    first, second, other = (bootstrap(weighted.mean(values), PATIENTS, 50, seed=seed) for seed in (7, 7, 8))
    assert first == second
    assert first.value == other.value
    assert (draw_weights(PATIENTS, 50, seed=7) != draw_weights(PATIENTS, 50, seed=8)).any()


def test_replicates_must_be_positive() -> None:
    with pytest.raises(LidcCdamError, match=r"--replicates must be at least 1; got 0\."):
        draw_weights(["a"], 0)


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (10, 10), (3, 10), (450, 500)])
def test_a_share_has_wilsons_interval(hits, trials):
    found = proportion(hits, trials)
    expected = binomtest(hits, trials).proportion_ci(method="wilson")
    assert (found.value, found.low, found.high) == pytest.approx((hits / trials, expected.low, expected.high), abs=1e-9)
    assert np.isnan(proportion(0, 0).value)
