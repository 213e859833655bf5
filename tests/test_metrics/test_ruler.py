import numpy as np

from lidc_cdam.metrics.ruler import best_constant, best_threshold


def test_best_constant_beats_every_other() -> None:
    true = np.round(np.random.default_rng(3).gamma(2, 1, 80) * 3) / 3
    own = (np.abs(true - best_constant(true)) <= 1 + 1e-9).mean()
    assert all((np.abs(true - other) <= 1 + 1e-9).mean() <= own for other in np.arange(0, 10, 1 / 30))


def test_best_threshold_beats_every_other() -> None:
    rng = np.random.default_rng(4)
    label = (rng.random(80) < 0.5).astype(float)
    values = np.round(label + rng.normal(size=80), 1)
    own = ((values > best_threshold(values, label)) == label).mean()
    assert all(((values > other) == label).mean() <= own for other in np.arange(-5, 5, 0.05))
    assert best_threshold(np.array([1.0, 2, 3, 4]), np.array([0.0, 0, 1, 1])) == 2.5
