"""How rows become bytes, the same on the wire and on disk: keys, columns, and unit-RMS float16 rows with a scale.

A row ``g`` is stored as ``scale = rms(g)`` in float32 and ``g / scale`` in float16, so that ``gradient = scale * row``.
Raw float16 loses rows whose norm is far from one; scaled, every norm that float32 can hold keeps its eleven bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.errors import InvalidInput
from covector.types import Key
from covector.v1 import types_pb2

INTEGER_TAG, STRING_TAG = b"\x01", b"\x02"
_SIGN_BIT = 1 << 63
_PIECE_ELEMENTS = 1 << 17  # of rows that are scaled at once: their float64 copy stays in the processor's cache
_SMALLEST_RMS = 1e-140  # below it squares lose bits to float64's range
Float64 = npt.NDArray[np.float64]


def encode_key(key: Key) -> bytes:
    """The bytes of a key, ordered as (type, key). Raises InvalidInput for another type or an integer past 64 bits."""
    if isinstance(key, str):
        try:
            return STRING_TAG + key.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(f"key {key!r} is not valid Unicode: it holds half of a surrogate pair") from error
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        if not -_SIGN_BIT <= int(key) < _SIGN_BIT:
            raise InvalidInput(f"integer keys have 64 bits; {key} does not fit")
        return INTEGER_TAG + (int(key) + _SIGN_BIT).to_bytes(8, "big")
    raise InvalidInput(f"a key is a string or an integer, not {type(key).__name__} ({key!r})")


def decode_key(encoded: bytes) -> Key:
    """The key behind ``encode_key``'s bytes. Raises InvalidInput if they are no key."""
    tag, payload = encoded[:1], encoded[1:]
    if tag == STRING_TAG:
        try:
            return payload.decode()
        except UnicodeDecodeError as error:
            raise InvalidInput(f"key {encoded!r} is not UTF-8") from error
    if tag == INTEGER_TAG and len(payload) == 8:
        return int.from_bytes(payload, "big") - _SIGN_BIT
    raise InvalidInput(f"{encoded!r} is not an encoded key")


@dataclass(frozen=True, slots=True)
class Column:
    """Byte strings, one a row: ``data`` run together, ``ends`` (uint32[rows]) where each ends, ``present`` (bool[rows])
    which rows have a value, None for all. An absent row has no bytes."""

    data: bytes
    ends: npt.NDArray[np.uint32]
    present: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.ends)

    def value(self, row: int) -> bytes | None:
        """The value of one row, None for an absent one."""
        if self.present is not None and not self.present[row]:
            return None
        return bytes(self.data[int(self.ends[row - 1]) if row else 0 : int(self.ends[row])])

    def values(self) -> list[bytes | None]:
        """The values as bytes, None for an absent one."""
        ends = self.ends.tolist()
        found: list[bytes | None] = [self.data[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)] if ends else []
        if self.present is not None:
            found = [value if here else None for value, here in zip(found, self.present.tolist(), strict=True)]
        return found

    def strings(self) -> list[str | None]:
        """The values as text. Raises InvalidInput naming the first that is not UTF-8."""
        try:
            return [None if value is None else value.decode() for value in self.values()]
        except UnicodeDecodeError as error:
            raise InvalidInput(f"text is not UTF-8: {error}") from error


def column_of(values: Iterable[bytes | None]) -> Column:
    """Packs values into a column."""
    rows = list(values)
    ends = np.cumsum([0 if row is None else len(row) for row in rows], dtype=np.uint64)
    if len(ends) and ends[-1] >= 1 << 32:
        raise InvalidInput(f"a column holds at most 4 GiB; these values have {ends[-1]} bytes: send fewer rows at once")
    missing = any(row is None for row in rows)
    present = np.array([row is not None for row in rows], dtype=bool) if missing else None
    return Column(b"".join(row for row in rows if row is not None), ends.astype(np.uint32), present)


def key_column(keys: Sequence[Key] | npt.NDArray[np.generic]) -> Column:
    """Packs keys into a column of encoded keys."""
    plain: Iterable[Key] = keys.tolist() if isinstance(keys, np.ndarray) else keys
    return column_of(encode_key(key) for key in plain)


def keys_of(column: Column) -> list[Key]:
    """The keys in a column of encoded keys."""
    return [decode_key(value or b"") for value in column.values()]


def column_to_message(column: Column) -> types_pb2.BinaryColumn:
    """The wire form of a column."""
    present = b"" if column.present is None else np.packbits(column.present, bitorder="little").tobytes()
    return types_pb2.BinaryColumn(data=column.data, ends=column.ends.astype("<u4").tobytes(), present=present)


