"""A batch as received: its bytes checked, before anything of the store is looked at.

All of it runs off the commit thread: checks, digest, the hashes of the keys, and the packing of keys, texts and
metadata as a block of the row log holds them. Columns are checked whole, in numpy; only one that is refused is looked
at row by row, so that the error can name the row.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import xxhash

from covector.blocks import (
    INTEGER_TAG,
    Column,
    column_from_message,
    column_of,
    decode_key,
    encode_key,
)
from covector.errors import InvalidInput
from covector.types import GradientKind, Space
from covector.v1 import ingest_pb2, types_pb2
from covector_server.kernels import keys as kernels
from covector_server.kernels.rows import Checksums, RowChecks, check_rows, joined_checksum
from covector_server.limits import Limits
from covector_server.metadata.fields import Fields, Value, canonical, fields_of, parse_metadata
from covector_server.storage.key_hash import Hashes, hash_keys
from covector_server.storage.row_block import Section

OnConflict = Literal["error", "ignore", "replace"]
Buffer = bytes | bytearray | memoryview
_NONE = np.empty(0, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class WriterSpec:
    """What a writer said when it opened. ``checkpoint`` None: rows without gradients."""

    collection: str
    writer_id: str
    checkpoint: str | None
    eta: float = 1.0
    weights_digest: str | None = None
    kind: GradientKind = field(default_factory=GradientKind)
    on_conflict: OnConflict = "error"
    space: Space | None = None


@dataclass(frozen=True, slots=True)
class PackedColumns:
    """Keys, texts and metadata of a whole batch, as a block of new rows holds them."""

    keys: Section
    texts: Section
    metadata: Section


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to store together, checked.

    ``keys``: encoded, one a row; ``hashes`` of them. ``rows``: float16[n, dim] at unit RMS, None for rows without
    gradients, and then ``scales`` and ``trak_q`` are empty; ``checksums``: CRC-32C of each row, None where they were
    not computed. ``texts`` and ``metadata`` (canonical JSON): None where no row has any. ``fields``: the types of the
    metadata's fields, None where rows contradict one another.
    """

    sequence: int
    digest: str
    keys: Column
    hashes: Hashes
    rows: npt.NDArray[np.float16] | None
    checksums: Checksums | None
    scales: npt.NDArray[np.float32]
    trak_q: npt.NDArray[np.float32]
    texts: Column | None
    metadata: Column | None
    fields: Fields | None
    packed: PackedColumns
    size_bytes: int

    def __len__(self) -> int:
        return len(self.keys)

    def has_details(self) -> npt.NDArray[np.bool_]:
        """bool[rows]: which rows come with a text or metadata."""
        found = np.zeros(len(self), dtype=bool)
        for column in (self.texts, self.metadata):
            if column is not None:
                found |= True if column.present is None else column.present
        return found


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a batch."""

    stored_row_count: int
    duplicate_row_count: int
    zero_row_count: int


def parse_batch(message: ingest_pb2.Batch, gradients: Buffer, dim: int | None, limits: Limits) -> Batch:
    """The batch in a message. ``gradients``: all bytes, parts included; ``dim`` None: a batch without gradients.

    Raises InvalidInput naming the row, or LimitExceeded naming the limit.
    """
    count = message.row_count
    if count < 1:
        raise InvalidInput("a batch has at least one row")
    limits.check("batch_rows", count, "rows in a batch")
    keys = _parse_keys(message, count, limits)
    hashes = hash_keys(keys)
    _check_distinct(keys, hashes)
    _check_sizes(message, gradients, dim)
    rows = None if dim is None else np.frombuffer(gradients, "<f2").reshape(count, dim)
    checks = None if rows is None else _check_rows(message, gradients, rows, keys)
    scales, trak_q = (_NONE, _NONE) if rows is None else (_parse_scales(message, keys), _parse_trak_q(message))
    texts = _optional_column(message.texts if message.HasField("texts") else None, count, "texts")
    _check_texts(texts, limits)
    given = _optional_column(message.metadata if message.HasField("metadata") else None, count, "metadata")
    metadata, fields = _parse_metadata(given, limits)
    packed = PackedColumns(Section.of_column(keys), Section.of_column(texts), Section.of_column(metadata))
    return Batch(
        sequence=message.sequence,
        digest=_digest(message, gradients, checks),
        keys=keys,
        hashes=hashes,
        rows=rows,
        checksums=None if checks is None else checks.checksums,
        scales=scales,
        trak_q=trak_q,
        texts=texts,
        metadata=metadata,
        fields=fields,
        packed=packed,
        size_bytes=len(gradients) + len(keys.data) + sum(len(c.data) for c in (texts, metadata) if c is not None),
    )


def _parse_keys(message: ingest_pb2.Batch, count: int, limits: Limits) -> Column:
    column = column_from_message(message.keys.values, count, "keys")
    if column.present is not None:
        raise InvalidInput("keys: every row needs a key")
    if not _are_keys(column, limits.key_bytes):
        for row, key in enumerate(column.values()):
            limits.check("key_bytes", len(key or b"") - 1, f"bytes of the key of row {row}")
            if encode_key(decode_key(key or b"")) != key:
                raise InvalidInput(f"the key of row {row} is not in its canonical form")
    return column


def _are_keys(column: Column, key_bytes_max: int) -> bool:
    """Whether every value is an encoded key and not too long, by looking at all at once. False may also mean that it
    takes a closer look."""
    if kernels.IS_COMPILED:
        return kernels.are_keys(column.data, column.ends, key_bytes_max)
    lengths = _lengths(column)
    if not lengths.all() or int(lengths.max()) - 1 > key_bytes_max:
        return False
    data = np.frombuffer(column.data, np.uint8)
    is_integer = data[column.ends - lengths.astype(np.uint32)] == INTEGER_TAG[0]
    if is_integer.all():
        return bool((lengths == 9).all())
    if is_integer.any() or (data[column.ends - lengths.astype(np.uint32)] != 2).any():
        return False
    return _is_utf8(column.data)  # a tag is ASCII, so no character can reach over the edge of a key


def _check_distinct(keys: Column, hashes: Hashes) -> None:
    if kernels.IS_COMPILED:
        if kernels.are_distinct(hashes):
            return
    elif len(np.unique(hashes)) == len(hashes):
        return
    seen: set[bytes | None] = set()
    for key in keys.values():
        if key in seen:
            found = decode_key(key or b"")
            raise InvalidInput(f"key {found!r} stands twice in one batch", key=found)
        seen.add(key)


def _check_sizes(message: ingest_pb2.Batch, gradients: Buffer, dim: int | None) -> None:
    count = message.row_count
    if dim is None and (len(gradients) or message.scales or message.trak_q):
        raise InvalidInput("this writer was opened without a checkpoint; open it with one to send gradients")
    if dim is not None and len(gradients) != 2 * dim * count:
        raise InvalidInput(
            f"{len(gradients)} bytes of gradients for {count} rows of dim {dim}; {2 * dim * count} needed"
        )


def _check_rows(message: ingest_pb2.Batch, gradients: Buffer, rows: npt.NDArray[np.float16], keys: Column) -> RowChecks:
    checks = check_rows(rows)
    if message.HasField("gradients_sum64") and checks.sum64 != message.gradients_sum64:
        raise _changed("gradients_sum64")
    if message.HasField("gradients_crc32") and zlib.crc32(gradients) != message.gradients_crc32:
        raise _changed("gradients_crc32")
    bad = checks.first_non_finite
    if bad is not None:
        raise InvalidInput(f"the gradient of row {bad} (key {_name(keys, bad)}) holds NaN or infinity", row=bad)
    return checks


def _changed(name: str) -> InvalidInput:
    return InvalidInput(f"the gradients do not match their {name}: they were changed on the way; send them again")


def _parse_scales(message: ingest_pb2.Batch, keys: Column) -> npt.NDArray[np.float32]:
    if len(message.scales) != 4 * message.row_count:
        raise InvalidInput(f"{len(message.scales)} bytes of scales for {message.row_count} rows; 4 a row are needed")
    scales = np.frombuffer(message.scales, "<f4")
    bad = np.flatnonzero(~(np.isfinite(scales) & (scales >= 0)))
    if len(bad):
        raise InvalidInput(f"row {bad[0]} (key {_name(keys, bad[0])}) has scale {scales[bad[0]]}", row=bad[0])
    return scales


def _parse_trak_q(message: ingest_pb2.Batch) -> npt.NDArray[np.float32]:
    if not message.trak_q:
        return np.full(message.row_count, np.nan, dtype=np.float32)
    if len(message.trak_q) != 4 * message.row_count:
        raise InvalidInput(f"{len(message.trak_q)} bytes of trak_q for {message.row_count} rows; 4 a row are needed")
    trak_q = np.frombuffer(message.trak_q, "<f4")
    bad = np.flatnonzero(np.isinf(trak_q) | (trak_q < 0) | (trak_q > 1))
    if len(bad):
        raise InvalidInput(f"trak_q of row {bad[0]} is {trak_q[bad[0]]}; it is 1 - p, so between 0 and 1", row=bad[0])
    return trak_q


def _optional_column(message: types_pb2.BinaryColumn | None, count: int, name: str) -> Column | None:
    """The column, None if no row has a value."""
    column = None if message is None else column_from_message(message, count, name)
    if column is None or (column.present is not None and not column.present.any()):
        return None
    return column


def _check_texts(column: Column | None, limits: Limits) -> None:
    if column is None or _are_texts(column, limits.text_bytes):
        return
    lengths = _lengths(column)
    longest = int(lengths.argmax())
    limits.check("text_bytes", int(lengths[longest]), f"bytes of the text of row {longest}")
    column.strings()
    raise InvalidInput("texts: a text is not UTF-8")


def _are_texts(column: Column, text_bytes_max: int) -> bool:
    if kernels.IS_COMPILED:
        return kernels.are_texts(column.data, column.ends, text_bytes_max)
    lengths = _lengths(column)
    starts = (column.ends - lengths.astype(np.uint32))[lengths > 0]
    begins_inside = np.frombuffer(column.data, np.uint8)[starts] & 0xC0 == 0x80  # of a character
    return int(lengths.max()) <= text_bytes_max and not begins_inside.any() and _is_utf8(column.data)


def _is_utf8(data: bytes) -> bool:
    try:
        bytes(data).decode()
    except UnicodeDecodeError:
        return False
    return True


def _parse_metadata(column: Column | None, limits: Limits) -> tuple[Column | None, Fields | None]:
    """The metadata in canonical form, and the types of its fields."""
    if column is None:
        return None, {}
    parsed = []
    for row, value in enumerate(column.values()):
        limits.check("metadata_bytes", len(value or b""), f"bytes of the metadata of row {row}")
        parsed.append(None if value is None else parse_metadata(value, row))
    encoded = column_of(None if one is None else canonical(one) for one in parsed)
    return encoded, fields_of((row, one) for row, one in enumerate(parsed) if one)


def _digest(message: ingest_pb2.Batch, gradients: Buffer, checks: RowChecks | None) -> str:
    """XXH3-128 over every column, behind their lengths. The gradients, most of the bytes, are in it with their sum and
    their CRC-32C, so that they need not be read once more."""
    columns: tuple[types_pb2.BinaryColumn, ...] = (message.keys.values, message.texts, message.metadata)
    parts: list[bytes] = [part for column in columns for part in (column.data, column.ends, column.present)]
    lengths = [len(part).to_bytes(8, "little") for part in (*parts, message.scales, message.trak_q, gradients)]
    stands_for = b""
    if checks is not None:
        row_bytes = len(gradients) // message.row_count
        checksum = joined_checksum(0, memoryview(gradients), row_bytes, checks.checksums)
        stands_for = checks.sum64.to_bytes(8, "little") + checksum.to_bytes(4, "little")
    return xxhash.xxh3_128_hexdigest(b"".join((*lengths, *parts, message.scales, message.trak_q, stands_for)))


def _lengths(column: Column) -> npt.NDArray[np.int64]:
    ends = column.ends.astype(np.int64)
    lengths: npt.NDArray[np.int64] = ends - np.concatenate([ends[:0], np.zeros(1, dtype=np.int64), ends[:-1]])
    return lengths


def _name(keys: Column, row: int | np.integer) -> str:
    return repr(decode_key(keys.value(int(row)) or b""))


def metadata_of(column: Column | None, row: int) -> Mapping[str, Value] | None:
    """The metadata of one row of a batch."""
    value = None if column is None else column.value(row)
    return None if value is None else parse_metadata(value, row)
