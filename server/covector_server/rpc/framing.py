"""Requests of the ingest stream, read without copying the gradients.

protobuf's parser copies a ``bytes`` field twice, which at a MiB a message costs as much as receiving it. So the fields
of a message are stepped over by hand (tag, then by wire type; protobuf.dev/programming-guides/encoding), the gradients
are taken as a view of the message, and protobuf parses what is left. Any legal encoding is read, whatever its order.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from covector.errors import InvalidInput
from covector.v1 import ingest_pb2 as pb

_BATCH, _PART = pb.IngestRequest.BATCH_FIELD_NUMBER, pb.IngestRequest.PART_FIELD_NUMBER
_GRADIENTS = pb.Batch.GRADIENTS_FIELD_NUMBER
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_NOTHING = memoryview(b"")


@dataclass(frozen=True, slots=True)
class Request:
    """A request: ``message`` without its gradients, and those as a view of the bytes that came."""

    message: pb.IngestRequest
    gradients: memoryview

    @property
    def kind(self) -> str | None:
        """``open``, ``batch``, ``part``, or None."""
        kind: str | None = self.message.WhichOneof("message")
        return kind


def read_request(data: bytes) -> Request:
    """The request in ``data``. Raises InvalidInput if it is none."""
    try:
        return _split(data)
    except (DecodeError, IndexError, ValueError) as error:
        raise InvalidInput(f"a message of the stream is no IngestRequest: {error}") from error


def _split(data: bytes) -> Request:
    tag = data[0] if data else 0
    if tag not in (_BATCH << 3 | _BYTES, _PART << 3 | _BYTES):
        return _whole(data)
    size, start = _varint(data, 1)
    if start + size != len(data):
        return _whole(data)  # more than one field: the last one counts, and protobuf knows how
    rest, gradients = _without_gradients(data, start)
    if tag >> 3 == _BATCH:
        return Request(pb.IngestRequest(batch=pb.Batch.FromString(rest)), gradients)
    return Request(pb.IngestRequest(part=pb.BatchPart.FromString(rest)), gradients)


def _whole(data: bytes) -> Request:
    message = pb.IngestRequest.FromString(data)
    kind = message.WhichOneof("message")
    if kind not in ("batch", "part"):
        return Request(message, _NOTHING)
    holder = getattr(message, kind)
    gradients = memoryview(holder.gradients)
    holder.ClearField("gradients")
    return Request(message, gradients)


def _without_gradients(data: bytes, start: int) -> tuple[bytes, memoryview]:
    """The fields from ``start`` on without the gradients, and the gradients; where they stand twice the last count."""
    gradients, kept, kept_from, at = _NOTHING, [], start, start
    while at < len(data):
        field_start = at
        tag, at = _varint(data, at)
        wire_type = tag & 7
        if wire_type == _BYTES:
            size, at = _varint(data, at)
            value_start, at = at, at + size
        elif wire_type == _VARINT:
            _, at = _varint(data, at)
        elif wire_type in (_FIXED64, _FIXED32):
            at += 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire_type} is not known")
        if at > len(data):
            raise ValueError("a field reaches past the end")
        if tag == _GRADIENTS << 3 | _BYTES:
            gradients = memoryview(data)[value_start:at]
            kept.append(data[kept_from:field_start])
            kept_from = at
    return b"".join((*kept, data[kept_from:])), gradients


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends. Raises IndexError past the end of the data."""
    number, shift = 0, 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError("a number has more than 64 bits")
