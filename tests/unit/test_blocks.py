"""Bytes of rows: keys keep their order, columns come back, unit-RMS rows keep eleven bits at every norm."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covector.blocks import (
    Column,
    NonFiniteRow,
    column_from_message,
    column_of,
    column_to_message,
    decode_key,
    encode_key,
    first_non_finite,
    key_column,
    keys_of,
    scale_rows,
    sum64,
)
from covector.errors import InvalidInput
from covector.types import Key
from covector.v1 import types_pb2

KEYS: st.SearchStrategy[Key] = st.one_of(st.integers(-(1 << 63), (1 << 63) - 1), st.text())


@given(st.lists(KEYS))
def test_keys_come_back_and_keep_their_order(keys: list[Key]) -> None:
    assert [decode_key(encode_key(key)) for key in keys] == keys
    assert keys_of(key_column(keys)) == keys
    by_bytes = sorted(keys, key=encode_key)
    assert by_bytes == sorted(
        keys, key=lambda key: (isinstance(key, str), key if isinstance(key, int) else key.encode())
    )


@pytest.mark.parametrize("key", [1.5, None, True, b"bytes", 1 << 63, ("a",)])
def test_what_is_no_key(key: object) -> None:
    with pytest.raises(InvalidInput):
        encode_key(key)  # type: ignore[arg-type]


@pytest.mark.parametrize("encoded", [b"", b"\x01123", b"\x03abc", b"\x02\xff"])
def test_what_is_no_encoded_key(encoded: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode_key(encoded)


def test_integer_and_string_keys_are_distinct() -> None:
    assert encode_key(1) != encode_key("1")
    assert encode_key(np.int64(7)) == encode_key(7)  # type: ignore[arg-type]


@given(st.lists(st.one_of(st.none(), st.binary())))
def test_columns_come_back(values: list[bytes | None]) -> None:
    column = column_of(values)
    assert column.values() == values
    assert column_from_message(column_to_message(column), len(values), "values").values() == values


@pytest.mark.parametrize(
    "message",
    [
        types_pb2.BinaryColumn(data=b"abc", ends=np.array([1, 2], "<u4").tobytes()),  # data left over
        types_pb2.BinaryColumn(data=b"ab", ends=np.array([2, 1], "<u4").tobytes()),  # ends shrink
        types_pb2.BinaryColumn(data=b"ab", ends=np.array([1, 9], "<u4").tobytes()),  # past the data
        types_pb2.BinaryColumn(data=b"ab", ends=b"12345"),  # not four bytes a row
        types_pb2.BinaryColumn(
            data=b"ab", ends=np.array([1, 2], "<u4").tobytes(), present=b"\x01"
        ),  # absent with bytes
        types_pb2.BinaryColumn(data=b"ab", ends=np.array([1, 2], "<u4").tobytes(), present=b"\x01\x01"),
    ],
)
def test_a_column_that_lies_is_refused(message: types_pb2.BinaryColumn) -> None:
    with pytest.raises(InvalidInput, match="texts"):
        column_from_message(message, 2, "texts")


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(InvalidInput, match="UTF-8"):
        Column(b"\xff", np.array([1], np.uint32)).strings()


def slow_sum64(data: bytes) -> int:
    padded = data + bytes(-len(data) % 8)
    return sum(int.from_bytes(padded[start : start + 8], "little") for start in range(0, len(padded), 8)) % (1 << 64)


@given(st.binary(max_size=100), st.integers(0, 8))
def test_the_sum_of_words_is_that_of_a_plain_loop(data: bytes, skipped: int) -> None:
    padded = bytes(skipped) + data  # so that the words lie at any alignment
    assert sum64(memoryview(padded)[skipped:]) == slow_sum64(data)
    assert sum64(bytearray(data)) == slow_sum64(data)


def test_the_sum_of_words_wraps_and_takes_arrays() -> None:
    assert sum64(b"\xff" * 24) == (1 << 64) - 3
    rows = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float16)
    assert sum64(rows) == slow_sum64(rows.tobytes())


@pytest.mark.parametrize("exponent", [-38, -30, -8, 0, 8, 30, 37])
@pytest.mark.parametrize("dim", [1, 2, 3, 1000])
def test_scaled_rows_keep_eleven_bits_at_every_norm(exponent: int, dim: int) -> None:
    wide = np.random.default_rng(dim).standard_normal((8, dim)) * 10.0**exponent
    rows, scales = scale_rows(wide)
    assert rows.dtype == np.float16
    decoded = rows.astype(np.float64) * scales.astype(np.float64)[:, None]
    error = np.linalg.norm(decoded - wide, axis=1) / np.linalg.norm(wide, axis=1)
    assert error.max() < 2**-11 * 1.01
    np.testing.assert_allclose(np.sqrt((rows.astype(np.float64) ** 2).mean(axis=1)), 1, rtol=1e-3)


def test_a_spike_does_not_overflow() -> None:
    spike = np.zeros((1, 1 << 20))
    spike[0, 77] = 3e30
    rows, scales = scale_rows(spike)
    assert float(rows[0, 77]) * float(scales[0]) == pytest.approx(3e30, rel=1e-3)


def test_zero_rows_stay_zero() -> None:
    rows, scales = scale_rows(np.zeros((2, 5)))
    assert not rows.any()
    assert not scales.any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_are_named(bad: float) -> None:
    gradients = np.ones((4, 3))
    gradients[2, 1] = bad
    with pytest.raises(NonFiniteRow, match="row 2"):
        scale_rows(gradients)
    rows = gradients.astype(np.float16)
    assert first_non_finite(rows) == 2
    assert first_non_finite(rows[:2]) is None


def test_an_rms_past_float32_is_refused() -> None:
    with pytest.raises(InvalidInput, match="past the range"):
        scale_rows(np.full((1, 2), 1e300))
