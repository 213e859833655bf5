"""The rooms' functions check types and shapes while tests run (`conftest.py`)."""

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from lidc_cdam.geometry import Grid, origin_of_cube, take_view


def test_a_wrong_shape_is_refused():
    with pytest.raises(TypeCheckError, match="cube"):
        take_view(np.zeros((2, 2)), "axial", 0)


def test_a_wrong_type_is_refused():
    with pytest.raises(TypeCheckError, match="view"):
        take_view(np.zeros((2, 2, 2)), 0, 0)


def test_a_whole_number_is_a_number():
    assert origin_of_cube((16, 16, 16), Grid(32, 1)) == (0, 0, 0)
