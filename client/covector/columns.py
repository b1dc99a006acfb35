"""Columns of what users hand in: byte strings run together, made in a few passes that stay inside C.

A call with many short rows would spend its time on one small object a row; run together, a column is cut and joined by
arithmetic on where its values end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from covector.blocks import INTEGER_TAG, STRING_TAG, Column, encode_key
from covector.errors import InvalidInput
from covector.types import Key

_COLUMN_BYTES_MAX = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Packed:
    """Byte strings, one a row: ``data`` run together, ``ends`` (int64[rows]) where each ends, ``present`` (bool[rows])
    which rows have a value, None for all. An absent row has no bytes. Unlike a ``Column`` it may pass 4 GiB."""

    data: bytes
    ends: npt.NDArray[np.int64]
    present: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.ends)

    def part(self, rows: slice) -> Packed:
        """Some consecutive rows; both ends of the slice are stated."""
        before = int(self.ends[rows.start - 1]) if rows.start else 0
        ends = self.ends[rows] - before
        data = self.data[before : before + int(ends[-1])] if len(ends) else b""
        return Packed(data, ends, None if self.present is None else self.present[rows])


def absent(row_count: int) -> Packed:
    """A column in which no row has a value."""
    return Packed(b"", np.zeros(row_count, dtype=np.int64), np.zeros(row_count, dtype=bool))


def pack(values: Sequence[bytes | None]) -> Packed:
    """Packs values one by one."""
    ends = np.cumsum(_lengths([value or b"" for value in values]))
    if None not in values:
        return Packed(b"".join(values), ends)  # type: ignore[arg-type]  # there is no None in it
    present = np.fromiter((value is not None for value in values), dtype=bool, count=len(values))
    return Packed(b"".join(value for value in values if value is not None), ends, present)


def pack_texts(texts: Sequence[str]) -> Packed:
    """Packs texts as UTF-8. Raises TypeError or UnicodeEncodeError for what is none."""
    joined = "".join(texts)
    if joined.isascii():
        return Packed(joined.encode(), np.cumsum(_lengths(texts)))
    return pack([text.encode() for text in texts])


def pack_keys(keys: Sequence[Key]) -> Packed:
    """Packs keys in their encoded form. Raises InvalidInput naming the first that is none."""
    kinds = set(map(type, keys))
    if kinds == {str}:
        return _pack_string_keys(keys)
    if kinds == {int}:
        return _pack_integer_keys(keys)
    return pack([encode_key(key) for key in keys])


def joined(parts: Sequence[Packed]) -> Column:
    """One column of the parts, as it travels. Raises InvalidInput past 4 GiB."""
    size_bytes = sum(len(part.data) for part in parts)
    if size_bytes > _COLUMN_BYTES_MAX:
        raise InvalidInput(
            f"a column holds at most 4 GiB; these values have {size_bytes} bytes: send fewer rows at once"
        )
    starts = np.cumsum([0, *(len(part.data) for part in parts)])
    ends = np.concatenate([part.ends + start for part, start in zip(parts, starts, strict=False)])
    return Column(b"".join(part.data for part in parts), ends.astype(np.uint32), _joined_present(parts))


def _joined_present(parts: Sequence[Packed]) -> npt.NDArray[np.bool_] | None:
    if all(part.present is None for part in parts):
        return None
    present = np.concatenate(
        [np.ones(len(part), dtype=bool) if part.present is None else part.present for part in parts]
    )
    return None if present.all() else present


def _pack_string_keys(keys: Sequence[Key]) -> Packed:
    tag = STRING_TAG.decode()
    joined_keys = tag + tag.join(keys)  # type: ignore[arg-type]  # all are strings
    if joined_keys.isascii():
        return Packed(joined_keys.encode(), np.cumsum(_lengths(keys) + 1))  # type: ignore[arg-type]
    return pack([encode_key(key) for key in keys])


def _pack_integer_keys(keys: Sequence[Key]) -> Packed:
    try:
        numbers = np.array(keys, dtype=np.int64)
    except OverflowError:
        return pack([encode_key(key) for key in keys])  # which names the one that does not fit
    encoded = np.empty((len(numbers), 9), dtype=np.uint8)
    encoded[:, 0] = INTEGER_TAG[0]
    flipped = numbers.view(np.uint64) ^ np.uint64(1 << 63)
    encoded[:, 1:] = flipped.astype(">u8").view(np.uint8).reshape(-1, 8)
    return Packed(encoded.tobytes(), np.arange(1, len(numbers) + 1) * 9)


def _lengths(values: Sequence[str] | Sequence[bytes]) -> npt.NDArray[np.int64]:
    return np.fromiter(map(len, values), dtype=np.int64, count=len(values))
