"""The edge: where errors become gRPC status. Every handler passes through one of the two decorators."""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError

from covector.errors import CovectorError, Internal, InvalidInput, Unavailable, to_status

Self = TypeVar("Self")
_log = logging.getLogger(__name__)


def unary(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Wraps ``async def handler(self, request, context)``."""

    @functools.wraps(method)
    async def handler(self: object, request: object, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await method(self, request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - the edge
            await _abort(context, error)

    return handler


def streaming(method: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    """Wraps ``async def handler(self, request_or_iterator, context)`` that yields responses."""

    @functools.wraps(method)
    async def handler(self: object, request: object, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            async for response in method(self, request, context):
                yield response
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - the edge
            await _abort(context, error)

    return handler


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> NoReturn:
    status, text, metadata = to_status(_explained(error))
    await context.abort(status, text, metadata)
    raise AssertionError("abort returned")


def _explained(error: Exception) -> CovectorError:
    """The error that a caller is told."""
    if isinstance(error, CovectorError):
        return error
    if isinstance(error, DecodeError):
        return InvalidInput(f"a message cannot be parsed: {error}")
    _log.error("a call failed", exc_info=error)
    if isinstance(error, MemoryError):
        return Unavailable("the server is out of memory; try again later, with less at once")
    return Internal(f"{type(error).__name__}: {error}; please report this")
