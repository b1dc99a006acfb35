"""One channel to one server: address, credentials, deadlines, and the mapping of failed calls to covector's errors.

A unary call has ``timeout_s`` in all. A stream may last as long as it likes, but not be silent for ``timeout_s`` while
its answer is waited for. gRPC's own limit on message length is lifted: the server's limits hold, and this client cuts
its messages to fit them.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from covector.errors import InvalidInput, Unavailable, raise_from_rpc
from covector.v1 import (
    admin_pb2_grpc,
    collections_pb2_grpc,
    fits_pb2_grpc,
    indexes_pb2_grpc,
    ingest_pb2,
    operations_pb2_grpc,
    query_pb2_grpc,
    rows_pb2_grpc,
)

Tls = bool | bytes | str | os.PathLike[str] | None

_HOST_PORT = re.compile(r"(?P<host>\[[^\]]+\]|[^:/\s]+):(?P<port>\d{1,5})")
_LOOPBACK = ("localhost", "127.", "[::1]")
_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.http2.max_frame_size", 4 << 20),  # fewer, larger pieces of a message to join
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
# Every one of these calls may be made twice (writes carry a request id), so gRPC tries again by itself for about two
# seconds: what a restart of the server takes. The writer's stream has its own, longer patience.
_RETRIED: tuple[dict[str, str], ...] = (
    {"service": "covector.v1.CollectionsService"},
    {"service": "covector.v1.QueryService"},
    {"service": "covector.v1.RowsService"},
    {"service": "covector.v1.OperationsService"},
    {"service": "covector.v1.AdminService", "method": "GetStatus"},
    {"service": "covector.v1.AdminService", "method": "CreateSnapshot"},
    {"service": "covector.v1.AdminService", "method": "ListSnapshots"},
)
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": _RETRIED,
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.2s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


class Connection:
    """A channel and the stubs of the services on it. Thread-safe."""

    def __init__(self, address: str, *, api_key: str | None = None, tls: Tls = None, timeout_s: float = 30.0) -> None:
        """``tls``: True for the system's certificate authorities, or one's own as PEM bytes or the path of a file."""
        if not timeout_s > 0:
            raise InvalidInput(f"timeout_s is {timeout_s}; it is a number of seconds above 0")
        self.address = address
        self.timeout_s = timeout_s
        self._metadata = () if api_key is None else (("authorization", f"Bearer {api_key}"),)
        self._closed = False
        self._channel = _open_channel(address, tls)
        self.collections: Any = collections_pb2_grpc.CollectionsServiceStub(self._channel)
        self.rows: Any = rows_pb2_grpc.RowsServiceStub(self._channel)
        self.query: Any = query_pb2_grpc.QueryServiceStub(self._channel)
        self.admin: Any = admin_pb2_grpc.AdminServiceStub(self._channel)
        self.indexes: Any = indexes_pb2_grpc.IndexesServiceStub(self._channel)
        self.fits: Any = fits_pb2_grpc.FitsServiceStub(self._channel)
        self.operations: Any = operations_pb2_grpc.OperationsServiceStub(self._channel)
        self._ingest: Any = self._channel.stream_stream(
            "/covector.v1.IngestService/Ingest",
            request_serializer=None,  # the writer serialises each batch once, and sends the same bytes again
            response_deserializer=ingest_pb2.IngestResponse.FromString,
        )

    def close(self) -> None:
        """Closes the channel; calls under way fail with Unavailable. A second time does nothing."""
        self._closed = True
        self._channel.close()

    def call(self, method: Any, request: object, *, timeout_s: float | None = None) -> Any:
        """The answer of a unary call. Raises the server's error, or Unavailable past the deadline."""
        try:
            return self._start(method, request, timeout=timeout_s or self.timeout_s)
        except grpc.RpcError as error:
            raise_from_rpc(error)

    def pages(self, method: Any, request: Any) -> Iterator[Any]:
        """The answers to ``request``, page after page."""
        while True:
            page = self.call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def stream(self, method: Any, requests: object) -> Generator[Any, None, None]:
        """The messages of a stream, as they are asked for; ``requests``: one message, or an iterator of messages.

        Raises the server's error, or Unavailable when nothing moves for ``timeout_s``. Leaving the iterator early ends
        the call.
        """
        watch = _SilenceWatch(self.timeout_s)
        call = self._start(method, watch.seeing(requests) if isinstance(requests, Iterator) else requests)
        try:
            with watch.over(call.cancel):
                yield from watch.messages(call)
        except grpc.RpcError as error:
            if watch.expired:
                message = f"{self.address} has not answered for {self.timeout_s:g} s; raise timeout_s of connect()"
                raise Unavailable(message, timeout_s=self.timeout_s) from error
            raise_from_rpc(error)
        finally:
            call.cancel()

    def ingest(self, requests: Iterator[bytes]) -> Any:
        """A writer's stream of serialised requests: iterates IngestResponse, may be cancelled, raises grpc.RpcError."""
        return self._start(self._ingest, requests)

    def _start(self, method: Any, request: object, **options: float) -> Any:
        if self._closed:
            raise Unavailable("this client is closed; connect again")
        try:
            return method(request, metadata=self._metadata, **options)
        except ValueError as error:  # grpc's way of saying that the channel was closed meanwhile
            raise Unavailable(f"this client is closed; connect again ({error})") from error


