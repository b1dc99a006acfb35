"""Which of grpcio's two servers takes a stream of 1 MiB messages best? A handler that only acknowledges, both ways.

    python benchmarks/grpc_server_styles.py [--messages 1000]

Prints one JSON object: for the synchronous and the asyncio server, with one and three clients, the rate relative to
the synchronous server with one client. Alternates the two, and takes the median of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from typing import Any

import grpc

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
MESSAGE_BYTES = 1 << 20
IN_FLIGHT = 16


def as_is(data: bytes) -> bytes:
    return data


class Handler(grpc.GenericRpcHandler):
    def __init__(self, behaviour: Callable[..., Any]) -> None:
        self._handler = grpc.stream_stream_rpc_method_handler(behaviour, as_is, as_is)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handler


def acknowledge(requests: Iterator[bytes], _context: object) -> Iterator[bytes]:
    for _ in requests:
        yield b"."


async def acknowledge_async(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
    async for _ in requests:
        yield b"."


def serve_sync(port: Any) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(8), options=OPTIONS)
    server.add_generic_rpc_handlers((Handler(acknowledge),))
    port.send(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    server.wait_for_termination()


def serve_async(port: Any) -> None:
    async def run() -> None:
        server = grpc.aio.server(options=OPTIONS)
        server.add_generic_rpc_handlers((Handler(acknowledge_async),))
        port.send(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await server.wait_for_termination()

    asyncio.run(run())


def send(port: int, messages: int) -> None:
    data, room = os.urandom(MESSAGE_BYTES), threading.Semaphore(IN_FLIGHT)

    def requests() -> Iterator[bytes]:
        for _ in range(messages):
            room.acquire()
            yield data

    with grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
        for _ in channel.stream_stream("/any/method", as_is, as_is)(requests()):
            room.release()


def rate(serve: Callable[[Any], None], clients: int, messages: int) -> float:
    """MiB/s over all clients."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(there,), daemon=True)
    server.start()
    port = here.recv()
    workers = [context.Process(target=send, args=(port, messages // clients)) for _ in range(clients)]
    send(port, 20)
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - started
    server.terminate()
    server.join()
    return messages * MESSAGE_BYTES / (1 << 20) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    servers = {"sync": serve_sync, "asyncio": serve_async}
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(arguments.rounds):
        for clients in (1, 3):
            for name, serve in servers.items():
                rates.setdefault((name, clients), []).append(rate(serve, clients, arguments.messages))
    floor = statistics.median(rates["sync", 1])
    result = {f"{name}, {n} clients": round(statistics.median(found) / floor, 2) for (name, n), found in rates.items()}
    print(json.dumps({"grpcio": grpc.__version__, "message_bytes": MESSAGE_BYTES, "relative rate": result}))


if __name__ == "__main__":
    main()
