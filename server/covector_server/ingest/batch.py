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
    first_non_finite,
    sum64,
)
from covector.errors import InvalidInput
from covector.types import GradientKind, Space
from covector.v1 import ingest_pb2, types_pb2
from covector_server.limits import Limits
from covector_server.metadata.fields import Fields, Value, canonical, fields_of, parse_metadata
from covector_server.storage.key_hash import Hashes, hash_keys
from covector_server.storage.row_block import Section

OnConflict = Literal["error", "ignore", "replace"]
Buffer = bytes | bytearray | memoryview


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
    gradients, and then ``scales`` and ``trak_q`` are empty. ``texts`` and ``metadata`` (canonical JSON): None where no
    row has any. ``fields``: the types of the metadata's fields, None where rows contradict one another.
    """

    sequence: int
    digest: str
    keys: Column
    hashes: Hashes
    rows: npt.NDArray[np.float16] | None
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
    rows, scales, trak_q = _parse_gradients(message, gradients, dim, keys)
    texts = _optional_column(message.texts if message.HasField("texts") else None, count, "texts")
    _check_texts(texts, limits)
    given = _optional_column(message.metadata if message.HasField("metadata") else None, count, "metadata")
    metadata, fields = _parse_metadata(given, limits)
    packed = PackedColumns(Section.of_column(keys), Section.of_column(texts), Section.of_column(metadata))
    return Batch(
        sequence=message.sequence,
        digest=_digest(message, gradients),
        keys=keys,
        hashes=hashes,
        rows=rows,
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
    lengths = _lengths(column)
    if int(lengths.max()) - 1 > limits.key_bytes or not _are_keys(column, lengths):
        for row, key in enumerate(column.values()):
            limits.check("key_bytes", len(key or b"") - 1, f"bytes of the key of row {row}")
            if encode_key(decode_key(key or b"")) != key:
                raise InvalidInput(f"the key of row {row} is not in its canonical form")
    return column


def _are_keys(column: Column, lengths: npt.NDArray[np.int64]) -> bool:
    """Whether every value is an encoded key, by looking at all at once. False may also mean that it takes a closer
    look."""
    if not lengths.all():
        return False
    data = np.frombuffer(column.data, np.uint8)
    is_integer = data[column.ends - lengths.astype(np.uint32)] == INTEGER_TAG[0]
    if is_integer.all():
        return bool((lengths == 9).all())
    if is_integer.any() or (data[column.ends - lengths.astype(np.uint32)] != 2).any():
        return False
    try:
        bytes(column.data).decode()  # a tag is ASCII, so no character can reach over the edge of a key
    except UnicodeDecodeError:
        return False
    return True


def _check_distinct(keys: Column, hashes: Hashes) -> None:
    ordered = np.sort(hashes)
    if not (ordered[1:] == ordered[:-1]).any():
        return
    seen: set[bytes | None] = set()
    for key in keys.values():
        if key in seen:
            found = decode_key(key or b"")
            raise InvalidInput(f"key {found!r} stands twice in one batch", key=found)
        seen.add(key)


def _parse_gradients(
    message: ingest_pb2.Batch, gradients: Buffer, dim: int | None, keys: Column
) -> tuple[npt.NDArray[np.float16] | None, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    count, none = message.row_count, np.empty(0, dtype=np.float32)
    if dim is None:
        if len(gradients) or message.scales or message.trak_q:
            raise InvalidInput("this writer was opened without a checkpoint; open it with one to send gradients")
        return None, none, none
    if len(gradients) != 2 * dim * count:
        raise InvalidInput(
            f"{len(gradients)} bytes of gradients for {count} rows of dim {dim}; {2 * dim * count} needed"
        )
    _check_sums(message, gradients)
    rows = np.frombuffer(gradients, "<f2").reshape(count, dim)
    bad = first_non_finite(rows)
    if bad is not None:
        raise InvalidInput(f"the gradient of row {bad} (key {_name(keys, bad)}) holds NaN or infinity", row=bad)
    return rows, _parse_scales(message, keys), _parse_trak_q(message)


def _check_sums(message: ingest_pb2.Batch, gradients: Buffer) -> None:
    for name, compute in (("gradients_sum64", sum64), ("gradients_crc32", zlib.crc32)):
        if message.HasField(name) and compute(gradients) != getattr(message, name):
            raise InvalidInput(
                f"the gradients do not match their {name}: they were changed on the way; send them again"
            )


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
    if column is None:
        return
    lengths = _lengths(column)
    limit = int(lengths.argmax())
    limits.check("text_bytes", int(lengths[limit]), f"bytes of the text of row {limit}")
    starts = (column.ends - lengths.astype(np.uint32))[lengths > 0]
    data = np.frombuffer(column.data, np.uint8)
    try:
        bytes(column.data).decode()
        whole = not (data[starts] & 0xC0 == 0x80).any()  # no text starts in the middle of a character
    except UnicodeDecodeError:
        whole = False
    if not whole:
        column.strings()
        raise InvalidInput("texts: a text is not UTF-8")


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


def _digest(message: ingest_pb2.Batch, gradients: Buffer) -> str:
    """XXH3-128 over every column, behind their lengths. Two calls, since each lets other threads run: handing over the
    interpreter costs more than hashing a short column does."""
    columns: tuple[types_pb2.BinaryColumn, ...] = (message.keys.values, message.texts, message.metadata)
    parts: list[bytes] = [part for column in columns for part in (column.data, column.ends, column.present)]
    lengths = [len(part).to_bytes(8, "little") for part in (*parts, message.scales, message.trak_q, gradients)]
    digest = xxhash.xxh3_128(b"".join((*lengths, *parts, message.scales, message.trak_q)))
    digest.update(gradients)
    return digest.hexdigest()


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
