"""Codes of 4 bits: packing, and products, compiled in both ways and in numpy, against a loop."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.conftest import UseLibrary

from covector_server.kernels import nibbles
from covector_server.kernels.nibbles import BLOCK, BLOCK_BYTES, nibble_products, pack, packed_bytes, unpack


@pytest.fixture(params=["compiled", "narrow", "plain", "numpy"])
def either(request: pytest.FixtureRequest, use_library: UseLibrary) -> None:
    use_library(request.param, nibbles)


def made_codes(row_count: int, rank: int) -> np.ndarray:
    return np.random.default_rng(rank).integers(-7, 8, (row_count, rank), dtype=np.int8)


@pytest.mark.parametrize("rank", [1, 31, 32, 33, 63, 64, 65, 200])
@pytest.mark.parametrize("row_count", [0, 1, 5])
def test_what_is_packed_is_unpacked(rank: int, row_count: int) -> None:
    codes = made_codes(row_count, rank)
    packed = pack(codes)
    assert packed.shape == (row_count, packed_bytes(rank))
    np.testing.assert_array_equal(unpack(packed, rank), codes)


def test_leading_blocks_are_the_leading_coordinates() -> None:
    codes = made_codes(7, 4 * BLOCK)
    np.testing.assert_array_equal(unpack(pack(codes)[:, : 3 * BLOCK_BYTES], 3 * BLOCK), codes[:, : 3 * BLOCK])


@pytest.mark.parametrize("rank", [1, 32, 33, 64, 65, 128, 300, 9_000])
@pytest.mark.parametrize("vector_count", [1, 3])
@pytest.mark.parametrize("row_count", [0, 1, 5])
@pytest.mark.usefixtures("either")
def test_products_are_those_of_a_loop(rank: int, vector_count: int, row_count: int) -> None:
    codes = made_codes(row_count, rank)
    vectors = np.random.default_rng(1).standard_normal((vector_count, rank)).astype(np.float32)
    found = nibble_products(pack(codes), vectors)
    assert found.dtype == np.float32
    assert found.shape == (vector_count, row_count)
    for vector, products in zip(vectors, found, strict=True):
        for row, product in zip(codes, products, strict=True):
            expected = rounding = 0.0
            for start in range(0, rank, BLOCK):
                block = vector[start : start + BLOCK].astype(np.float64)
                expected += float(np.dot(row[start : start + BLOCK].astype(np.float64), block))
                rounding += 7 * len(block) * np.abs(block).max() / 127 / 2
            assert abs(product - expected) <= rounding * (1 + 1e-5)


@pytest.mark.usefixtures("either")
def test_vectors_of_integers_round_to_nothing() -> None:
    """With a largest number of 127 in each block, every product is exact: the two ways, and the loop, agree."""
    codes = made_codes(50, 3 * BLOCK)
    vectors = np.random.default_rng(2).integers(-127, 128, (2, 3 * BLOCK)).astype(np.float32)
    vectors[:, ::BLOCK] = 127
    np.testing.assert_array_equal(nibble_products(pack(codes), vectors), vectors @ codes.T.astype(np.float32))


@pytest.mark.usefixtures("either")
def test_the_largest_codes_and_vectors_stay_in_range() -> None:
    codes = np.full((3, 20 * BLOCK), 7, dtype=np.int8)
    codes[1] = -7
    vectors = np.full((1, 20 * BLOCK), 127.0, dtype=np.float32)
    np.testing.assert_array_equal(nibble_products(pack(codes), vectors)[0, :2], [7 * 127 * 1280.0, -7 * 127 * 1280.0])


@pytest.mark.usefixtures("either")
def test_a_vector_of_zeros_and_of_tiny_numbers() -> None:
    vectors = np.zeros((2, BLOCK), dtype=np.float32)
    vectors[1] = 1e-42
    assert np.all(np.abs(nibble_products(pack(made_codes(4, BLOCK)), vectors)) < 1e-30)


@pytest.mark.usefixtures("either")
def test_rows_apart() -> None:
    codes = made_codes(9, 4 * BLOCK)
    vectors = np.random.default_rng(3).standard_normal((1, 2 * BLOCK)).astype(np.float32)
    cut = pack(codes)[:, : 2 * BLOCK_BYTES]
    np.testing.assert_allclose(
        nibble_products(cut, vectors), nibble_products(np.ascontiguousarray(cut), vectors), rtol=1e-6
    )
