"""A real gRPC server whose calls are plain functions, for tests of what the client sends and how it reads answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from covector.errors import CovectorError, to_status
from covector.types import Space
from covector.v1 import admin_pb2, collections_pb2, operations_pb2, query_pb2, rows_pb2

Answers = Mapping[str, Callable[..., Any]]
_FILES = (admin_pb2, collections_pb2, operations_pb2, query_pb2, rows_pb2)
_METHODS = {
    method.name: method
    for file in _FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
SPACE = Space(dim=3)


def described(name: str = "c", **fields: Any) -> collections_pb2.Collection:
    return collections_pb2.Collection(name=name, space={"json": SPACE.json}, **fields)


@contextmanager
def scripted(answers: Answers) -> Iterator[str]:
    """Serves ``answers``: name of a call -> function of the request (of the list of requests, for a stream), which
    returns the response (a list of them) or raises a covector error. Yields the address. Two calls that every client
    begins with have answers of their own."""
    calls: Answers = {
        "ListCollections": lambda request: collections_pb2.ListCollectionsResponse(collections=[described()]),
        "GetCollection": lambda request: collections_pb2.GetCollectionResponse(collection=described(request.name)),
        **answers,
    }
    server = grpc.server(ThreadPoolExecutor(4))
    for name, answer in calls.items():
        service = _METHODS[name].containing_service.full_name
        handler = grpc.method_handlers_generic_handler(service, {name: _handler(name, answer)})
        server.add_generic_rpc_handlers([handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def _handler(name: str, answer: Callable[..., Any]) -> Any:
    method = _METHODS[name]
    many_in, many_out = method.client_streaming, method.server_streaming

    def unary(request: Any, context: Any) -> Any:
        return _answered(answer, list(request) if many_in else request, context)

    def stream(request: Any, context: Any) -> Iterator[Any]:
        yield from _answered(answer, list(request) if many_in else request, context)

    kinds: dict[tuple[bool, bool], Any] = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    return kinds[many_in, many_out](
        stream if many_out else unary,
        request_deserializer=GetMessageClass(method.input_type).FromString,
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )


def _answered(answer: Callable[..., Any], request: Any, context: Any) -> Any:
    try:
        return answer(request)
    except CovectorError as error:
        status, text, metadata = to_status(error)
        context.set_trailing_metadata(metadata)
        context.abort(status, text)
