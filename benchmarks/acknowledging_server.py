"""The ingest stream without a database: the same messages, read the same way, acknowledged at once, stored nowhere.

    python benchmarks/acknowledging_server.py --listen 127.0.0.1:0 [--style beside]

What ingest could reach if storing cost nothing. The server is of the kind and with the options of
covector_server.app; a handler that reads messages in another way than covector's own belongs here as another style.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import grpc

from covector.v1 import ingest_pb2 as pb
from covector_server.__main__ import collect_rarely, keep_freed_memory
from covector_server.app import grpc_options
from covector_server.limits import Limits
from covector_server.rpc.framing import read_request

LIMITS = Limits()
END: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs leave it out
METHOD = "/covector.v1.IngestService/Ingest"


def opened() -> pb.IngestResponse:
    """The answer to OpenWriter."""
    sizes = pb.WriterOpened(
        message_bytes_max=LIMITS.message_bytes,
        batch_bytes_max=LIMITS.batch_bytes,
        batch_rows_max=LIMITS.batch_rows,
    )
    return pb.IngestResponse(opened=sizes)


def acknowledged(sequence: int, row_count: int) -> pb.IngestResponse:
    """The answer to a batch."""
    return pb.IngestResponse(acknowledged=pb.BatchAcknowledged(sequence=sequence, stored_row_count=row_count))


async def acknowledge_messages(requests: AsyncIterator[pb.IngestRequest], _context: Any) -> AsyncIterator[Any]:
    """Style ``proto``: protobuf parses each message."""
    async for message in requests:
        if message.HasField("open"):
            yield opened()
        elif message.HasField("batch"):
            batch = message.batch
            assert len(batch.gradients) <= batch.gradients_size
            yield acknowledged(batch.sequence, batch.row_count)


async def acknowledge_bytes(_requests: object, context: Any) -> None:
    """Style ``raw``: messages are read by covector's own ``rpc.framing``, which does not copy the gradients, and each
    is answered before the next is read."""
    while (data := await context.read()) is not END:
        request = read_request(data)
        if request.kind == "batch":
            batch = request.message.batch
            await context.write(acknowledged(batch.sequence, batch.row_count).SerializeToString())
        elif request.kind == "open":
            await context.write(opened().SerializeToString())
        del data, request  # the next message finds the memory of this one in the cache


async def acknowledge_beside(_requests: object, context: Any) -> None:
    """Style ``beside``: as covector's own service does it for a client that says it takes cumulative acknowledgements.
    One task reads, the handler answers: all that came while it wrote the answer before is acknowledged at once."""
    waiting = _Waiting()
    reading = asyncio.create_task(_read(context, waiting))
    while (answer := await waiting.answer()) is not None:
        await context.write(answer.SerializeToString())
    await reading


class _Waiting:
    """Batches that were read and not acknowledged yet."""

    def __init__(self) -> None:
        self._sequence = self._row_count = 0
        self._is_open = self._is_over = False
        self._changed = asyncio.Event()

    def open(self) -> None:
        self._is_open = True
        self._changed.set()

    def add(self, sequence: int, row_count: int) -> None:
        self._sequence, self._row_count = sequence, self._row_count + row_count
        self._changed.set()

    def end(self) -> None:
        self._is_over = True
        self._changed.set()

    async def answer(self) -> pb.IngestResponse | None:
        """The next message to send, None at the end."""
        while not (self._is_open or self._row_count or self._is_over):
            await self._changed.wait()
            self._changed.clear()
        if self._is_open:
            self._is_open = False
            return opened()
        if not self._row_count:
            return None
        row_count, self._row_count = self._row_count, 0
        return acknowledged(self._sequence, row_count)


async def _read(context: Any, waiting: _Waiting) -> None:
    try:
        while (data := await context.read()) is not END:
            request = read_request(data)
            if request.kind == "batch":
                waiting.add(request.message.batch.sequence, request.message.batch.row_count)
            elif request.kind == "open":
                waiting.open()
            del data, request  # the next message finds the memory of this one in the cache
    finally:
        waiting.end()


class _Ingest(grpc.GenericRpcHandler):
    def __init__(self, style: str) -> None:
        self._handler = STYLES[style]()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handler if handler_call_details.method == METHOD else None


def _of_bytes(behaviour: Callable[..., Awaitable[None]]) -> Any:
    return grpc.stream_stream_rpc_method_handler(behaviour)


def _proto() -> Any:
    return grpc.stream_stream_rpc_method_handler(
        acknowledge_messages, pb.IngestRequest.FromString, pb.IngestResponse.SerializeToString
    )


STYLES = {
    "raw": partial(_of_bytes, acknowledge_bytes),
    "beside": partial(_of_bytes, acknowledge_beside),
    "proto": _proto,
}


async def serve(listen: str, style: str) -> None:
    """Serves until it is killed; prints where."""
    server = grpc.aio.server(options=grpc_options(LIMITS))
    server.add_generic_rpc_handlers((_Ingest(style),))
    port = server.add_insecure_port(listen)
    await server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--style", choices=STYLES, default="beside")
    arguments = parser.parse_args()
    keep_freed_memory()
    collect_rarely()
    asyncio.run(serve(arguments.listen, arguments.style))
