"""Fixtures that several rooms share."""

from pathlib import Path

import pytest
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("lidc_cdam", "preprocessing", "training", "reports")
UNCHECKED = ("preprocessing.selection",)
"""Modules whose tests give wrong types on purpose, as a user's YAML file may."""


def _checked_modules() -> list[str]:
    # Packages are left out: the hook takes a name with all that is below it.
    paths = (path for room in ROOMS for path in (ROOT / room).rglob("*.py") if path.stem != "__init__")
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    return [name for name in names if name not in UNCHECKED]


# Tests check types and shapes of the rooms' functions. This stands before the first import of a room.
install_import_hook(_checked_modules(), "typechecker.check")

SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the LIDC-IDRI sample; a test that asks for it is marked `data`."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the LIDC-IDRI sample is not beside the checkout (../shared/data)")
    return SHARED_DATA


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small tensors are slower on many threads, and tests run side by side."""
    import torch

    torch.set_num_threads(1)
