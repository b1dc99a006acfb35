"""A symmetric matrix times a vector, compiled for several processors and in numpy, against the whole matrix."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.conftest import UseLibrary

from covector.attribution.preconditioner import ByLayer, Dense, LowRank
from covector_server.fit.served_map import SymmetricDense, served
from covector_server.kernels import symmetric
from covector_server.kernels.symmetric import symmetric_product


@pytest.fixture(params=["compiled", "plain", "numpy"])
def either(request: pytest.FixtureRequest, use_library: UseLibrary) -> None:
    use_library(request.param, symmetric)


def symmetric_matrix(dim: int) -> np.ndarray:
    half = np.random.default_rng(dim).standard_normal((dim, dim))
    return half + half.T


@pytest.mark.parametrize("dim", [1, 2, 7, 8, 9, 16, 17, 31, 40, 129, 600])
@pytest.mark.usefixtures("either")
def test_products_are_those_of_the_whole_matrix(dim: int) -> None:
    matrix, vector = symmetric_matrix(dim), np.random.default_rng(1).standard_normal(dim)
    bound = 2 * dim * 2.0**-53 * (np.abs(matrix) @ np.abs(vector))
    assert np.all(np.abs(symmetric_product(matrix, vector) - matrix @ vector) <= bound)
    np.testing.assert_array_equal(symmetric_product(matrix, np.zeros(dim)), np.zeros(dim))


def test_nothing_below_the_diagonal_is_read() -> None:
    matrix, vector = symmetric_matrix(50), np.arange(50.0)
    upper = matrix.copy()
    upper[np.tril_indices(50, -1)] = np.nan
    np.testing.assert_array_equal(symmetric_product(upper, vector), symmetric_product(matrix, vector))


def test_maps_of_a_server_are_the_same_maps() -> None:
    rng = np.random.default_rng(0)
    low_rank = LowRank(np.linalg.qr(rng.standard_normal((20, 3)))[0], np.array([0.9, 0.5, 0.1]), 2.0)
    plain = ByLayer(((0, 30, Dense(symmetric_matrix(30), 0.5)), (30, 50, low_rank)))
    found = served(plain)
    assert isinstance(found, ByLayer)
    assert isinstance(found.parts[0][2], SymmetricDense)
    assert found.parts[1][2] is low_rank
    for count in (1, 2):
        vectors = rng.standard_normal((count, 50))
        np.testing.assert_allclose(found.apply(vectors), plain.apply(vectors), rtol=1e-12, atol=1e-12)