def column_from_message(message: types_pb2.BinaryColumn, row_count: int, name: str) -> Column:
    """The column in a message. Raises InvalidInput, naming the column, if it is unsound or has another row count."""
    if len(message.ends) != 4 * row_count:
        raise InvalidInput(f"{name}: {len(message.ends)} bytes of ends for {row_count} rows; 4 a row are needed")
    ends = np.frombuffer(message.ends, "<u4")
    if row_count and (int(ends[-1]) != len(message.data) or (ends[1:] < ends[:-1]).any()):
        raise InvalidInput(f"{name}: the ends do not grow up to the {len(message.data)} bytes of data")
    present = None
    if message.present:
        if len(message.present) != (row_count + 7) // 8:
            raise InvalidInput(f"{name}: {len(message.present)} bytes of present bits for {row_count} rows")
        bits = np.unpackbits(np.frombuffer(message.present, np.uint8), count=row_count, bitorder="little")
        present = bits.astype(bool)
        if (np.diff(ends, prepend=np.uint32(0))[~present] != 0).any():
            raise InvalidInput(f"{name}: an absent row has bytes")
    return Column(message.data, ends, present)


def sum64(data: bytes | bytearray | memoryview | npt.NDArray[Any]) -> int:
    """The sum, modulo 2^64, of contiguous bytes read as little-endian 64-bit words, the last one padded with zeros.

    A check of a batch's gradients in flight: it runs at the speed of memory, and any change to a single word shows.
    """
    octets = np.frombuffer(data, np.uint8)
    whole = len(octets) // 8 * 8
    words = octets[:whole].view("<u8")
    rest = int.from_bytes(octets[whole:].tobytes(), "little")
    return (int(np.add.reduce(words, dtype=np.uint64)) + rest) % (1 << 64)


def scale_rows(gradients: npt.ArrayLike) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float32]]:
    """Scales rows to unit RMS, in float64.

    gradients: float[n, dim]. Returns (rows float16[n, dim], scales float32[n]) with gradient ~= scale * row; an
    all-zero row has scale 0. Raises InvalidInput naming the first row that is not finite or too large for float32.
    """
    given = np.asarray(gradients)
    rows, scales = np.empty(given.shape, dtype=np.float16), np.empty(len(given), dtype=np.float32)
    step = max(1, _PIECE_ELEMENTS // max(given.shape[1], 1))
    for start in range(0, len(given), step):
        piece = slice(start, start + step)
        rows[piece], scales[piece] = _scale_piece(given[piece].astype(np.float64), start)
    return rows, scales


def _scale_piece(wide: Float64, first: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]:
    """Rows at unit RMS, in place of ``wide``, and their scales; ``first`` is the number of its first row."""
    exact = _rms(wide, first)
    with np.errstate(over="ignore", under="ignore"):
        scales = exact.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(scales))
    if len(bad):
        row = first + int(bad[0])
        raise InvalidInput(f"row {row}: its RMS {exact[bad[0]]:.3g} is past the range of float32", row=row)
    wide /= np.where(scales > 0, scales, 1).astype(np.float64)[:, None]
    wide[scales == 0] = 0  # an RMS too small for float32 counts as zero
    return wide, scales


def _rms(wide: Float64, first: int) -> Float64:
    """The RMS of each row. Raises NonFiniteRow. Squares past the range of float64 are taken again, shrunk."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        rms = np.sqrt(np.vecdot(wide, wide) / max(wide.shape[1], 1))
    odd = np.flatnonzero(~((rms > _SMALLEST_RMS) & np.isfinite(rms)))
    if len(odd):
        peak = np.abs(wide[odd]).max(axis=1, initial=0.0)
        bad = np.flatnonzero(~np.isfinite(peak))
        if len(bad):
            raise NonFiniteRow(first + int(odd[bad[0]]))
        safe = np.where(peak > 0, peak, 1.0)
        shrunk = wide[odd] / safe[:, None]
        rms[odd] = np.sqrt(np.vecdot(shrunk, shrunk) / max(wide.shape[1], 1)) * safe
    return np.asarray(rms)


class NonFiniteRow(InvalidInput):
    """A row holds NaN or infinity; ``row`` is its position."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} holds NaN or infinity", row=row)
        self.row = row


def first_non_finite(rows: npt.NDArray[np.float16]) -> int | None:
    """The position of the first row of float16[n, dim] that holds NaN or infinity, or None."""
    # As signed integers the positive ones that are not finite are the largest, as unsigned ones the negative ones: two
    # passes, and nothing is copied.
    if rows.size == 0 or (int(rows.view(np.int16).max()) < 0x7C00 and int(rows.view(np.uint16).max()) < 0xFC00):
        return None
    return int(np.flatnonzero((rows.view(np.uint16) & 0x7FFF >= 0x7C00).any(axis=1))[0])
