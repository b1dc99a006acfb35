"""Products of codes, compiled for several processors and in numpy, against a loop."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.conftest import UseLibrary

from covector_server.kernels import codes
from covector_server.kernels.codes import FEW, VECTOR_MAX, code_products


@pytest.fixture(params=["compiled", "narrow", "plain", "numpy"])
def either(request: pytest.FixtureRequest, use_library: UseLibrary) -> None:
    use_library(request.param, codes)


@pytest.mark.parametrize("rank", [1, 7, 8, 31, 32, 33, 64, 100, 256, 2_047, 2_049, 5_000])
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
        rounding = np.abs(vectors).max(axis=1, keepdims=True) / VECTOR_MAX / 2 * 128 * rank
        error = np.abs(found - np.array(expected).reshape(vector_count, row_count))
        assert np.all(error <= 1e-6 * reach + 1.001 * rounding)


@pytest.mark.usefixtures("either")
def test_vectors_in_any_layout() -> None:
    rng = np.random.default_rng(0)
    given = rng.integers(-128, 128, (10, 16), dtype=np.int8)
    vectors = rng.standard_normal((16, 3)).astype(np.float32)
    expected = vectors.T @ given.T.astype(np.float32)
    np.testing.assert_allclose(code_products(given, vectors.T), expected, rtol=1e-4, atol=0.1)


@pytest.mark.usefixtures("either")
def test_vectors_of_integers_round_to_nothing() -> None:
    rng = np.random.default_rng(1)
    given = rng.integers(-128, 128, (50, 300), dtype=np.int8)
    vectors = rng.integers(-100, 101, (2, 300)).astype(np.float32)
    vectors[:, 0] = VECTOR_MAX
    np.testing.assert_allclose(code_products(given, vectors), vectors @ given.T.astype(np.float32), rtol=1e-6)


@pytest.mark.usefixtures("either")
def test_the_largest_codes_and_vectors_stay_in_range() -> None:
    given = np.full((5, 9_000), -128, dtype=np.int8)
    found = code_products(given, np.full((1, 9_000), -3e10, dtype=np.float32))
    np.testing.assert_allclose(found, np.full((1, 5), 128 * 3e10 * 9_000), rtol=1e-5)


@pytest.mark.usefixtures("either")
def test_a_vector_of_zeros_and_of_tiny_numbers() -> None:
    vectors = np.zeros((2, 40), dtype=np.float32)
    vectors[1] = 1e-42
    assert np.all(np.abs(code_products(np.full((3, 40), 5, dtype=np.int8), vectors)) < 1e-30)
