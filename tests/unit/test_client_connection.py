"""Connections: addresses, credentials, deadlines, silence, and errors that read well."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

import covector
from covector.connection import Connection
from covector.errors import DETAIL_METADATA_KEY, Conflict, Internal, InvalidInput, Unavailable, to_status
from covector.v1 import collections_pb2, query_pb2, types_pb2

LIST, SCORES = "covector.v1.CollectionsService/ListCollections", "covector.v1.QueryService/Scores"
Start = Callable[[str, Callable[..., Any]], str]


@pytest.fixture
def serve() -> Iterator[Start]:
    """Starts a server whose method (service/name) is a function of (requests, context); returns its address."""
    servers: list[grpc.Server] = []

    def start(method: str, behaviour: Callable[..., Any]) -> str:
        service, name = method.split("/")
        streams = name == "Scores"
        kind = grpc.stream_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        handler: Any = kind(behaviour, response_serializer=lambda message: message.SerializeToString())
        server = grpc.server(ThreadPoolExecutor(4))
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {name: handler})])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None).wait()


def scores_of(connection: Connection, count: int = 1) -> Generator[Any, None, None]:
    return connection.stream(connection.query.Scores, iter([query_pb2.ScoresRequest()] * count))


@pytest.mark.parametrize("address", ["", "localhost", "7337", "http://127.0.0.1:7337", "a b:1", "unix:", "host:port"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InvalidInput, match="is no address; write host:port"):
        covector.connect(address)


def test_nobody_there() -> None:
    with pytest.raises(Unavailable, match=r"no covector server answers at 127.0.0.1:1 .*covector serve --data DIR"):
        covector.connect("127.0.0.1:1")


def test_wrong_options(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="timeout_s is 0"):
        covector.connect("127.0.0.1:1", timeout_s=0)
    with pytest.raises(InvalidInput, match=r"tls: the certificates in .*none.pem' cannot be read"):
        covector.connect("127.0.0.1:1", tls=tmp_path / "none.pem")


def test_the_key_travels_as_a_bearer_token(serve: Start) -> None:
    seen: dict[str, Any] = {}

    def list_collections(_request: bytes, context: grpc.ServicerContext) -> collections_pb2.ListCollectionsResponse:
        seen.update(context.invocation_metadata())
        return collections_pb2.ListCollectionsResponse()

    with covector.connect(serve(LIST, list_collections), api_key="secret") as client:
        assert client.collections() == []
    assert seen["authorization"] == "Bearer secret"


def test_pages_are_followed_to_the_last(serve: Start) -> None:
    def page(request: bytes, _context: grpc.ServicerContext) -> collections_pb2.ListCollectionsResponse:
        number = int(collections_pb2.ListCollectionsRequest.FromString(request).page_token or 0)
        entry = collections_pb2.Collection(name=f"c{number}", space=types_pb2.Space(json=covector.Space(dim=2).json))
        return collections_pb2.ListCollectionsResponse(
            collections=[entry], next_page_token=str(number + 1) if number < 2 else ""
        )

    with covector.connect(serve(LIST, page)) as client:
        assert [collection.name for collection in client.collections()] == ["c0", "c1", "c2"]


def test_the_servers_error_comes_whole(serve: Start) -> None:
    def refuse(_request: bytes, context: Any) -> None:
        status, text, metadata = to_status(Conflict("eta differs", field="eta", message="x", kind="y"))
        context.set_trailing_metadata(metadata)
        context.abort(status, text)

    connection = Connection(serve(LIST, refuse))
    with pytest.raises(Conflict, match="eta differs") as caught:
        connection.call(connection.collections.ListCollections, collections_pb2.ListCollectionsRequest())
    assert caught.value.facts == {"field": "eta", "message": "x", "kind": "y"}


def test_an_error_of_a_kind_that_came_later_is_internal(serve: Start) -> None:
    def refuse(_request: bytes, context: Any) -> None:
        detail = types_pb2.ErrorDetail(kind="of_the_future", message="what to do")
        context.set_trailing_metadata(((DETAIL_METADATA_KEY, detail.SerializeToString()),))
        context.abort(grpc.StatusCode.UNKNOWN, "")

    with pytest.raises(Internal, match="what to do"):
        covector.connect(serve(LIST, refuse))


def test_a_server_of_another_kind_is_named(serve: Start) -> None:
    with pytest.raises(InvalidInput, match="or not a covector server"):
        covector.connect(serve("other.Service/Scores", lambda requests, context: iter(())))


def test_a_closed_client_says_so(serve: Start) -> None:
    client = covector.connect(serve(LIST, lambda request, context: collections_pb2.ListCollectionsResponse()))
    client.close()
    client.close()
    with pytest.raises(Unavailable, match="closed; connect again"):
        client.collections()


def test_a_call_without_an_answer_ends_at_its_deadline(serve: Start) -> None:
    over = threading.Event()
    address = serve(LIST, lambda request, context: over.wait(10))
    with pytest.raises(Unavailable, match="no answer within the deadline; raise timeout_s"):
        covector.connect(address, timeout_s=0.1)
    over.set()


def test_a_silent_stream_is_given_up(serve: Start) -> None:
    cancelled = threading.Event()

    def silent(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[query_pb2.ScoresResponse]:
        context.add_callback(cancelled.set)
        yield query_pb2.ScoresResponse(result_count=1)
        cancelled.wait(10)

    stream = scores_of(Connection(serve(SCORES, silent), timeout_s=0.1))
    assert next(stream).result_count == 1
    with pytest.raises(Unavailable, match=r"has not answered for 0.1 s; raise timeout_s"):
        next(stream)
    assert cancelled.wait(10)


def test_a_slow_reader_is_not_silence(serve: Start) -> None:
    def three(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[query_pb2.ScoresResponse]:
        for number in range(3):
            yield query_pb2.ScoresResponse(result_count=number)

    stream = scores_of(Connection(serve(SCORES, three), timeout_s=0.1))
    assert next(stream).result_count == 0
    threading.Event().wait(0.3)  # the reader's own work, longer than timeout_s
    assert [response.result_count for response in stream] == [1, 2]


def test_leaving_a_stream_early_ends_the_call(serve: Start) -> None:
    ended = threading.Event()

    def endless(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[query_pb2.ScoresResponse]:
        context.add_callback(ended.set)
        while not ended.is_set():
            yield query_pb2.ScoresResponse(result_count=1, scores=bytes(1 << 16))

    stream = scores_of(Connection(serve(SCORES, endless)))
    next(stream)
    stream.close()
    assert ended.wait(10)
