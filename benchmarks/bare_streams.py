"""The fastest that gRPC in Python can move bytes between two processes, and raw TCP beside it: no parsing, no database.

    python benchmarks/bare_streams.py --style sync-unary

A handler without (de)serialisers takes messages and answers nothing until the end (``unary``) or an empty message each
(``stream``), on the synchronous or the asyncio server. ``send_bare`` and ``send_tcp`` are the clients: a generator of
bytes, which measured faster than the asyncio client.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import grpc

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
IN_FLIGHT = 32  # messages that are not answered yet
METHOD = "/any/method"
END: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs leave it out
GRPC_STYLES = ("sync-unary", "sync-stream", "aio-unary", "aio-stream")
STYLES = (*GRPC_STYLES, "tcp")


def take(requests: Iterator[bytes], _context: object) -> bytes:
    for _ in requests:
        pass
    return b""


def answer(requests: Iterator[bytes], _context: object) -> Iterator[bytes]:
    for _ in requests:
        yield b""


async def take_async(_requests: AsyncIterator[bytes], context: Any) -> bytes:
    while await context.read() is not END:
        pass
    return b""


async def answer_async(_requests: AsyncIterator[bytes], context: Any) -> None:
    while await context.read() is not END:
        await context.write(b"")


_BEHAVIOURS: dict[str, Callable[..., Any]] = {
    "sync-unary": take,
    "sync-stream": answer,
    "aio-unary": take_async,
    "aio-stream": answer_async,
}


class _Any(grpc.GenericRpcHandler):
    def __init__(self, style: str) -> None:
        make: Any = grpc.stream_unary_rpc_method_handler
        if style.endswith("stream"):
            make = grpc.stream_stream_rpc_method_handler
        self._handler: Any = make(_BEHAVIOURS[style])

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        del handler_call_details
        return self._handler


def serve_sync(style: str) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(8), options=OPTIONS)
    server.add_generic_rpc_handlers((_Any(style),))
    _say(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    server.wait_for_termination()


async def serve_async(style: str) -> None:
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((_Any(style),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    _say(port)
    await server.wait_for_termination()


def serve_tcp() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    _say(listener.getsockname()[1])
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_drain, args=(connection,), daemon=True).start()


def _drain(connection: socket.socket) -> None:
    buffer = bytearray(1 << 20)
    while connection.recv_into(buffer):
        pass
    connection.sendall(b".")


def _say(port: int) -> None:
    print(f"listening on 127.0.0.1:{port}", flush=True)


def send_bare(address: str, style: str, messages: Sequence[bytes]) -> None:
    """Sends the messages; returns when all were taken."""
    room = threading.Semaphore(IN_FLIGHT)
    with grpc.insecure_channel(address, options=[*OPTIONS, ("grpc.enable_http_proxy", 0)]) as channel:
        call: Any = (channel.stream_unary if style.endswith("unary") else channel.stream_stream)(METHOD)
        if style.endswith("unary"):
            call(iter(messages))
            return
        for _ in call(_with_room(messages, room)):
            room.release()


def _with_room(messages: Sequence[bytes], room: threading.Semaphore) -> Iterator[bytes]:
    for message in messages:
        room.acquire()
        yield message


def send_tcp(address: str, messages: Sequence[bytes]) -> None:
    """Sends the messages on a bare connection; returns when all were taken."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        for message in messages:
            connection.sendall(message)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--style", choices=STYLES, required=True)
    chosen = parser.parse_args().style
    if chosen == "tcp":
        serve_tcp()
    elif chosen.startswith("sync"):
        serve_sync(chosen)
    else:
        asyncio.run(serve_async(chosen))
