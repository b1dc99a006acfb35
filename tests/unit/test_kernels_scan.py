"""The compiled products of a scan against float64, on every path that this processor has, and without the library."""

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from covector_server.kernels import library, scan
from covector_server.kernels.scan import (
    COMPILED_ERROR,
    NUMPY_ERROR,
    ChunkedRows,
    exact_products,
    fast_products,
    path_count,
    relative_error,
)

DIMS = [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 100, 511, 512, 513, 1000, 1024, 2047, 2048, 2049, 4100]
COUNTS = [1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 24, 25, 64]
PATHS = [None, *range(path_count())]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> ctypes.CDLL:
    """The library as a processor without the instructions would run it."""
    sources = Path(__file__).resolve().parents[2] / "native"
    built = tmp_path_factory.mktemp("plain") / "plain.so"
    command = ["cc", "-std=c11", "-O1", "-fPIC", "-shared", "-DCOVECTOR_PLAIN", "-pthread"]
    subprocess.run([*command, *map(str, sorted(sources.glob("*.c"))), "-o", str(built), "-lm"], check=True)
    loaded = library.load(built)
    assert loaded is not None
    assert loaded.covector_scan_paths() == 1
    return loaded


def check(rows: np.ndarray, vectors: np.ndarray, path: int | None, bound: float) -> None:
    """Asserts the claims of both kinds of products. rows: float16[n, dim]; vectors: float64[m, dim]."""
    wide = rows.astype(np.float64)
    expected, sizes = vectors @ wide.T, np.linalg.norm(wide, axis=1)
    scale = np.linalg.norm(vectors, axis=1)[:, None] * sizes
    products, norms = fast_products(ChunkedRows.of(rows), vectors.astype(np.float32), path)
    assert (np.abs(products - expected) <= bound * scale).all()
    np.testing.assert_allclose(norms, sizes, rtol=bound)
    products, norms = exact_products(ChunkedRows.of(rows), vectors, path)
    assert (np.abs(products - expected) <= 1e-13 * scale).all()
    np.testing.assert_allclose(norms, sizes, rtol=1e-13)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors at unit RMS, as a plan makes them; zeros stay."""
    rms = np.sqrt(np.mean(vectors**2, axis=1, keepdims=True))
    scaled: np.ndarray = np.divide(vectors, rms, out=np.zeros_like(vectors), where=rms > 0)
    return scaled


def test_the_library_was_built():
    assert path_count() >= 1
    assert relative_error() == COMPILED_ERROR < NUMPY_ERROR


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dim", DIMS)
def test_products_are_those_of_float64(dim, path):
    rng = np.random.default_rng(dim)
    for count in COUNTS:
        for row_count in (1, 3, 13, 50):
            rows = rng.standard_normal((row_count, dim)).astype(np.float16)
            rows[row_count // 2] = 0
            vectors = unit(rng.standard_normal((count, dim)))
            vectors[0] = 0 if count == 5 else vectors[0]
            check(rows, vectors, path, COMPILED_ERROR)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("count", [1, 6])
def test_a_very_long_row(count, path):
    rng = np.random.default_rng(1)
    check(
        rng.standard_normal((3, 1 << 20)).astype(np.float16),
        unit(rng.standard_normal((count, 1 << 20))),
        path,
        COMPILED_ERROR,
    )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("count", [1, 4, 9])
def test_all_roundings_in_the_same_direction(count, path):
    """Equal positive products: the running sum is rounded down at each step."""
    rows = np.full((5, 100_000), 1.0009765625, dtype=np.float16)
    check(rows, np.full((count, 100_000), 1.0000001192092896), path, COMPILED_ERROR)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("dim", [5, 100, 3000])
def test_subnormal_and_huge_numbers(dim, count, path):
    """All magnitudes of float16 in one row, and vectors that span the range of float32."""
    rng = np.random.default_rng(dim)
    bits = rng.integers(0, 1 << 16, (9, dim)).astype(np.uint16)
    bits[(bits & 0x7C00) == 0x7C00] &= 0x83FF  # no infinity, no NaN: subnormal instead
    bits[1] &= 0x83FF  # a row of subnormal numbers alone
    spread = rng.standard_normal((count, dim)) * 10.0 ** rng.uniform(-30, 0, (count, dim))
    check(bits.view(np.float16), unit(spread), path, COMPILED_ERROR)


@pytest.mark.parametrize("path", PATHS)
def test_every_float16_widens_exactly(path):
    bits = np.arange(1 << 16, dtype=np.uint16)
    finite = bits[(bits & 0x7C00) != 0x7C00].view(np.float16)[:, None]
    for count in (1, 5):
        products, _ = fast_products(ChunkedRows.of(finite), np.ones((count, 1), dtype=np.float32), path)
        np.testing.assert_array_equal(products, np.tile(finite[:, 0].astype(np.float64), (count, 1)))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_rows_in_chunks_at_any_byte(count, path):
    """Chunks a stride apart, beginning at an odd address, and rows picked from them in any order."""
    rng = np.random.default_rng(2)
    chunk_count, chunk_rows, dim = 5, 7, 33
    stride = chunk_rows * dim * 2 + 4
    buffer = np.zeros(chunk_count * stride + 3, dtype=np.uint8)
    chunks = np.ndarray((chunk_count, chunk_rows, dim), np.float16, buffer, 3, (stride, dim * 2, 2))
    chunks[:] = rng.standard_normal(chunks.shape)
    flat, vectors = chunks.reshape(-1, dim), unit(rng.standard_normal((count, dim)))
    places = rng.permutation(len(flat))[:20]
    for rows, same in (
        (ChunkedRows(chunks, range(3, 31)), flat[3:31]),
        (ChunkedRows(chunks, places), flat[places]),
        (ChunkedRows(chunks, range(3, 31)).pick(np.arange(28) % 3 == 0), flat[3:31][::3]),
        (ChunkedRows(chunks, range(4, 4)), flat[4:4]),
    ):
        np.testing.assert_array_equal(rows.copied(), same)
        narrow, beside = vectors.astype(np.float32), ChunkedRows.of(same)
        for found, expected in (
            (fast_products(rows, narrow, path), fast_products(beside, narrow, path)),
            (exact_products(rows, vectors, path), exact_products(beside, vectors, path)),
        ):
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dim", [1, 15, 64, 1025, 8193])
def test_equal_rows_have_equal_exact_products_wherever_they_stand(dim, path):
    rng = np.random.default_rng(dim)
    row, vectors = rng.standard_normal(dim).astype(np.float16), rng.standard_normal((6, dim))
    expected, _ = exact_products(ChunkedRows.of(row[None]), vectors[:1], path)
    for row_count in (2, 13, 300):
        found, norms = exact_products(ChunkedRows.of(np.tile(row, (row_count, 1))), vectors, path)
        assert (found[0] == expected[0, 0]).all()
        assert (norms == norms[0]).all()


halves = st.floats(width=16, allow_nan=False, allow_infinity=False)
shapes = st.tuples(st.integers(1, 9), st.integers(1, 70))


@settings(max_examples=80, deadline=None)
@given(rows=arrays(np.float16, shapes, elements=halves), count=st.integers(1, 9), seed=st.integers(0, 1000))
def test_any_rows_stay_within_the_bound(rows, count, seed):
    vectors = unit(np.random.default_rng(seed).standard_normal((count, rows.shape[1])))
    for path in PATHS:
        check(rows, vectors, path, COMPILED_ERROR)


@pytest.mark.parametrize("dim", [1, 16, 100, 1025, 5000])
def test_the_plain_library_and_numpy_agree_with_float64(dim, plain, monkeypatch):
    rng = np.random.default_rng(dim)
    rows = rng.standard_normal((9, dim)).astype(np.float16)
    rows[:, 0] = 2.0**-24  # subnormal
    for other, bound in ((plain, COMPILED_ERROR), (None, NUMPY_ERROR)):
        monkeypatch.setattr(scan, "LIBRARY", other)
        assert relative_error() == bound
        for count in (1, 4, 7):
            check(rows, unit(rng.standard_normal((count, dim))), 0, bound)


def test_no_memory_is_said(monkeypatch):
    class Poor:
        def covector_products(self, *_: object) -> int:
            return 0

        covector_exact_products = covector_products

    monkeypatch.setattr(scan, "LIBRARY", Poor())
    rows = ChunkedRows.of(np.ones((1, 4), dtype=np.float16))
    for function, dtype in ((fast_products, np.float32), (exact_products, np.float64)):
        with pytest.raises(MemoryError):
            function(rows, np.ones((1, 4), dtype=dtype))
