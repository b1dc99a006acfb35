"""IngestService: a writer's stream of batches, acknowledged in order.

A task reads the stream, puts batches together and queues them; the handler answers as they are committed. So many
batches are in flight, and a client that is not read from any more (its budget is spent) feels it as back-pressure.
Streams are coroutines: an idle writer costs no thread. Messages are bytes here; ``rpc.framing`` reads them.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, get_args

import grpc

from covector.errors import InvalidInput, LimitExceeded, Unavailable
from covector.v1 import ingest_pb2 as pb
from covector_server.ingest.batch import OnConflict, Outcome, WriterSpec, parse_batch
from covector_server.ingest.budget import ByteBudget
from covector_server.ingest.checks import check_writer
from covector_server.ingest.committer import Committer
from covector_server.ingest.draft import last_batch
from covector_server.limits import Limits
from covector_server.rpc.acknowledgements import Acknowledgements, Pending
from covector_server.rpc.convert import kind_from_message, space_from_message
from covector_server.rpc.edge import unary
from covector_server.rpc.framing import Request, read_request
from covector_server.storage.store import Store

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_POLICIES: tuple[OnConflict, ...] = ("error", *get_args(OnConflict))
_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs
METHOD = "/covector.v1.IngestService/Ingest"


class IngestServicer:
    """Translates; the committer decides."""

    def __init__(self, store: Store, committer: Committer, pool: ThreadPoolExecutor, limits: Limits) -> None:
        self._store = store
        self._committer = committer
        self._pool = pool
        self._limits = limits
        self._budget = ByteBudget(limits.queue_bytes)
        self._stopping = False
        self._readers: set[asyncio.Task[Any]] = set()
        self._stream_count = 0

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service, for a server: bytes in, bytes out."""
        method: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(self.Ingest)
        service, _, name = METHOD[1:].partition("/")
        return grpc.method_handlers_generic_handler(service, {name: method})

    def stop(self) -> None:
        """Ends the streams: what was received whole is still acknowledged."""
        self._stopping = True
        for reader in self._readers:
            reader.cancel()

    @unary
    async def Ingest(self, _: object, context: Context) -> None:
        if self._stream_count >= self._limits.streams:
            raise LimitExceeded(
                f"{self._stream_count} writers are open, streams={self._limits.streams}", limit="streams"
            )
        self._stream_count += 1
        try:
            opening = await self._open(context)
            spec = _spec_of(opening, self._limits)
            check_writer(spec, self._store.collection(spec.collection))
            await context.write(pb.IngestResponse(opened=self._opened(spec)).SerializeToString())
            await self._answer(spec, opening.cumulative_acknowledgements, context)
        finally:
            self._stream_count -= 1

    async def _open(self, context: Context) -> pb.OpenWriter:
        reading = asyncio.create_task(_next(context))
        self._readers.add(reading)
        try:
            request = await reading
        except asyncio.CancelledError:
            self._check_stopping()
            raise
        finally:
            self._readers.discard(reading)
        if request is None or request.kind != "open":
            raise InvalidInput("the first message of a writer is OpenWriter")
        return request.message.open

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

    async def _answer(self, spec: WriterSpec, cumulative: bool, context: Context) -> None:
        acknowledgements = Acknowledgements()
        reading = asyncio.create_task(self._read(spec, context, acknowledgements))
        self._readers.add(reading)
        if self._stopping:
            reading.cancel()
        try:
            while done := await acknowledgements.done():
                await self._write(done, cumulative, context)
            try:
                await reading
            except asyncio.CancelledError:
                self._check_stopping()
                raise
        finally:
            self._readers.discard(reading)
            reading.cancel()
            for pending in acknowledgements.rest():
                self._budget.release(pending.size_bytes)

    async def _write(self, done: list[Pending], cumulative: bool, context: Context) -> None:
        """Acknowledges answered batches. Raises the error of the first that was refused, after those before it."""
        for pending in done:
            self._budget.release(pending.size_bytes)
        stored = list(itertools.takewhile(lambda pending: pending.answer.exception() is None, done))
        for sequence, outcome in _outcomes(stored, cumulative):
            await context.write(_acknowledged(sequence, outcome))
        if len(stored) < len(done):
            done[len(stored)].answer.result()  # raises

    async def _read(self, spec: WriterSpec, context: Context, acknowledgements: Acknowledgements) -> None:
        """Queues batches until the client half-closes; ends ``acknowledgements``, whatever happens."""
        try:
            while (request := await _next(context)) is not None:
                if request.kind != "batch":
                    raise InvalidInput("after OpenWriter come batches, and parts only of a batch that is not whole")
                size_bytes = self._check_size(spec, request)
                await self._budget.acquire(size_bytes)
                try:
                    gradients = await self._gradients(request, context)
                    batch = request.message.batch
                    dim = None if spec.checkpoint is None else self._store.collection(spec.collection).space.dim
                    parsing = self._pool.submit(parse_batch, batch, gradients, dim, self._limits)
                    answer = self._committer.submit(spec, parsing)
                except BaseException:
                    self._budget.release(size_bytes)
                    raise
                acknowledgements.add(Pending(batch.sequence, size_bytes, answer))
        finally:
            acknowledgements.end()

    async def _gradients(self, request: Request, context: Context) -> memoryview | bytearray:
        """All gradients of a batch, parts included."""
        size_bytes = request.message.batch.gradients_size
        gradients: memoryview | bytearray = request.gradients
        if len(gradients) < size_bytes:
            gradients = bytearray(gradients)
            while len(gradients) < size_bytes:
                gradients += await self._part(context, len(gradients), size_bytes)
        if len(gradients) != size_bytes:
            raise InvalidInput(f"{len(gradients)} bytes of gradients came, gradients_size is {size_bytes}")
        return gradients

    async def _part(self, context: Context, received_bytes: int, size_bytes: int) -> memoryview:
        try:
            request = await asyncio.wait_for(_next(context), self._limits.part_wait_s)
        except TimeoutError as error:
            raise Unavailable(
                f"the rest of a batch did not come within part_wait_s={self._limits.part_wait_s} s; send it again"
            ) from error
        if request is None or request.kind != "part" or not request.gradients:
            raise InvalidInput(f"a batch stopped at {received_bytes} of its {size_bytes} bytes of gradients")
        return request.gradients

    def _check_size(self, spec: WriterSpec, request: Request) -> int:
        """The bytes a batch will hold in memory. Raises LimitExceeded for one past the limits, InvalidInput for one
        whose sizes contradict each other: a claim alone must not hold bytes that others wait for."""
        batch = request.message.batch
        dim = 0 if spec.checkpoint is None else self._store.collection(spec.collection).space.dim
        if batch.gradients_size != 2 * dim * batch.row_count:
            raise InvalidInput(
                f"gradients_size is {batch.gradients_size}; {batch.row_count} rows of dim {dim} have "
                f"{2 * dim * batch.row_count} bytes"
            )
        name = "row_bytes" if batch.row_count == 1 else "batch_bytes"
        self._limits.check(name, batch.gradients_size, "bytes of gradients in a batch")
        return max(batch.gradients_size, len(request.gradients)) + batch.ByteSize()

    def _check_stopping(self) -> None:
        if self._stopping:
            raise Unavailable("the server is stopping; open the writer again and send what was not acknowledged")


async def _next(context: Context) -> Request | None:
    """The next request, None at the end."""
    data = await context.read()
    return None if data is _EOF else read_request(data)


def _acknowledged(sequence: int, outcome: Outcome) -> bytes:
    message = pb.BatchAcknowledged(
        sequence=sequence,
        stored_row_count=outcome.stored_row_count,
        duplicate_row_count=outcome.duplicate_row_count,
        zero_row_count=outcome.zero_row_count,
    )
    return pb.IngestResponse(acknowledged=message).SerializeToString()


def _outcomes(stored: list[Pending], cumulative: bool) -> list[tuple[int, Outcome]]:
    """What to acknowledge: each batch, or the last with the sums of all."""
    found = [(pending.sequence, pending.answer.result()) for pending in stored]
    if not cumulative or len(found) < 2:
        return found
    outcomes = [outcome for _, outcome in found]
    total = Outcome(
        sum(outcome.stored_row_count for outcome in outcomes),
        sum(outcome.duplicate_row_count for outcome in outcomes),
        sum(outcome.zero_row_count for outcome in outcomes),
    )
    return [(found[-1][0], total)]


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
