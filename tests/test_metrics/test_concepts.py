import numpy as np
import pandas as pd
import pytest
import torch

from lidc_cdam.metrics.concepts import lines_of, measure_concept, summarised


def world(seed=0):
    rng = torch.Generator().manual_seed(seed)
    consensus = torch.zeros(2, 8, 8, dtype=torch.bool)
    consensus[:, 2:6, 2:6] = True
    return torch.rand(4, 2, 4, 4, generator=rng), consensus, torch.ones(2, 8, 8, dtype=torch.bool)


def test_a_map_on_the_nodule_has_all_its_mass_there():
    scores, consensus, read = world()
    scores[0] = -1.0
    scores[0, :, 1:3, 1:3] = 1.0
    found = measure_concept(scores, np.array([3.0, 1.0, 2.0, 3.0]), consensus, read)
    assert found["mass"] == 1.0
    assert found["mass_control"] < 1.0
    assert found["mass_chance"] == 0.25
    assert (found["likeness"], found["likeness_control"]) == (3.0, 2.0)


def test_a_map_like_the_controls_correlates_as_they_do():
    scores, consensus, read = world()
    same = scores[:1].expand(4, -1, -1, -1).clone()
    found = measure_concept(same, np.ones(4), consensus, read)
    assert found["alike"] == pytest.approx(1.0)
    assert found["alike_control"] == pytest.approx(1.0)
    found = measure_concept(torch.cat([-same[:1], same[1:]]), np.ones(4), consensus, read)
    assert found["alike"] == pytest.approx(-1.0)
    expected = [
        np.corrcoef(scores[a, v].flatten(), scores[b, v].flatten())[0, 1]
        for a in range(3)
        for b in range(a)
        for v in (0, 1)
    ]
    found = measure_concept(torch.cat([scores[:1], scores[:3]]), np.ones(4), consensus, read)
    assert found["alike_control"] == pytest.approx(np.mean(expected), abs=1e-6)


def test_only_what_was_read_counts_and_a_view_without_the_nodule_has_no_answer():
    scores, consensus, read = world()
    read[:, :, 6:] = False
    found = measure_concept(scores, np.ones(4), consensus, read)
    assert found["mass_chance"] == pytest.approx(16 / 48)
    consensus[0] = False
    assert np.isfinite(measure_concept(scores, np.ones(4), consensus, read)["mass"])
    consensus[1] = False
    assert np.isnan(measure_concept(scores, np.ones(4), consensus, read)["mass"])


def table(likeness, fits):
    rows = []
    for place, (own, fit) in enumerate(zip(likeness, fits, strict=True)):
        figures = {"mass": 0.6, "mass_control": 0.4, "mass_chance": 0.2, "alike": 0.8, "alike_control": 0.9}
        figures |= {"likeness": own, "likeness_control": 0.0, "fits": fit}
        identity = {"nodule_id": f"n{place}", "patient_id": f"p{place}", "fold": place % 2, "concept": "spiky"}
        rows += [{**identity, "method": "cdam", "metric": metric, "value": value} for metric, value in figures.items()]
    return pd.DataFrame(rows)


def test_likenesses_are_ranked_within_their_fold():
    # Fold 1 lies a hundred higher; within each fold those that fit score above the others.
    likeness = [0.0, 100.0, 1.0, 101.0, 2.0, 102.0, 3.0, 103.0]
    fits = [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    found = summarised(table(likeness, fits))["concepts"]["spiky"]["cdam"]
    assert found["tells"]["value"] == 1.0
    assert found["tells_control"]["value"] == 0.5
    assert found["tells_difference"]["value"] == 0.5
    assert found["mass_difference"]["value"] == pytest.approx(0.2)
    assert found["alike_difference"]["value"] == pytest.approx(-0.1)
    assert found["fit"] == 4


def test_a_listed_concept_has_no_auc():
    summary = summarised(table([1.0, 2.0, 3.0, 4.0], [np.nan] * 4))
    assert "tells" not in summary["concepts"]["spiky"]["cdam"]
    lines = lines_of(summary, ["spiky", "unknown"], "cdam")
    assert lines[0].startswith("spiky by cdam, 4 nodules")
    assert "relevance mass: 0.600 [0.600, 0.600]; controls 0.400 [0.400, 0.400]; difference +0.200" in lines[1]
    assert len(lines) == 3
