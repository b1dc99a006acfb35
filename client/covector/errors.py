"""One tree of errors, grouped by what the caller can do, and its mapping to gRPC status.

Every error carries a ``kind`` (a word that programs may rely on; the list only grows), a message that says what to do
next, and ``facts``: strings by name, such as the field that differs or the limit that was exceeded.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar, NoReturn

import grpc

from covector.v1 import types_pb2

__all__ = [
    "AlreadyExists",
    "Conflict",
    "Corrupt",
    "CovectorError",
    "Internal",
    "InvalidInput",
    "LimitExceeded",
    "NotFound",
    "Unauthenticated",
    "Unavailable",
]

DETAIL_METADATA_KEY = "covector-error-bin"


class CovectorError(Exception):
    """The root of every error that covector raises on purpose."""

    kind: ClassVar[str] = "internal"
    status: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL

    def __init__(self, message: str, /, **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.facts = {name: str(value) for name, value in facts.items()}


class NotFound(CovectorError):
    """The named thing does not exist. The message names the near matches: correct the name, or create it."""

    kind = "not_found"
    status = grpc.StatusCode.NOT_FOUND


class AlreadyExists(CovectorError):
    """The name is taken. Choose another, or ask for the one that stands (``exist_ok=True``)."""

    kind = "already_exists"
    status = grpc.StatusCode.ALREADY_EXISTS


class InvalidInput(CovectorError, ValueError):
    """The input can never be accepted as it is. Correct it; the message names the row, field or argument."""

    kind = "invalid_input"
    status = grpc.StatusCode.INVALID_ARGUMENT


class Conflict(CovectorError):
    """The input contradicts what is stored. Decide which of the two is right (see ``on_conflict``)."""

    kind = "conflict"
    status = grpc.StatusCode.FAILED_PRECONDITION


class LimitExceeded(CovectorError):
    """A limit was exceeded; the message names it with its value. Send less, or raise it in the configuration."""

    kind = "limit_exceeded"
    status = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(CovectorError):
    """The server cannot answer now. Nothing acknowledged is lost; trying again later is safe."""

    kind = "unavailable"
    status = grpc.StatusCode.UNAVAILABLE


class Unauthenticated(CovectorError):
    """The server wants an API key, or another one."""

    kind = "unauthenticated"
    status = grpc.StatusCode.UNAUTHENTICATED


class Corrupt(CovectorError):
    """Stored bytes do not match their checksum. The message names the file and the rows; restore them."""

    kind = "corrupt"
    status = grpc.StatusCode.DATA_LOSS


class Internal(CovectorError):
    """A defect of covector. Please report it with the message."""


_BY_KIND: dict[str, type[CovectorError]] = {
    error.kind: error
    for error in (
        NotFound, AlreadyExists, InvalidInput, Conflict, LimitExceeded, Unavailable, Unauthenticated, Corrupt, Internal,
    )
}  # fmt: skip

_BY_STATUS: dict[grpc.StatusCode, type[CovectorError]] = {
    **{error.status: error for error in _BY_KIND.values()},
    grpc.StatusCode.DEADLINE_EXCEEDED: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.UNIMPLEMENTED: InvalidInput,
}


def near_matches(name: str, known: Iterable[str]) -> str:
    """The end of a NotFound message: the known names near to ``name``, or a few of them, or that there are none."""
    names = sorted(known)
    if not names:
        return "there are none yet"
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(match) for match in near) + "?"
    shown = ", ".join(repr(match) for match in names[:8])
    return f"there are: {shown}" + (", ..." if len(names) > 8 else "")


def to_status(error: CovectorError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """The gRPC status, its text and the trailing metadata that carry ``error`` over the wire."""
    message = _shortened(error.message, 2000)
    facts = {name: _shortened(value, 200) for name, value in error.facts.items()}
    detail = types_pb2.ErrorDetail(kind=error.kind, message=message, facts=facts)
    return error.status, message, ((DETAIL_METADATA_KEY, detail.SerializeToString()),)


def of_kind(kind: str, message: str, /, **facts: object) -> CovectorError:
    """The error of a kind; Internal for a kind that this version does not know."""
    return _BY_KIND.get(kind, Internal)(message, **facts)


def _shortened(text: str, length: int) -> str:
    """Metadata of a call has a few KiB in all; what a client sent may be longer."""
    return text if len(text) <= length else text[: length - 3] + "..."


def from_rpc_error(error: grpc.RpcError) -> CovectorError:
    """The covector error behind a failed call: the server's own if it sent one, else the nearest to the status."""
    for key, value in _trailing_metadata(error):
        if key == DETAIL_METADATA_KEY:
            detail = types_pb2.ErrorDetail.FromString(value)
            return of_kind(detail.kind, detail.message, **dict(detail.facts))
    status = error.code() if hasattr(error, "code") else grpc.StatusCode.UNKNOWN
    text = error.details() if hasattr(error, "details") else str(error)
    return _BY_STATUS.get(status, Internal)(_explain(status, text or ""))


def raise_from_rpc(error: grpc.RpcError) -> NoReturn:
    """Raises the covector error behind a failed call."""
    raise from_rpc_error(error) from error


def _trailing_metadata(error: grpc.RpcError) -> Iterable[tuple[str, bytes]]:
    read = getattr(error, "trailing_metadata", None)
    return (read() if read is not None else None) or ()


def _explain(status: grpc.StatusCode, text: str) -> str:
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer within the deadline; raise timeout_s of connect(), or ask for less"
    if status is grpc.StatusCode.UNAVAILABLE:
        return f"the server cannot be reached ({text}); check that it runs and the address is right"
    if status is grpc.StatusCode.UNIMPLEMENTED:
        return f"the server does not know this call ({text}); it is older than this client, or not a covector server"
    return f"{status.name}: {text}"
