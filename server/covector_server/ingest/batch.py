"""A batch as received: its bytes checked, before anything of the store is looked at."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import xxhash

from covector.blocks import Column, column_from_message, decode_key, first_non_finite
from covector.errors import InvalidInput
from covector.types import GradientKind, Space
from covector.v1 import ingest_pb2, types_pb2
from covector_server.limits import Limits
from covector_server.metadata.fields import Value, parse_metadata

OnConflict = Literal["error", "ignore", "replace"]


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
class Batch:
    """Rows to store together, checked. ``rows``: float16[n, dim] at unit RMS, None for rows without gradients."""

    sequence: int
    digest: str
    keys: list[bytes]
    rows: npt.NDArray[np.float16] | None
    scales: npt.NDArray[np.float32]
    trak_q: npt.NDArray[np.float32]
    texts: list[bytes | None]
    metadata: list[Mapping[str, Value] | None]
    size_bytes: int

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def zero_row_count(self) -> int:
        """Rows whose gradient is all zero."""
        return 0 if self.rows is None else int((self.scales == 0).sum())


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a batch."""

    stored_row_count: int
    duplicate_row_count: int
    zero_row_count: int


def parse_batch(message: ingest_pb2.Batch, gradients: bytes, dim: int | None, limits: Limits) -> Batch:
    """The batch in a message. ``gradients``: all bytes, parts included; ``dim`` None: a batch without gradients.

    Raises InvalidInput naming the row, or LimitExceeded naming the limit.
    """
    count = message.row_count
    if count < 1:
        raise InvalidInput("a batch has at least one row")
    limits.check("batch_rows", count, "rows in a batch")
    keys = _parse_keys(message, count, limits)
    rows, scales, trak_q = _parse_gradients(message, gradients, dim)
    texts = _optional_column(message.texts if message.HasField("texts") else None, count, "texts")
    metadata = _optional_column(message.metadata if message.HasField("metadata") else None, count, "metadata")
    return Batch(
        sequence=message.sequence,
        digest=_digest(message, gradients),
        keys=keys,
        rows=rows,
        scales=scales,
        trak_q=trak_q,
        texts=_check_texts(texts, count, limits),
        metadata=_parse_metadata(metadata, count, limits),
        size_bytes=len(gradients) + message.ByteSize(),
    )


def _parse_keys(message: ingest_pb2.Batch, count: int, limits: Limits) -> list[bytes]:
    column = column_from_message(message.keys.values, count, "keys")
    if column.present is not None:
        raise InvalidInput("keys: every row needs a key")
    keys = [value or b"" for value in column.values()]
    for row, key in enumerate(keys):
        limits.check("key_bytes", len(key) - 1, f"bytes of the key of row {row}")
        decode_key(key)
    if len(set(keys)) < count:
        seen: set[bytes] = set()
        twice = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise InvalidInput(f"key {decode_key(twice)!r} stands twice in one batch", key=decode_key(twice))
    return keys


def _parse_gradients(
    message: ingest_pb2.Batch, gradients: bytes, dim: int | None
) -> tuple[npt.NDArray[np.float16] | None, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    count, none = message.row_count, np.empty(0, dtype=np.float32)
    if dim is None:
        if gradients or message.scales or message.trak_q:
            raise InvalidInput("this writer was opened without a checkpoint; open it with one to send gradients")
        return None, none, none
    if len(gradients) != 2 * dim * count:
        raise InvalidInput(
            f"{len(gradients)} bytes of gradients for {count} rows of dim {dim}; {2 * dim * count} needed"
        )
    if message.HasField("gradients_crc32") and zlib.crc32(gradients) != message.gradients_crc32:
        raise InvalidInput("the gradients do not match their CRC-32: they were changed on the way; send them again")
    rows = np.frombuffer(gradients, "<f2").reshape(count, dim)
    bad = first_non_finite(rows)
    if bad is not None:
        raise InvalidInput(f"the gradient of row {bad} (key {_name(message, bad)}) holds NaN or infinity", row=bad)
    return rows, _parse_scales(message), _parse_trak_q(message)


def _parse_scales(message: ingest_pb2.Batch) -> npt.NDArray[np.float32]:
    if len(message.scales) != 4 * message.row_count:
        raise InvalidInput(f"{len(message.scales)} bytes of scales for {message.row_count} rows; 4 a row are needed")
    scales = np.frombuffer(message.scales, "<f4")
    bad = np.flatnonzero(~(np.isfinite(scales) & (scales >= 0)))
    if len(bad):
        raise InvalidInput(f"row {bad[0]} (key {_name(message, bad[0])}) has scale {scales[bad[0]]}", row=bad[0])
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
    return None if message is None else column_from_message(message, count, name)


def _check_texts(column: Column | None, count: int, limits: Limits) -> list[bytes | None]:
    if column is None:
        return [None] * count
    column.strings()
    texts = column.values()
    for row, text in enumerate(texts):
        limits.check("text_bytes", len(text or b""), f"bytes of the text of row {row}")
    return texts


def _parse_metadata(column: Column | None, count: int, limits: Limits) -> list[Mapping[str, Value] | None]:
    if column is None:
        return [None] * count
    parsed: list[Mapping[str, Value] | None] = []
    for row, value in enumerate(column.values()):
        limits.check("metadata_bytes", len(value or b""), f"bytes of the metadata of row {row}")
        parsed.append(None if value is None else parse_metadata(value, row))
    return parsed


def _digest(message: ingest_pb2.Batch, gradients: bytes) -> str:
    digest = xxhash.xxh3_128()
    columns = (message.keys.values, message.texts, message.metadata)
    parts = [part for column in columns for part in (column.data, column.ends, column.present)]
    for part in (*parts, message.scales, message.trak_q, gradients):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _name(message: ingest_pb2.Batch, row: int) -> str:
    value = column_from_message(message.keys.values, message.row_count, "keys").values()[row]
    return repr(decode_key(value or b""))
