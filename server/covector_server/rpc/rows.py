"""RowsService: rows by key, which of them lack a gradient, and how many there are."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from covector.blocks import column_from_message, column_of, column_to_message, decode_key
from covector.errors import InvalidInput, NotFound
from covector.v1 import rows_pb2 as pb
from covector.v1 import rows_pb2_grpc, types_pb2
from covector_server.limits import Limits
from covector_server.query.cancellation import Cancelled, check_cancelled
from covector_server.query.checkpoints import find_checkpoint
from covector_server.query.engine import count_rows
from covector_server.query.filter import matching_rows, parse_where
from covector_server.rpc.admission import QueryAdmission
from covector_server.rpc.edge import streaming, unary
from covector_server.rpc.query import OpenView
from covector_server.rpc.streams import MESSAGE_BYTES, Context, computed, pulled, runs
from covector_server.storage.view import CheckpointView, CollectionView, RowIds

ROWS_AT_ONCE = 256
Delete = Callable[[str, RowIds, str], Awaitable[int]]  # collection, row ids, request id -> rows deleted


class RowsServicer(rows_pb2_grpc.RowsServiceServicer):
    """Translates; views answer, in the pool. ``admission``: of the queries, with which its streams are counted."""

    def __init__(
        self, open_view: OpenView, pool: ThreadPoolExecutor, admission: QueryAdmission, limits: Limits, delete: Delete
    ) -> None:
        self._open_view = open_view
        self._pool = pool
        self._admission = admission
        self._limits = limits
        self._delete = delete

    @streaming
    async def GetRows(self, request: pb.GetRowsRequest, context: Context) -> AsyncIterator[pb.GetRowsResponse]:
        with self._admission.stream():
            async for response in pulled(self._pool, lambda cancelled: self._rows(request, cancelled)):
                yield response

    @streaming
    async def ListMissing(
        self, requests: AsyncIterator[pb.ListMissingRequest], context: Context
    ) -> AsyncIterator[pb.ListMissingResponse]:
        with self._admission.stream():
            async for request in requests:
                yield await computed(self._pool, functools.partial(self._missing, request))

    @unary
    async def CountRows(self, request: pb.CountRowsRequest, context: Context) -> pb.CountRowsResponse:
        return await computed(self._pool, lambda cancelled: self._count(request, cancelled))

    @unary
    async def DeleteRows(self, request: pb.DeleteRowsRequest, context: Context) -> pb.DeleteRowsResponse:
        self._limits.check("id_bytes", len(request.request_id.encode()), "bytes of the request's id")
        if request.HasField("keys") == bool(request.where_json):
            raise InvalidInput("rows are deleted by keys or by a filter: give one of the two")
        row_ids = await computed(self._pool, functools.partial(self._chosen, request))
        row_count = await self._delete(request.collection, row_ids, request.request_id)
        return pb.DeleteRowsResponse(row_count=row_count)

    def _chosen(self, request: pb.DeleteRowsRequest, cancelled: Cancelled) -> RowIds:
        """The ids of the rows to delete; -1 for a key that is not known."""
        where = parse_where(request.where_json)
        with self._open_view(request.collection) as view:
            if where is None:
                return view.row_ids_of(_keys_of(request.keys))
            return np.flatnonzero(matching_rows(view, where, self._limits, cancelled))

    def _rows(self, request: pb.GetRowsRequest, cancelled: Cancelled) -> Iterator[pb.GetRowsResponse]:
        keys = _keys_of(request.keys)
        with self._open_view(request.collection) as view:
            row_ids = _known_row_ids(view, keys)
            checkpoint = find_checkpoint(view, request.checkpoint) if request.gradients else None
            row_bytes = 0 if checkpoint is None else 2 * view.space.dim
            step = max(1, min(ROWS_AT_ONCE, MESSAGE_BYTES // max(row_bytes, 1)))
            for start in range(0, len(row_ids), step):
                check_cancelled(cancelled)
                yield from _row_messages(view, row_ids[start : start + step], checkpoint)

    def _missing(self, request: pb.ListMissingRequest, _: Cancelled) -> pb.ListMissingResponse:
        with self._open_view(request.collection) as view:
            row_ids = view.row_ids_of(_keys_of(request.keys))
            missing = np.ones(len(row_ids), dtype=bool)
            if request.checkpoint in view.checkpoints or (view.checkpoints and not request.checkpoint):
                known = np.flatnonzero(row_ids >= 0)
                missing[known] = ~find_checkpoint(view, request.checkpoint).has(row_ids[known])
        return pb.ListMissingResponse(positions=np.flatnonzero(missing).astype("<u4").tobytes())

    def _count(self, request: pb.CountRowsRequest, cancelled: Cancelled) -> pb.CountRowsResponse:
        where = parse_where(request.where_json)
        with self._open_view(request.collection) as view:
            return pb.CountRowsResponse(row_count=count_rows(view, where, limits=self._limits, cancelled=cancelled))


def _keys_of(message: types_pb2.KeyColumn) -> list[bytes]:
    keys = column_from_message(message.values, len(message.values.ends) // 4, "keys").values()
    present = [key for key in keys if key is not None]
    if len(present) < len(keys):
        raise InvalidInput(f"keys: entry {keys.index(None)} is absent; every key has a value")
    return present


def _known_row_ids(view: CollectionView, keys: Sequence[bytes]) -> RowIds:
    row_ids = view.row_ids_of(keys)
    unknown = np.flatnonzero(row_ids < 0)
    if len(unknown):
        key = decode_key(keys[unknown[0]])
        raise NotFound(f"no row {key!r} in {view.name!r}; integer and string keys are distinct", key=key)
    return row_ids


def _row_messages(
    view: CollectionView, row_ids: RowIds, checkpoint: CheckpointView | None
) -> Iterator[pb.GetRowsResponse]:
    """The rows, in messages of about MESSAGE_BYTES; a longer gradient carries on in messages of no rows."""
    details = view.details_of(row_ids)
    texts = [None if row.text is None else row.text.encode() for row in details]
    metadata = [row.metadata_json for row in details]
    row_bytes = 0 if checkpoint is None else 2 * view.space.dim
    for run in runs(
        [len(text or b"") + len(json or b"") + row_bytes for text, json in zip(texts, metadata, strict=True)]
    ):
        message = pb.GetRowsResponse(
            row_count=run.stop - run.start, texts=_column(texts[run]), metadata=_column(metadata[run])
        )
        if checkpoint is None:
            yield message
            continue
        rows, scales = _gradients(checkpoint, row_ids[run], view.space.dim)
        data = memoryview(rows.astype("<f2", copy=False).tobytes())
        message.scales, message.gradients = scales.astype("<f4", copy=False).tobytes(), bytes(data[:MESSAGE_BYTES])
        yield message
        for start in range(MESSAGE_BYTES, len(data), MESSAGE_BYTES):
            yield pb.GetRowsResponse(gradients=bytes(data[start : start + MESSAGE_BYTES]))


def _column(values: list[bytes | None]) -> types_pb2.BinaryColumn | None:
    return None if all(value is None for value in values) else column_to_message(column_of(values))


def _gradients(
    checkpoint: CheckpointView, row_ids: RowIds, dim: int
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float32]]:
    """Rows float16[n, dim] and scales float32[n]; zeros and NaN for a row without a gradient."""
    rows = np.zeros((len(row_ids), dim), dtype=np.float16)
    scales = np.full(len(row_ids), np.nan, dtype=np.float32)
    here = np.flatnonzero(checkpoint.has(row_ids))
    if len(here):
        tile = checkpoint.gather(row_ids[here])
        rows[here], scales[here] = tile.rows, tile.scales
    return rows, scales
