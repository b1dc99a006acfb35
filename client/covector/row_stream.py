"""Checked rows on their way: buffered, cut into batches, sent on a stream that is opened by the first of them."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass
from typing import Literal, get_args

from covector.batches import BatchBuffer, Sizes
from covector.connection import Connection
from covector.errors import InvalidInput, Unavailable
from covector.inputs import GivenRows, Origin
from covector.messages import kind_to_message, space_to_message
from covector.progress import Bar
from covector.sender import RetryPolicy, Sender
from covector.v1 import ingest_pb2

OnConflict = Literal["error", "ignore", "replace"]
_POLICIES: dict[str, ingest_pb2.ConflictPolicy] = {
    "error": ingest_pb2.CONFLICT_POLICY_ERROR,
    "ignore": ingest_pb2.CONFLICT_POLICY_IGNORE,
    "replace": ingest_pb2.CONFLICT_POLICY_REPLACE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """Where rows go, and how. ``checkpoint`` None: rows without gradients."""

    collection: str
    checkpoint: str | None
    eta: float = 1.0
    on_conflict: OnConflict = "error"
    progress: bool = False
    retry_s: float = 60.0

    def __post_init__(self) -> None:
        if self.on_conflict not in _POLICIES:
            raise InvalidInput(f"on_conflict is one of {', '.join(get_args(OnConflict))}, not {self.on_conflict!r}")


class RowStream:
    """What a Writer has inside. Thread-safe; a failure of the stream is raised by every later call."""

    def __init__(self, connection: Connection, options: StreamOptions) -> None:
        self._connection = connection
        self._options = options
        self._writer_id = str(uuid.uuid4())
        self._lock = threading.Lock()
        self._origin: Origin | None = None
        self._buffer: BatchBuffer | None = None
        self._sender: Sender | None = None
        self._closed = False
        self._bar = Bar(f"{options.collection}/{options.checkpoint or 'rows'}") if options.progress else None
        self._started_at_s = time.monotonic()

    @property
    def acknowledged_row_count(self) -> int:
        """Rows durably stored, those included that stood already."""
        return 0 if self._sender is None else self._sender.acknowledged_row_count

    @property
    def zero_row_count(self) -> int:
        """How many of the acknowledged rows have a gradient that is all zero."""
        return 0 if self._sender is None else self._sender.zero_row_count

    def add(self, given: GivenRows, origin: Origin) -> None:
        """Takes rows; waits while too much is in flight. Raises InvalidInput if they are of another origin than the
        first ones."""
        with self._lock:
            self._check_open()
            self._agree_on(origin)
            if not len(given):
                return
            buffer, sender = self._opened()
            for batch in buffer.add(given):
                sender.put(batch)

    def flush(self) -> None:
        """Returns when every row added so far is durably stored."""
        with self._lock:
            self._check_open()
            self._send_rest()
            if self._sender is not None:
                self._sender.drain()

    def close(self) -> None:
        """Flushes, and ends the stream. A second time does nothing."""
        with self._lock:
            if self._closed:
                return
            try:
                self._send_rest()
                if self._sender is not None:
                    self._sender.close()
            except BaseException:
                self._call_off()
                raise
            finally:
                self._end()

    def abort(self) -> None:
        """Ends the stream at once and drops what was not acknowledged, though some of it may arrive still."""
        self._call_off()  # first of all and without the lock: an ``add`` that waits in another thread ends by it
        with self._lock:
            self._end()

    def _call_off(self) -> None:
        if self._sender is not None:
            self._sender.abort(Unavailable("this writer was aborted; open another"))

    # Below, the lock is held.

    def _send_rest(self) -> None:
        if self._sender is None or self._buffer is None:
            return
        self._sender.check()
        if self._buffer.row_count:
            self._sender.put(self._buffer.seal())

    def _opened(self) -> tuple[BatchBuffer, Sender]:
        if self._buffer is None or self._sender is None:
            policy = RetryPolicy(give_up_s=self._options.retry_s, silence_s=self._connection.timeout_s)
            self._sender = Sender(self._connection.ingest, self._opening(), policy, self._show_progress)
            self._buffer = BatchBuffer(Sizes.of(self._sender.open()))
        return self._buffer, self._sender

    def _opening(self) -> bytes:
        origin = self._origin or Origin()
        message = ingest_pb2.OpenWriter(
            collection=self._options.collection,
            writer_id=self._writer_id,
            checkpoint=self._options.checkpoint or "",
            eta=self._options.eta,
            weights_digest=origin.weights_digest or "",
            kind=kind_to_message(origin.kind),
            space=None if origin.space is None else space_to_message(origin.space),
            on_conflict=_POLICIES[self._options.on_conflict],
            cumulative_acknowledgements=True,
        )
        return ingest_pb2.IngestRequest(open=message).SerializeToString()

    def _agree_on(self, origin: Origin) -> None:
        if self._origin is None:
            self._origin = origin
        difference = self._origin.difference(origin)
        if difference is not None:
            raise InvalidInput(f"these gradients are not like this writer's first ones ({difference}); open another")

    def _check_open(self) -> None:
        if self._sender is not None:
            self._sender.check()
        if self._closed:
            raise InvalidInput("this writer is closed; open another")

    def _end(self) -> None:
        if self._bar is not None and not self._closed:
            self._show_progress()
            self._bar.close()
        self._closed = True

    def _show_progress(self) -> None:
        if self._bar is None or self._sender is None:
            return
        elapsed_s = max(time.monotonic() - self._started_at_s, 1e-9)
        mib_per_s = self._sender.acknowledged_bytes / elapsed_s / (1 << 20)
        self._bar.show(self._sender.acknowledged_row_count, note=f"rows stored, {mib_per_s:.1f} MiB/s")
