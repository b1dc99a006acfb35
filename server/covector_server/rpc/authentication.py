"""The API key: every call but the health service's must carry it, if the server has one."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc

from covector.errors import Unauthenticated, to_status

_OPEN = ("/grpc.health.v1.Health/",)
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class ApiKeyInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without the right ``authorization: Bearer KEY``."""

    def __init__(self, api_key: str) -> None:
        self._expected = f"Bearer {api_key}".encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(details)
        if handler is None:
            return handler  # type: ignore[return-value]  # an unknown method: gRPC answers UNIMPLEMENTED
        given = dict(details.invocation_metadata).get("authorization", "")
        value = given if isinstance(given, bytes) else given.encode()
        if details.method.startswith(_OPEN) or hmac.compare_digest(value, self._expected):
            return handler
        return _refusing(handler)


def _refusing(handler: Handler) -> Handler:
    """A handler of the same shape that refuses."""
    error = Unauthenticated(
        "this server wants an API key, and the one sent, if any, is not it: connect(..., api_key=...), or "
        "--api-key-file or COVECTOR_API_KEY on the command line"
    )

    async def refuse(_request: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        status, text, metadata = to_status(error)
        await context.abort(status, text, metadata)

    if handler.request_streaming:
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
    else:
        make = (
            grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
        )
    return make(refuse, handler.request_deserializer, handler.response_serializer)
