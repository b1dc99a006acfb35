"""The products of a scan, judged by float64, and the claim that their error stays within its bound."""

from __future__ import annotations

import numpy as np
import pytest

from covector_server.query.kernel import BLOCK_DIM, RELATIVE_ERROR, exact_products, fast_products


def rows_and_vectors(dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((9, dim)).astype(np.float16)
    rows[3] = 0
    return rows, rng.standard_normal((4, dim))


@pytest.mark.parametrize("dim", [1, 7, BLOCK_DIM - 1, BLOCK_DIM, BLOCK_DIM + 1, 5 * BLOCK_DIM + 3, 1 << 20])
def test_fast_products_stay_within_the_bound(dim: int) -> None:
    rows, vectors = rows_and_vectors(dim, dim)
    products, norms = fast_products(rows, vectors.astype(np.float32))
    wide = rows.astype(np.float64)
    exact_norms = np.linalg.norm(wide, axis=1)
    sizes = np.linalg.norm(vectors, axis=1)[:, None] * exact_norms
    assert (np.abs(products - vectors @ wide.T) <= RELATIVE_ERROR * sizes).all()
    np.testing.assert_allclose(norms, exact_norms, rtol=RELATIVE_ERROR)


def test_the_bound_holds_where_every_rounding_goes_the_same_way() -> None:
    """Equal positive products: the running sum of float32 is rounded down at each step."""
    rows = np.full((2, 1 << 20), 1.0009765625, dtype=np.float16)
    vectors = np.full((1, 1 << 20), 1.0000001192092896)
    products, norms = fast_products(rows, vectors.astype(np.float32))
    exact = float(rows[0, 0]) * vectors[0, 0] * (1 << 20)
    assert abs(products[0, 0] - exact) <= RELATIVE_ERROR * np.linalg.norm(vectors) * norms[0]


def test_rows_may_lie_anywhere_in_memory() -> None:
    """A mapped chunk starts at any byte, and a tile may be a slice of wider rows."""
    rows, vectors = rows_and_vectors(3000, 1)
    buffer = np.zeros(rows.nbytes + 1, dtype=np.uint8)
    shifted = buffer[1:].view(np.float16).reshape(rows.shape)
    shifted[:] = rows
    assert not shifted.flags.aligned
    strided = np.repeat(rows, 2, axis=0)[::2]
    for other in (shifted, strided):
        np.testing.assert_array_equal(
            fast_products(other, vectors.astype(np.float32))[0], fast_products(rows, vectors.astype(np.float32))[0]
        )
        np.testing.assert_array_equal(exact_products(other, vectors)[0], exact_products(rows, vectors)[0])


@pytest.mark.parametrize("dim", [1, 3, 64, 1000, 1025, 4096, 4097, 8193, 70_001])
def test_equal_rows_have_equal_exact_products_wherever_they_stand(dim: int) -> None:
    rng = np.random.default_rng(dim)
    row, vectors = rng.standard_normal(dim).astype(np.float16), rng.standard_normal((2, dim))
    products, norms = exact_products(np.tile(row, (13, 1)), vectors)
    assert (products == products[:, :1]).all()
    assert (norms == norms[0]).all()
    for row_count in (1, 2, 5, 300):
        again, _ = exact_products(np.tile(row, (row_count, 1)), vectors)
        assert (again == products[:, :1]).all()
    np.testing.assert_allclose(products[:, 0], vectors @ row.astype(np.float64), rtol=0, atol=1e-12 * dim)
