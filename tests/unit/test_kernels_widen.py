"""float16 to float32, compiled and in numpy: every float16 there is."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.conftest import UseLibrary

from covector_server.kernels import widen
from covector_server.kernels.widen import BRIEF_ELEMENTS


@pytest.fixture(params=["compiled", "plain", "numpy"])
def either(request: pytest.FixtureRequest, use_library: UseLibrary) -> None:
    use_library(request.param, widen, "LIBRARY", "BRIEF")


@pytest.mark.usefixtures("either")
def test_every_float16() -> None:
    narrow = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(4, -1)
    wide = np.empty(narrow.shape, dtype=np.float32)
    widen.widen(narrow, wide)
    np.testing.assert_array_equal(wide, narrow.astype(np.float32))


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, BRIEF_ELEMENTS + 3])
@pytest.mark.usefixtures("either")
def test_any_count_and_layout(count: int) -> None:
    narrow = np.random.default_rng(0).standard_normal((2, count)).astype(np.float16)
    wide = np.full((2, count + 1), 7, dtype=np.float32)
    widen.widen(narrow, wide[:, :count])
    widen.widen(narrow[:, ::-1], wide[:, :count][:, ::-1])
    np.testing.assert_array_equal(wide[:, :count], narrow)
    np.testing.assert_array_equal(wide[:, count], 7)
    straight = np.empty((2, count), dtype=np.float32)
    widen.widen(narrow.astype(np.float32), straight)
    widen.widen(narrow, straight)
    np.testing.assert_array_equal(straight, narrow)
