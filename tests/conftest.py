"""Fixtures that several rooms share."""

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


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
