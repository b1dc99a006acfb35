"""The ingest stream without a database: the same messages, read the same way, acknowledged at once, stored nowhere.

    python benchmarks/acknowledging_server.py --listen 127.0.0.1:0 [--style raw]

What ingest could reach if storing cost nothing. The server is of the kind and with the options of
covector_server.app; a handler that reads messages in another way than covector's own belongs here as another style.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from covector.v1 import ingest_pb2 as pb
from covector_server.limits import Limits

LIMITS = Limits()
OPTIONS = [
    ("grpc.max_receive_message_length", LIMITS.message_bytes + (64 << 10)),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
]
END: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs leave it out
METHOD = "/covector.v1.IngestService/Ingest"
_BATCH_TAG = pb.IngestRequest.BATCH_FIELD_NUMBER << 3 | 2
_GRADIENTS_TAG = pb.Batch.GRADIENTS_FIELD_NUMBER << 3 | 2
_FIXED_BYTES = {1: 8, 5: 4}  # wire types


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
    """Style ``raw``: the message's fields are found by hand, and the gradients are not copied."""
    while (message := await context.read()) is not END:
        if message[0] == _BATCH_TAG:
            sequence, row_count, _gradients = batch_of(message)
            await context.write(acknowledged(sequence, row_count).SerializeToString())
        elif pb.IngestRequest.FromString(message).HasField("open"):
            await context.write(opened().SerializeToString())


def batch_of(message: bytes) -> tuple[int, int, memoryview]:
    """Sequence, rows and gradients of a serialised IngestRequest with a batch."""
    _, position = _varint(message, 1)
    numbers: dict[int, int] = {}
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == 0:
            numbers[tag >> 3], position = _varint(message, position)
        elif kind == 2:
            size, position = _varint(message, position)
            if tag == _GRADIENTS_TAG:
                return numbers[1], numbers[2], memoryview(message)[position : position + size]
            position += size
        else:
            position += _FIXED_BYTES[kind]
    return numbers[1], numbers[2], memoryview(b"")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7


class _Ingest(grpc.GenericRpcHandler):
    def __init__(self, style: str) -> None:
        self._handler = STYLES[style]()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handler if handler_call_details.method == METHOD else None


def _raw() -> Any:
    behaviour: Callable[..., Awaitable[None]] = acknowledge_bytes
    return grpc.stream_stream_rpc_method_handler(behaviour)


def _proto() -> Any:
    return grpc.stream_stream_rpc_method_handler(
        acknowledge_messages, pb.IngestRequest.FromString, pb.IngestResponse.SerializeToString
    )


STYLES = {"raw": _raw, "proto": _proto}


async def serve(listen: str, style: str) -> None:
    """Serves until it is killed; prints where."""
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((_Ingest(style),))
    port = server.add_insecure_port(listen)
    await server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--style", choices=STYLES, default="raw")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.listen, arguments.style))
