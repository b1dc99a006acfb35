"""From rows to batches, and from a batch to the bytes of its messages.

Rows are buffered until about a MiB has come together. A batch is serialised once, and its bytes are kept until it is
acknowledged: a batch sent again is the same to the bit, which is what lets the server recognise it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.blocks import column_to_message, scale_rows, sum64
from covector.columns import Packed, joined
from covector.errors import LimitExceeded
from covector.inputs import GivenRows
from covector.types import Key
from covector.v1 import ingest_pb2, types_pb2

BATCH_BYTES = 1 << 20
MESSAGE_BYTES = 2 << 20
_ROW_OVERHEAD_BYTES = 24  # scale, trak_q and the ends of three columns, rounded up
_FRAME_BYTES = 32  # tags and lengths around a message's fields


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large batches and messages may be, as the server said and as is good for speed."""

    batch_bytes: int = BATCH_BYTES
    batch_rows: int = 65_536
    message_bytes: int = MESSAGE_BYTES  # where gradients are cut
    message_bytes_max: int = 8 << 20  # what the server takes

    @staticmethod
    def of(opened: ingest_pb2.WriterOpened) -> Sizes:
        """Sizes within the limits of a server."""
        return Sizes(
            batch_bytes=min(BATCH_BYTES, opened.batch_bytes_max, opened.message_bytes_max // 2),
            batch_rows=opened.batch_rows_max,
            message_bytes=min(MESSAGE_BYTES, opened.message_bytes_max),
            message_bytes_max=opened.message_bytes_max,
        )


@dataclass(frozen=True, slots=True)
class SealedBatch:
    """A batch as it travels: IngestRequest messages, serialised."""

    sequence: int
    row_count: int
    zero_row_count: int
    messages: tuple[bytes, ...]
    size_bytes: int


@dataclass(slots=True)
class _Draft:
    """Rows that wait for company, a part for each call that brought some."""

    keys: list[Key] = field(default_factory=list)
    encoded: list[Packed] = field(default_factory=list)
    texts: list[Packed] = field(default_factory=list)
    metadata: list[Packed] = field(default_factory=list)
    rows: list[npt.NDArray[np.float16]] = field(default_factory=list)
    scales: list[npt.NDArray[np.float32]] = field(default_factory=list)
    trak_q: list[npt.NDArray[np.float32]] = field(default_factory=list)
    size_bytes: int = 0
    _known: set[Key] = field(default_factory=set)

    def add(self, given: GivenRows, part: slice, size_bytes: int) -> None:
        if given.gradients is not None:
            rows, scales = scale_rows(given.gradients[part])
            self.rows.append(rows)
            self.scales.append(scales)
            unknown = np.full(len(rows), np.nan, dtype=np.float32)
            self.trak_q.append(unknown if given.trak_q is None else given.trak_q[part])
        self.keys += given.keys[part]
        self.encoded.append(given.encoded.part(part))
        self.texts.append(given.texts.part(part))
        self.metadata.append(given.metadata.part(part))
        self.size_bytes += size_bytes

    def known(self) -> set[Key]:
        """The keys as a set. Made when asked for: a batch that one call fills asks never."""
        if len(self._known) < len(self.keys):
            self._known.update(self.keys[len(self._known) :])
        return self._known


class BatchBuffer:
    """Collects rows and cuts them into batches with sequence numbers 1, 2, 3 ... Not thread-safe."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self._draft = _Draft()
        self._sequence = 0

    @property
    def row_count(self) -> int:
        """Rows that wait."""
        return len(self._draft.keys)

    def add(self, given: GivenRows) -> Iterator[SealedBatch]:
        """Takes rows; yields each batch that came together. Scales a batch of rows at a time."""
        ends = _row_ends(given)
        start = 0
        while start < len(given):
            stop = self._fitting(given, ends, start)
            if stop > start:
                size_bytes = int(ends[stop - 1] - (ends[start - 1] if start else 0))
                self._draft.add(given, slice(start, stop), size_bytes)
                start = stop
            if start < len(given) or self._draft.size_bytes >= self._sizes.batch_bytes:
                yield self.seal()

    def seal(self) -> SealedBatch:
        """The batch of the rows that wait; there must be some."""
        draft, self._draft = self._draft, _Draft()
        self._sequence += 1
        return _sealed(draft, self._sequence, self._sizes)

    def _fitting(self, given: GivenRows, ends: npt.NDArray[np.int64], start: int) -> int:
        """Where the rows from ``start`` on stop to fit into the draft; at least one fits into an empty one."""
        before = int(ends[start - 1]) if start else 0
        room = self._sizes.batch_bytes - self._draft.size_bytes
        stop = int(np.searchsorted(ends, before + room, side="right"))
        if not self._draft.keys:
            stop = max(stop, start + 1)
        stop = min(stop, start + self._sizes.batch_rows - len(self._draft.keys))
        known = self._draft.known() if self._draft.keys else set()
        if known.isdisjoint(given.keys[start:stop]):
            return stop
        return next(row for row in range(start, stop) if given.keys[row] in known)


def _row_ends(given: GivenRows) -> npt.NDArray[np.int64]:
    """About the bytes that the rows take in messages, summed up to the end of each."""
    fixed = _ROW_OVERHEAD_BYTES + (0 if given.gradients is None else 2 * given.gradients.shape[1])
    rows = np.arange(fixed, fixed * len(given) + 1, fixed, dtype=np.int64)
    return rows + given.encoded.ends + given.texts.ends + given.metadata.ends


def _sealed(draft: _Draft, sequence: int, sizes: Sizes) -> SealedBatch:
    rows = _run(draft.rows, "<f2")
    scales = _run(draft.scales, "<f4")
    gradients = rows.reshape(-1).view(np.uint8).data
    head = _head(draft, sequence, gradients, scales)
    messages = tuple(_messages(head, gradients, sizes.message_bytes))
    if len(messages[0]) > sizes.message_bytes_max:
        raise LimitExceeded(
            f"the text and metadata of key {draft.keys[0]!r} need {len(head)} bytes, "
            f"more than a message holds: message_bytes={sizes.message_bytes_max}; shorten them",
            limit="message_bytes",
            value=len(head),
        )
    zero_row_count = int((scales == 0).sum())
    return SealedBatch(sequence, len(draft.keys), zero_row_count, messages, sum(map(len, messages)))


def _run(parts: Sequence[npt.NDArray[Any]], dtype: str) -> npt.NDArray[Any]:
    if not parts:
        return np.empty(0, dtype=dtype)
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts), dtype=dtype)


def _head(draft: _Draft, sequence: int, gradients: memoryview, scales: npt.NDArray[Any]) -> bytes:
    """The serialised Batch without its last field, the gradients."""
    trak_q = _run(draft.trak_q, "<f4")
    batch = ingest_pb2.Batch(
        sequence=sequence,
        row_count=len(draft.keys),
        keys=types_pb2.KeyColumn(values=column_to_message(joined(draft.encoded))),
        scales=scales.tobytes(),
        trak_q=b"" if np.isnan(trak_q).all() else trak_q.tobytes(),
        texts=_optional_column(draft.texts),
        metadata=_optional_column(draft.metadata),
        gradients_size=len(gradients),
    )
    if len(gradients):
        batch.gradients_sum64 = sum64(gradients)
    return batch.SerializeToString()


def _optional_column(parts: Sequence[Packed]) -> types_pb2.BinaryColumn | None:
    """The message of a column, None if no row has a value."""
    if all(part.present is not None and not part.present.any() for part in parts):
        return None
    return column_to_message(joined(parts))


def _messages(head: bytes, gradients: memoryview, message_bytes: int) -> Iterator[bytes]:
    """The IngestRequests of a batch: the whole of it if it fits, else its start and then BatchParts."""
    room = max(0, message_bytes - len(head) - _FRAME_BYTES)
    yield _framed(_BATCH_TAG, head, gradients[:room])
    step = max(1, message_bytes - _FRAME_BYTES)
    for start in range(room, len(gradients), step):
        yield _framed(_PART_TAG, b"", gradients[start : start + step])


# A length-delimited field is its tag, its length, its bytes. Joined by hand, gradients are copied once instead of three
# times; ``gradients`` has the highest number in both messages, so this is also the order in which protobuf writes.
_BATCH_TAG = bytes([ingest_pb2.IngestRequest.BATCH_FIELD_NUMBER << 3 | 2])
_PART_TAG = bytes([ingest_pb2.IngestRequest.PART_FIELD_NUMBER << 3 | 2])
_GRADIENTS_TAG = bytes([ingest_pb2.Batch.GRADIENTS_FIELD_NUMBER << 3 | 2])


def _framed(tag: bytes, head: bytes, gradients: memoryview) -> bytes:
    """The IngestRequest whose field ``tag`` is ``head`` followed by ``gradients``."""
    if not len(gradients):
        return b"".join((tag, _varint(len(head)), head))
    opening = _GRADIENTS_TAG + _varint(len(gradients))
    size = _varint(len(head) + len(opening) + len(gradients))
    return b"".join((tag, size, head, opening, gradients))


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
