"""Reading and deleting rows by key, and asking which keys have no gradient yet."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.blocks import column_from_message, column_of, column_to_message, encode_key
from covector.connection import Connection
from covector.errors import Internal, InvalidInput
from covector.inputs import Keys, plain_keys, row_chunks
from covector.messages import filter_json, metadata_from_json
from covector.types import Key, Row
from covector.v1 import rows_pb2, types_pb2

_KEYS_MAX = 50_000
_KEY_BYTES_MAX = 1 << 20


def get_rows(
    connection: Connection, collection: str, keys: Keys, dim: int, *, gradients: bool, checkpoint: str | None
) -> list[Row]:
    """The rows of ``keys``, in their order. Raises NotFound naming the first unknown key."""
    plain = plain_keys(keys)
    encoded = [encode_key(key) for key in plain]
    rows: list[Row] = []
    for part in row_chunks(encoded, rows_max=_KEYS_MAX, bytes_max=_KEY_BYTES_MAX):
        request = rows_pb2.GetRowsRequest(
            collection=collection, keys=_message(encoded[part]), checkpoint=checkpoint or "", gradients=gradients
        )
        responses = connection.stream(connection.rows.GetRows, request)
        rows += _read_rows(responses, plain[part], dim if gradients else None)
    return rows


def missing_keys(connection: Connection, collection: str, keys: Keys, checkpoint: str) -> list[Key]:
    """Which of ``keys`` have no gradient at the checkpoint, in their order."""
    plain = plain_keys(keys)
    encoded = [encode_key(key) for key in plain]
    parts = list(row_chunks(encoded, rows_max=_KEYS_MAX, bytes_max=_KEY_BYTES_MAX))
    requests = (
        rows_pb2.ListMissingRequest(collection=collection, checkpoint=checkpoint, keys=_message(encoded[part]))
        for part in parts
    )
    responses = list(connection.stream(connection.rows.ListMissing, requests))
    if len(responses) != len(parts):
        raise Internal(f"{len(responses)} answers to {len(parts)} questions for missing keys")
    positions = (np.frombuffer(response.positions, "<u4").tolist() for response in responses)
    return [plain[part.start + i] for part, found in zip(parts, positions, strict=True) for i in found]


def delete_rows(connection: Connection, collection: str, keys: Keys | None, where: Mapping[str, Any] | None) -> int:
    """Deletes the rows of ``keys``, or those for which ``where`` holds; exactly one of the two is given. Returns how
    many rows there were."""
    if (keys is None) == (where is None):
        both = "keys and where were both given" if keys is not None else "neither keys nor where is given"
        raise InvalidInput(f"{both}; name the rows by one of them (where={{}} is every row)")
    requests = _deletions_by_key(keys) if keys is not None else [{"where_json": filter_json(where) or "{}"}]
    deleted = 0
    for chosen in requests:
        request = rows_pb2.DeleteRowsRequest(collection=collection, request_id=str(uuid.uuid4()), **chosen)
        deleted += connection.call(connection.rows.DeleteRows, request).row_count
    return deleted


def _deletions_by_key(keys: Keys) -> list[dict[str, Any]]:
    """The fields of the requests, each of them small enough; all keys are checked before the first is sent."""
    encoded = [encode_key(key) for key in plain_keys(keys)]
    parts = row_chunks(encoded, rows_max=_KEYS_MAX, bytes_max=_KEY_BYTES_MAX)
    return [{"keys": _message(encoded[part])} for part in parts]


def _message(encoded: Sequence[bytes]) -> types_pb2.KeyColumn:
    return types_pb2.KeyColumn(values=column_to_message(column_of(encoded)))


def _read_rows(responses: Iterator[rows_pb2.GetRowsResponse], keys: Sequence[Key], dim: int | None) -> Iterator[Row]:
    """The rows in a stream of answers; ``dim`` None: without gradients."""
    position = 0
    for response in responses:
        count = response.row_count
        vectors = None if dim is None else _read_gradients(response, responses, dim)
        texts = _strings(response.texts if response.HasField("texts") else None, count, "texts")
        metadata = _strings(response.metadata if response.HasField("metadata") else None, count, "metadata")
        for row in range(count):
            gradient = None if vectors is None else vectors[row]
            yield Row(keys[position + row], texts[row], metadata_from_json(metadata[row] or ""), gradient)
        position += count
    if position != len(keys):
        raise Internal(f"{position} rows came for {len(keys)} keys")


def _read_gradients(
    first: rows_pb2.GetRowsResponse, more: Iterator[rows_pb2.GetRowsResponse], dim: int
) -> list[npt.NDArray[np.float32] | None]:
    """The gradients of the rows of ``first``, with the messages that carry them on; None for a row without."""
    size = 2 * dim * first.row_count
    data = bytearray(first.gradients)
    while len(data) < size:
        part = next(more, None)
        if part is None or part.row_count:
            raise Internal(f"the gradients of {first.row_count} rows stopped at {len(data)} of {size} bytes")
        data += part.gradients
    if len(data) != size or len(first.scales) != 4 * first.row_count:
        raise Internal(f"{len(data)} bytes of gradients and {len(first.scales)} of scales for {first.row_count} rows")
    scales = np.frombuffer(first.scales, "<f4")
    rows = np.frombuffer(data, "<f2").reshape(first.row_count, dim)
    present = np.flatnonzero(~np.isnan(scales))
    vectors: list[npt.NDArray[np.float32] | None] = [None] * first.row_count
    for row in present.tolist():
        vectors[row] = rows[row].astype(np.float32) * scales[row]
    return vectors


def _strings(column: types_pb2.BinaryColumn | None, count: int, name: str) -> list[str | None]:
    return [None] * count if column is None else column_from_message(column, count, name).strings()


def checked_checkpoint(checkpoint: str) -> str:
    """The name of one checkpoint. Raises InvalidInput for anything else."""
    if not isinstance(checkpoint, str) or not checkpoint:
        raise InvalidInput(f"checkpoint is the name of a checkpoint, not {checkpoint!r}")
    return checkpoint
