"""Products of codes, compiled and in numpy, against a loop."""

from __future__ import annotations

import numpy as np
import pytest

from covector_server.kernels import codes, library
from covector_server.kernels.codes import FEW, code_products


@pytest.fixture(params=["compiled", "numpy"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "numpy":
        monkeypatch.setattr(codes, "LIBRARY", None)
    else:
        assert library.LIBRARY is not None, "python native/compile.py"


@pytest.mark.parametrize("rank", [1, 7, 8, 31, 32, 33, 64, 100, 256])
@pytest.mark.parametrize("vector_count", [1, 3, FEW, FEW + 1])
@pytest.mark.parametrize("row_count", [0, 1, 4, 9])
@pytest.mark.usefixtures("either")
def test_products_are_those_of_a_loop(rank: int, vector_count: int, row_count: int) -> None:
    rng = np.random.default_rng(rank)
    wide = rng.integers(-128, 128, (row_count, rank + 5), dtype=np.int8)
    vectors = rng.standard_normal((vector_count, rank)).astype(np.float32)
    for given in (wide[:, :rank], np.ascontiguousarray(wide[:, :rank])):
        found = code_products(given, vectors)
        assert found.dtype == np.float32
        expected = [
            [sum(float(c) * float(v) for c, v in zip(row, vector, strict=True)) for row in given] for vector in vectors
        ]
        reach = np.abs(vectors).sum(axis=1, keepdims=True) * 128
        assert np.all(np.abs(found - np.array(expected).reshape(vector_count, row_count)) <= 1e-6 * reach)


@pytest.mark.usefixtures("either")
def test_vectors_in_any_layout() -> None:
    rng = np.random.default_rng(0)
    given = rng.integers(-128, 128, (10, 16), dtype=np.int8)
    vectors = rng.standard_normal((16, 3)).astype(np.float32)
    np.testing.assert_allclose(code_products(given, vectors.T), vectors.T @ given.T.astype(np.float32), rtol=1e-4)
