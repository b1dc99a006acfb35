"""A real gRPC server whose IngestService follows a script: it acknowledges, breaks, refuses or holds still when told.

It stores what it acknowledges as the real one would: whole batches, in sequence, once each by writer and number, and
it remembers every message as it came. Nothing sleeps: what should wait, waits for an event.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc

from covector.connection import Connection
from covector.errors import CovectorError, to_status
from covector.v1 import ingest_pb2

WAIT_S = 30.0


@dataclass
class Script:
    """What the server does. Counts are of batches on one stream."""

    break_after: list[int] = field(default_factory=list)  # stream by stream: break it at this batch, before storing it
    store_then_break: bool = False  # store the batch at which a stream breaks, without acknowledging it
    refuse: dict[int, CovectorError] = field(default_factory=dict)  # sequence -> why it is refused
    refuse_to_open: CovectorError | None = None
    hold: threading.Event | None = None  # acknowledge nothing before it is set
    silent_streams: int = 0  # so many streams are opened and then never answer
    forget: bool = False  # after a break, claim to have stored nothing
    message_bytes_max: int = 8 << 20


class ScriptedServer:
    """Serves one script. ``batches`` holds what is stored, ``streams`` every serialised message of each stream."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.batches: list[ingest_pb2.Batch] = []
        self.streams: list[list[bytes]] = []
        self.opened: list[ingest_pb2.OpenWriter] = []
        self.changed = threading.Condition()
        self._pool = ThreadPoolExecutor(8)
        self._server = grpc.server(self._pool, options=[("grpc.max_receive_message_length", -1)])
        handler: Any = grpc.stream_stream_rpc_method_handler(
            self._ingest, request_deserializer=None, response_serializer=ingest_pb2.IngestResponse.SerializeToString
        )
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("covector.v1.IngestService", {"Ingest": handler})]
        )
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def connect(self, timeout_s: float = WAIT_S) -> Connection:
        return Connection(f"127.0.0.1:{self.port}", timeout_s=timeout_s)

    def stop(self) -> None:
        if self.script.hold is not None:
            self.script.hold.set()
        self._server.stop(None).wait()
        self._pool.shutdown()

    def wait_for_messages(self, count: int) -> None:
        """Returns when ``count`` messages have come in all."""
        with self.changed:
            assert self.changed.wait_for(lambda: sum(map(len, self.streams)) >= count, WAIT_S)

    def _ingest(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[ingest_pb2.IngestResponse]:
        messages: list[bytes] = []
        with self.changed:
            self.streams.append(messages)
        first = ingest_pb2.IngestRequest.FromString(self._noted(next(requests), messages))
        self.opened.append(first.open)
        if self.script.refuse_to_open is not None:
            self._end(context, self.script.refuse_to_open)
        yield ingest_pb2.IngestResponse(opened=self._opened())
        if len(self.streams) <= self.script.silent_streams:
            for _ in requests:
                pass
            return
        yield from self._acknowledge(requests, messages, context)

    def _opened(self) -> ingest_pb2.WriterOpened:
        return ingest_pb2.WriterOpened(
            last_sequence=0 if self.script.forget else len(self.batches),
            message_bytes_max=self.script.message_bytes_max,
            batch_bytes_max=64 << 20,
            batch_rows_max=65_536,
        )

    def _acknowledge(
        self, requests: Iterator[bytes], messages: list[bytes], context: grpc.ServicerContext
    ) -> Iterator[ingest_pb2.IngestResponse]:
        limit = self.script.break_after.pop(0) if self.script.break_after else None
        for count, batch in enumerate(self._batches(requests, messages)):
            if self.script.hold is not None:
                assert self.script.hold.wait(WAIT_S)
            if batch.sequence in self.script.refuse:
                self._end(context, self.script.refuse[batch.sequence])
            breaks = count == limit
            if not breaks or self.script.store_then_break:
                assert batch.sequence == len(self.batches) + 1, "a gap, or a batch stored twice"
                self.batches.append(batch)
            if breaks:
                context.abort(grpc.StatusCode.UNAVAILABLE, "the script broke the stream")
            acknowledged = ingest_pb2.BatchAcknowledged(sequence=batch.sequence, stored_row_count=batch.row_count)
            yield ingest_pb2.IngestResponse(acknowledged=acknowledged)

    def _batches(self, requests: Iterator[bytes], messages: list[bytes]) -> Iterator[ingest_pb2.Batch]:
        for data in requests:
            batch = ingest_pb2.IngestRequest.FromString(self._noted(data, messages)).batch
            while len(batch.gradients) < batch.gradients_size:
                batch.gradients += ingest_pb2.IngestRequest.FromString(
                    self._noted(next(requests), messages)
                ).part.gradients
            yield batch

    def _noted(self, data: bytes, messages: list[bytes]) -> bytes:
        with self.changed:
            messages.append(data)
            self.changed.notify_all()
        return data

    def _end(self, context: Any, error: CovectorError) -> None:
        status, text, metadata = to_status(error)
        context.set_trailing_metadata(metadata)
        context.abort(status, text)