class _SilenceWatch:
    """Cancels a call when nothing has moved for ``timeout_s`` while somebody waited for it."""

    def __init__(self, timeout_s: float) -> None:
        self.expired = False
        self._timeout_s = timeout_s
        self._waiting_since_s: float | None = None
        self._done = threading.Event()

    def seeing(self, requests: Iterable[Any]) -> Iterator[Any]:
        """The requests, each counted as a movement."""
        for request in requests:
            self._moved()
            yield request

    def messages(self, call: Iterable[Any]) -> Iterator[Any]:
        """The answers; the time in which the caller works on one is not counted."""
        incoming, end = iter(call), object()
        while True:
            self._waiting_since_s = time.monotonic()
            message = next(incoming, end)
            self._waiting_since_s = None
            if message is end:
                return
            yield message

    def over(self, cancel: Callable[[], object]) -> _SilenceWatch:
        """Starts to watch; a context manager that ends it."""
        threading.Thread(target=self._watch, args=(cancel,), name="covector-silence", daemon=True).start()
        return self

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()

    def _moved(self) -> None:
        if self._waiting_since_s is not None:
            self._waiting_since_s = time.monotonic()

    def _watch(self, cancel: Callable[[], object]) -> None:
        left_s = self._timeout_s
        while not self._done.wait(left_s):
            since_s = self._waiting_since_s
            left_s = self._timeout_s if since_s is None else since_s + self._timeout_s - time.monotonic()
            if left_s <= 0:
                self.expired = True
                cancel()
                return


def _open_channel(address: str, tls: Tls) -> grpc.Channel:
    found = _HOST_PORT.fullmatch(address)
    if not found and not re.match(r"unix:.", address):
        raise InvalidInput(f"{address!r} is no address; write host:port, such as 127.0.0.1:7337, or unix:/path")
    options: list[tuple[str, int | str]] = [*_OPTIONS, ("grpc.service_config", json.dumps(_SERVICE_CONFIG))]
    if not found or found["host"].startswith(_LOOPBACK):
        options.append(("grpc.enable_http_proxy", 0))  # a proxy cannot reach this machine's own addresses
    if tls is None or tls is False:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(_authorities(tls)), options=options)


def _authorities(tls: Tls) -> bytes | None:
    """The PEM bytes of one's own certificate authorities, None for the system's."""
    if tls is True or isinstance(tls, bytes):
        return None if tls is True else tls
    try:
        return Path(str(tls)).read_bytes()
    except OSError as error:
        raise InvalidInput(f"tls: the certificates in {str(tls)!r} cannot be read: {error.strerror}") from error
