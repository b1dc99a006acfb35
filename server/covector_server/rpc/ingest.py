"""IngestService: a writer's stream of batches, acknowledged in order.

A task reads the stream, puts batches together and queues them; the handler answers as they are committed. So many
batches are in flight, and a client that is not read from any more (its budget is spent) feels it as back-pressure.
Streams are coroutines: an idle writer costs no thread.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, get_args

import grpc

from covector.errors import InvalidInput, LimitExceeded, Unavailable
from covector.v1 import ingest_pb2 as pb
from covector.v1 import ingest_pb2_grpc
from covector_server.ingest.batch import Batch, OnConflict, Outcome, WriterSpec, parse_batch
from covector_server.ingest.budget import ByteBudget
from covector_server.ingest.checks import check_writer
from covector_server.ingest.committer import Committer
from covector_server.ingest.draft import last_batch
from covector_server.limits import Limits
from covector_server.rpc.convert import kind_from_message, space_from_message
from covector_server.rpc.edge import streaming
from covector_server.storage.store import Store

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_POLICIES: tuple[OnConflict, ...] = ("error", *get_args(OnConflict))
_Pending = tuple[int, int, "asyncio.Future[Outcome]"]  # sequence, bytes of budget, answer


class IngestServicer(ingest_pb2_grpc.IngestServiceServicer):
    """Translates; the committer decides."""

    def __init__(
        self, store: Store, committer: Committer, pool: ThreadPoolExecutor, limits: Limits, stopping: asyncio.Event
    ) -> None:
        self._store = store
        self._committer = committer
        self._pool = pool
        self._limits = limits
        self._stopping = stopping
        self._budget = ByteBudget(limits.queue_bytes)
        self._stream_count = 0

    @streaming
    async def Ingest(
        self, requests: AsyncIterator[pb.IngestRequest], context: Context
    ) -> AsyncIterator[pb.IngestResponse]:
        if self._stream_count >= self._limits.streams:
            raise LimitExceeded(
                f"{self._stream_count} writers are open, streams={self._limits.streams}", limit="streams"
            )
        self._stream_count += 1
        try:
            messages = aiter(requests)
            spec = await self._open(messages)
            yield pb.IngestResponse(opened=self._opened(spec))
            async for acknowledged in self._acknowledge(spec, messages):
                yield pb.IngestResponse(acknowledged=acknowledged)
        finally:
            self._stream_count -= 1

    async def _open(self, messages: AsyncIterator[pb.IngestRequest]) -> WriterSpec:
        message = await self._next(messages)
        if message is None or message.WhichOneof("message") != "open":
            raise InvalidInput("the first message of a writer is OpenWriter")
        spec = _spec_of(message.open, self._limits)
        check_writer(spec, self._store.collection(spec.collection))
        return spec

    def _opened(self, spec: WriterSpec) -> pb.WriterOpened:
        collection = self._store.collection(spec.collection)
        with self._store.catalog.read() as reader:
            mark = last_batch(reader, collection, spec.writer_id)
        return pb.WriterOpened(
            last_sequence=0 if mark is None else mark.sequence,
            dim=collection.space.dim,
            message_bytes_max=self._limits.message_bytes,
            batch_bytes_max=self._limits.batch_bytes,
            batch_rows_max=self._limits.batch_rows,
        )

    async def _acknowledge(
        self, spec: WriterSpec, messages: AsyncIterator[pb.IngestRequest]
    ) -> AsyncIterator[pb.BatchAcknowledged]:
        pending: asyncio.Queue[_Pending | None] = asyncio.Queue()
        reading = asyncio.create_task(self._read(spec, messages, pending))
        try:
            while (entry := await pending.get()) is not None:
                sequence, size_bytes, answer = entry
                try:
                    outcome = await answer
                finally:
                    self._budget.release(size_bytes)
                yield pb.BatchAcknowledged(
                    sequence=sequence,
                    stored_row_count=outcome.stored_row_count,
                    duplicate_row_count=outcome.duplicate_row_count,
                    zero_row_count=outcome.zero_row_count,
                )
            await reading
        finally:
            reading.cancel()
            self._release(pending)

    async def _read(
        self, spec: WriterSpec, messages: AsyncIterator[pb.IngestRequest], pending: asyncio.Queue[_Pending | None]
    ) -> None:
        """Queues batches until the client half-closes; ends ``pending`` with None, whatever happens."""
        try:
            while (message := await self._next(messages)) is not None:
                if message.WhichOneof("message") != "batch":
                    raise InvalidInput("after OpenWriter come batches, and parts only of a batch that is not whole")
                size_bytes = self._check_size(spec, message.batch)
                await self._budget.acquire(size_bytes)
                try:
                    batch = await self._receive(spec, message.batch, messages)
                except BaseException:
                    self._budget.release(size_bytes)
                    raise
                answer = asyncio.wrap_future(self._committer.submit(spec, batch))
                pending.put_nowait((batch.sequence, size_bytes, answer))
        finally:
            pending.put_nowait(None)

    async def _receive(self, spec: WriterSpec, message: pb.Batch, messages: AsyncIterator[pb.IngestRequest]) -> Batch:
        """The whole batch, parts included, checked."""
        gradients = message.gradients
        if len(gradients) < message.gradients_size:
            gradients = await self._receive_parts(gradients, message.gradients_size, messages)
        if len(gradients) != message.gradients_size:
            raise InvalidInput(f"{len(gradients)} bytes of gradients came, gradients_size is {message.gradients_size}")
        dim = None if spec.checkpoint is None else self._store.collection(spec.collection).space.dim
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, parse_batch, message, gradients, dim, self._limits)

    async def _receive_parts(self, start: bytes, size_bytes: int, messages: AsyncIterator[pb.IngestRequest]) -> bytes:
        gradients = bytearray(start)
        while len(gradients) < size_bytes:
            message = await self._next(messages, self._limits.part_wait_s)
            if message is None or message.WhichOneof("message") != "part" or not message.part.gradients:
                raise InvalidInput(f"a batch stopped at {len(gradients)} of its {size_bytes} bytes of gradients")
            gradients += message.part.gradients
        return bytes(gradients)

    def _check_size(self, spec: WriterSpec, message: pb.Batch) -> int:
        """The bytes a batch will hold in memory. Raises LimitExceeded for one past the limits, InvalidInput for one
        whose sizes contradict each other: a claim alone must not hold bytes that others wait for."""
        dim = 0 if spec.checkpoint is None else self._store.collection(spec.collection).space.dim
        if message.gradients_size != 2 * dim * message.row_count:
            raise InvalidInput(
                f"gradients_size is {message.gradients_size}; {message.row_count} rows of dim {dim} have "
                f"{2 * dim * message.row_count} bytes"
            )
        name = "row_bytes" if message.row_count == 1 else "batch_bytes"
        self._limits.check(name, message.gradients_size, "bytes of gradients in a batch")
        return max(message.gradients_size, len(message.gradients)) + message.ByteSize() - len(message.gradients)

    async def _next(
        self, messages: AsyncIterator[pb.IngestRequest], timeout_s: float | None = None
    ) -> pb.IngestRequest | None:
        """The next message, None at the end. Raises Unavailable when the server stops, or the time has passed."""
        reading = asyncio.ensure_future(anext(messages, None))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({reading, stopping}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                return reading.result()
            if not stopping.done():
                raise Unavailable(f"the rest of a batch did not come within part_wait_s={timeout_s} s; send it again")
            raise Unavailable("the server is stopping; open the writer again and send what was not acknowledged")
        finally:
            reading.cancel()
            stopping.cancel()

    def _release(self, pending: asyncio.Queue[_Pending | None]) -> None:
        while not pending.empty():
            entry = pending.get_nowait()
            if entry is not None:
                self._budget.release(entry[1])
                entry[2].add_done_callback(_forget)


def _forget(answer: asyncio.Future[Outcome]) -> None:
    """Nobody waits for this answer any more: its exception, if it has one, was looked at."""
    if not answer.cancelled():
        answer.exception()


def _spec_of(message: pb.OpenWriter, limits: Limits) -> WriterSpec:
    if not message.writer_id:
        raise InvalidInput("writer_id is empty; a writer needs an id of its own, such as a UUID")
    limits.check("id_bytes", len(message.writer_id.encode()), "bytes of the writer's id")
    limits.check("id_bytes", len(message.checkpoint.encode()), "bytes of the checkpoint's name")
    if not math.isfinite(message.eta):
        raise InvalidInput(f"eta is {message.eta}; it is a finite number")
    if not 0 <= message.on_conflict < len(_POLICIES):
        raise InvalidInput("on_conflict is newer than this server; update the server")
    return WriterSpec(
        collection=message.collection,
        writer_id=message.writer_id,
        checkpoint=message.checkpoint or None,
        eta=message.eta,
        weights_digest=message.weights_digest or None,
        kind=kind_from_message(message.kind),
        on_conflict=_POLICIES[message.on_conflict],
        space=space_from_message(message.space) if message.HasField("space") else None,
    )
