"""The compiled pass over a batch's rows against plain loops, and what happens without it."""

import numpy as np
import pytest
from crc32c import crc32c

from covector.blocks import sum64
from covector_server.kernels import library, rows
from covector_server.kernels.rows import check_rows, joined_checksum

SHAPES = [(1, 1), (3, 3), (5, 7), (7, 4), (128, 64), (2, 5000), (130, 33)]


def rows_of(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


@pytest.fixture(params=["compiled", "numpy"])
def either(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(rows, "LIBRARY", None)
    return request.param


def test_the_library_was_built():
    assert library.LIBRARY is not None, "python native/compile.py"


@pytest.mark.parametrize("shape", SHAPES)
def test_sum_and_checksums_are_those_of_a_loop(shape, either):
    given = rows_of(shape)
    found = check_rows(given)
    assert found.sum64 == sum64(given.reshape(-1))
    assert found.first_non_finite is None
    if either == "compiled":
        assert found.checksums is not None
        assert found.checksums.tolist() == [crc32c(row.tobytes()) for row in given]
    else:
        assert found.checksums is None


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_found_in_its_row(shape, value, either):
    rng = np.random.default_rng(1)
    for _ in range(5):
        given = rows_of(shape)
        row, column = rng.integers(shape[0]), rng.integers(shape[1])
        given[row, column] = value
        assert check_rows(given).first_non_finite == row


def test_the_largest_finite_numbers_are_finite(either):
    given = np.tile(np.array([65504, -65504, 2**-24, -0.0], dtype=np.float16), (9, 3))
    assert check_rows(given).first_non_finite is None


@pytest.mark.parametrize("shape", SHAPES)
def test_a_joined_checksum_is_that_of_the_bytes(shape, either):
    given = rows_of(shape)
    data, before = given.tobytes(), b"what came before"
    checks = check_rows(given)
    joined = joined_checksum(crc32c(before), memoryview(data), 2 * shape[1], checks.checksums)
    assert joined == crc32c(before + data)
    half = shape[0] // 2
    tail = None if checks.checksums is None else checks.checksums[half:]
    assert joined_checksum(0, memoryview(given[half:].tobytes()), 2 * shape[1], tail) == crc32c(given[half:].tobytes())


def test_the_plain_loops_of_the_library_agree(monkeypatch, tmp_path):
    """A processor without the instructions takes other loops: they are compiled here, and compared."""
    import ctypes
    import subprocess
    from pathlib import Path

    sources = Path(__file__).resolve().parents[2] / "native"
    built = tmp_path / "plain.so"
    command = ["cc", "-std=c11", "-O1", "-fPIC", "-shared", "-DCOVECTOR_PLAIN", "-pthread"]
    subprocess.run([*command, *map(str, sorted(sources.glob("*.c"))), "-o", str(built), "-lm"], check=True)
    plain = library.load(built)
    assert isinstance(plain, ctypes.CDLL)
    for shape in SHAPES:
        given = rows_of(shape)
        expected = check_rows(given)
        with monkeypatch.context() as patched:
            patched.setattr(rows, "LIBRARY", plain)
            found = check_rows(given)
        assert found.sum64 == expected.sum64
        assert found.checksums is not None
        assert expected.checksums is not None
        assert found.checksums.tolist() == expected.checksums.tolist()


def test_a_library_of_another_version_is_passed_over(monkeypatch, caplog):
    monkeypatch.setattr(library, "VERSION", 999)
    assert library.load() is None
    assert "build the package again" in caplog.text


def test_without_a_library_none_is_loaded(tmp_path):
    assert library.load(tmp_path / "absent.so") is None
