import numpy as np
import pandas as pd

from lidc_cdam import artifacts
from reports.measures import read_measures

IDENTITY = {"nodule_id": "a", "patient_id": "p", "fold": 0, "method": "cdam", "target": "margin", "metric": "fidelity"}


def test_values_are_by_nodule_and_the_middle_half_over_all(tmp_path):
    rows = [{**IDENTITY, "nodule_id": f"n{index}", "value": float(index)} for index in range(5)]
    rows += [{**IDENTITY, "method": "random", "nodule_id": "n0", "value": -1.0}]
    rows += [{**IDENTITY, "nodule_id": "n9", "value": np.nan}, {**IDENTITY, "method": "other", "value": 9.0}]
    artifacts.write_table(tmp_path / artifacts.EXPLAINERS, pd.DataFrame(rows), artifacts.EXPLAINER_COLUMNS)
    found = read_measures(tmp_path, ("cdam", "random"))
    assert found.of("cdam", "n3") == {"margin": {"fidelity": 3.0}}
    assert found.of("random", "n0") == {"margin": {"fidelity": -1.0}}
    assert found.of("cdam", "n9") == found.of("other", "a") == {}
    assert found.typical("cdam") == {"margin": {"fidelity": (1.0, 3.0)}}


def test_nothing_measured_is_no_error(tmp_path):
    assert read_measures(tmp_path, ("cdam",)).of("cdam", "a") == {}
