import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from lidc_cdam.kernel import matern
from training import kernel
from training.kernel import NOISE, fit_kernel

KEYS = ("malignancy", "margin", "diameter")
PATIENTS = [f"P{index // 2:02d}" for index in range(60)]
"""Two nodules each."""


@pytest.fixture(scope="module")
def task():
    """Numbers that tell a diameter exactly, malignancy with doubt (every fifth label is missing), a margin never."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(60, 4)).astype(np.float32)
    malignant = (features[:, 0] + 0.5 * generator.normal(size=60) > 0).astype(np.float32)
    malignant[::5] = np.nan
    columns = [malignant, generator.normal(size=60), features[:, 1] - 0.5 * features[:, 2]]
    return features, np.stack(columns, 1).astype(np.float32)


def answers_of(fit, features):
    return fit.head(torch.from_numpy(features)).numpy()


def ridge(features, values, asked, noise):
    known, new = (torch.from_numpy(part).double() for part in (features, asked))
    solved = np.linalg.solve(matern(known, known).numpy() + noise * np.eye(len(known)), values)
    return matern(new, known).numpy() @ solved


def test_left_out_answers_are_those_of_a_regression_without_the_patient(task, monkeypatch):
    monkeypatch.setattr(kernel, "NOISE", (0.3,))
    features, wanted = task
    fit = fit_kernel(features, wanted, PATIENTS, KEYS)
    values = wanted[:, 1:].astype(np.float64)
    mean = values.mean(0)
    for patient in ("P00", "P17"):
        own = np.array(PATIENTS) == patient
        alone = ridge(features[~own], (values - mean)[~own], features[own], 0.3) + mean
        np.testing.assert_allclose(fit.held_out[own, 1:], alone, atol=1e-5)
    whole = ridge(features, values - mean, features, 0.3) + mean
    np.testing.assert_allclose(answers_of(fit, features)[:, 1:], whole, atol=1e-4)


def test_each_target_takes_the_noise_that_it_has(task):
    features, wanted = task
    likeness, values = matern(*[torch.from_numpy(features).double()] * 2).numpy(), wanted[:, 1:].astype(np.float64)
    weights, answers = kernel._ridge(likeness, values, np.array(PATIENTS))
    for column, noise in ((0, NOISE[-1]), (1, NOISE[0])):
        expected = np.linalg.solve(likeness + noise * np.eye(60), values[:, column])
        np.testing.assert_allclose(weights[:, column], expected, atol=1e-9)
    assert ((answers - values) ** 2).mean(0)[1] < 0.1 * values[:, 1].var()


def test_malignancy_is_a_logit_learnt_from_the_nodules_that_have_a_label(task):
    features, wanted = task
    fit = fit_kernel(features, wanted, PATIENTS, KEYS)
    decided = ~np.isnan(wanted[:, 0])
    left_out = fit.held_out[decided, 0]
    assert roc_auc_score(wanted[decided, 0], left_out) > 0.8
    probability = 1 / (1 + np.exp(-left_out))
    assert abs(probability.mean() - wanted[decided, 0].mean()) < 0.03
    assert np.isfinite(fit.held_out).all()
    assert not fit.held_out[~decided, 0].any()
    assert not fit.head.weights[~decided, 0].any()
    other = wanted.copy()
    other[~decided, 1:] = 0
    np.testing.assert_array_equal(
        answers_of(fit_kernel(features, other, PATIENTS, KEYS), features)[:, 0], answers_of(fit, features)[:, 0]
    )


def test_the_same_numbers_give_the_same_head(task):
    first, second = (fit_kernel(*task, PATIENTS, KEYS) for _ in range(2))
    assert np.array_equal(first.held_out, second.held_out)
    assert all(torch.equal(first.head.state_dict()[name], value) for name, value in second.head.state_dict().items())
