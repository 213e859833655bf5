from pathlib import Path

import pytest
from test_reports import world

from reports.stage import report


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[world.World, Path]:
    """A made-up cohort and its reports, both runs in the same documents; tests only read it."""
    root = tmp_path_factory.mktemp("reports")
    cohort = world.make(root)
    out = root / "reports"
    report(cohort.biomarkers, out, also_run=cohort.malignancy)
    return cohort, out
