"""One writer's stream to the server: what was sent is kept until it is acknowledged, and sent again after a break.

Three threads meet here under one condition: the caller puts batches (and waits while too much is in flight), grpc's
own thread pulls messages from a generator, and one more reads acknowledgements and opens the stream again. The rules:

- Batches are sent in the order of their sequence numbers, and acknowledged in that order.
- The stream is opened again under the same writer id. The server answers with the last sequence it has stored: what is
  stored is dropped, the rest is sent again, the same bytes in the same order. So a batch is stored exactly once.
- A stream that broke is tried again, with growing pauses, until ``RetryPolicy.give_up_s`` have passed without progress.
  Any other error is final: nothing more is sent, and every waiting or later call raises it. So is an Unavailable whose
  facts say ``final="true"``: it will not pass by waiting, as with a collection that became read-only.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from covector.batches import SealedBatch
from covector.errors import Corrupt, CovectorError, Internal, Unavailable, from_rpc_error
from covector.v1 import ingest_pb2

IN_FLIGHT_BYTES = 32 << 20
IN_FLIGHT_BATCHES = 256
_BROKEN_STREAM = ("RST_STREAM", "Stream removed", "GOAWAY", "Socket closed")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How a broken stream is tried again. ``silence_s``: how long nothing may move while something is waited for."""

    give_up_s: float = 60.0
    silence_s: float = 30.0
    first_pause_s: float = 0.1
    pause_s_max: float = 5.0


class Sender:
    """Sends sealed batches on a stream that it opens, and opens again. Thread-safe."""

    def __init__(
        self,
        open_stream: Callable[[Iterator[bytes]], Any],
        opening: bytes,
        policy: RetryPolicy,
        on_progress: Callable[[], None],
    ) -> None:
        """``open_stream(requests)`` starts the call; ``opening``: the serialised OpenWriter request; ``on_progress``
        is called in another thread after acknowledgements."""
        self._open_stream = open_stream
        self._opening = opening
        self._policy = policy
        self._on_progress = on_progress
        self.acknowledged_row_count = 0
        self.acknowledged_bytes = 0
        self.zero_row_count = 0
        self._changed = threading.Condition()
        self._kept: deque[SealedBatch] = deque()  # not acknowledged, oldest first
        self._kept_bytes = 0
        self._last_sequence = 0  # of the newest batch that was put
        self._acknowledged_sequence = 0
        self._sent_sequence = 0  # on this stream
        self._stream: int | None = None  # the number of the stream that is being read
        self._may_send = False  # whether the server has opened it
        self._call: Any = None
        self._opened: ingest_pb2.WriterOpened | None = None
        self._failure: CovectorError | None = None
        self._closing = False
        self._moved_at_s = time.monotonic()
        self._broken_since_s: float | None = None
        self._attempts = 0
        self._thread = threading.Thread(target=self._run, name="covector-writer", daemon=True)

    def open(self) -> ingest_pb2.WriterOpened:
        """Opens the stream and returns the server's answer. Raises what it refuses with."""
        self._thread.start()
        with self._changed:
            self._wait_until(lambda: self._opened is not None)
            assert self._opened is not None
            return self._opened

    def put(self, batch: SealedBatch) -> None:
        """Takes the next batch; waits while too much is in flight. Raises the failure of the stream."""
        with self._changed:
            self._wait_until(lambda: self._has_room(batch.size_bytes))
            if not self._kept:
                self._moved_at_s = time.monotonic()
            self._kept.append(batch)
            self._kept_bytes += batch.size_bytes
            self._last_sequence = batch.sequence
            self._changed.notify_all()

    def drain(self) -> None:
        """Waits until every batch is acknowledged. Raises the failure of the stream."""
        with self._changed:
            self._wait_until(lambda: not self._kept)

    def check(self) -> None:
        """Raises the failure of the stream, if it has failed."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Ends the stream once everything is acknowledged. Raises the failure of the stream."""
        self.drain()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout=1.0)
        self._cancel()

    def abort(self, reason: CovectorError) -> None:
        """Ends the stream now and drops what was not acknowledged; later calls raise ``reason``."""
        self._fail(reason)
        self._cancel()
        if self._thread.is_alive():
            self._thread.join(timeout=self._policy.silence_s)

    # The caller's side

    def _has_room(self, size_bytes: int) -> bool:
        fits = self._kept_bytes + size_bytes <= IN_FLIGHT_BYTES and len(self._kept) < IN_FLIGHT_BATCHES
        return fits or not self._kept

    def _wait_until(self, ready: Callable[[], bool]) -> None:
        """Waits, holding ``_changed``; meanwhile breaks a stream on which nothing moves. Raises the failure."""
        while self._failure is None and not ready():
            left_s = self._moved_at_s + self._policy.silence_s - time.monotonic()
            if left_s <= 0:
                self._moved_at_s = time.monotonic()
                self._cancel()
            else:
                self._changed.wait(left_s)
        self.check()

    def _cancel(self) -> None:
        call = self._call
        if call is not None:
            call.cancel()

    # The thread that opens streams and reads acknowledgements

    def _run(self) -> None:
        try:
            number = 0
            while self._has_work():
                number += 1
                self._read_stream(number)
        except CovectorError as error:
            self._fail(error)
        finally:
            self._fail(Internal("the writer's thread has ended; please report this with its traceback on stderr"))

    def _has_work(self) -> bool:
        """Waits for something to send, with a pause after a break; False when there is nothing more to do."""
        with self._changed:
            if self._broken_since_s is not None:
                self._changed.wait_for(self._is_over, self._pause_s())
            self._changed.wait_for(lambda: self._is_over() or self._kept or self._opened is None)
            return not self._is_over()

    def _is_over(self) -> bool:
        return self._failure is not None or (self._closing and not self._kept)

    def _pause_s(self) -> float:
        pause_s = min(self._policy.pause_s_max, self._policy.first_pause_s * 2.0 ** min(self._attempts, 30))
        self._attempts += 1
        return pause_s * random.uniform(0.5, 1.0)  # so that writers do not return in step

    def _read_stream(self, number: int) -> None:
        """Opens a stream and reads it to its end. Raises an error that is final; returns if it may be tried again."""
        self._stream, self._moved_at_s = number, time.monotonic()
        try:
            call = self._call = self._open_stream(self._requests(number))
            if self._is_over():
                call.cancel()  # it was called off while it was being opened
            for response in call:
                self._receive(response)
                self._on_progress()
            self._take_break(Unavailable("the server ended the stream without a reason"))
        except grpc.RpcError as error:
            if not _is_break(error):
                raise from_rpc_error(error) from error
            self._take_break(from_rpc_error(error))
        finally:
            with self._changed:
                self._stream, self._may_send, self._call = None, False, None
                self._changed.notify_all()

    def _take_break(self, reason: CovectorError) -> None:
        """Notes that the stream broke. Raises Unavailable when there was no progress for too long."""
        with self._changed:
            if self._is_over() or (self._opened is not None and not self._kept):
                return  # nobody waits for anything: the stream is opened again for the next batch
            now_s = time.monotonic()
            if self._broken_since_s is None:
                self._broken_since_s = now_s
            if now_s - self._broken_since_s >= self._policy.give_up_s:
                raise Unavailable(
                    f"gave up after {self._policy.give_up_s:g} s without progress: {reason}; "
                    "rows acknowledged so far are stored: ask which keys are missing, and send those"
                )

    def _receive(self, response: ingest_pb2.IngestResponse) -> None:
        with self._changed:
            self._moved_at_s = time.monotonic()
            if response.WhichOneof("message") == "opened":
                self._take_opened(response.opened)
            else:
                self._take_acknowledged(response.acknowledged.sequence)
            self._changed.notify_all()

    def _take_opened(self, opened: ingest_pb2.WriterOpened) -> None:
        """Drops what the server stored before the break, and starts to send what comes after it."""
        stored = opened.last_sequence
        if not self._acknowledged_sequence <= stored <= self._last_sequence:
            raise Corrupt(
                f"the server has stored this writer's batches up to {stored}, but {self._acknowledged_sequence} were "
                f"acknowledged of {self._last_sequence}; it was restored from an older state: send the rows again",
                stored=stored,
                acknowledged=self._acknowledged_sequence,
            )
        while self._kept and self._kept[0].sequence <= stored:
            self._drop_oldest()
        self._opened, self._may_send, self._sent_sequence = opened, True, stored

    def _take_acknowledged(self, sequence: int) -> None:
        if self._failure is not None:
            return
        expected = self._kept[0].sequence if self._kept else None
        if expected is None or not expected <= sequence <= self._sent_sequence:
            raise Internal(f"the server acknowledged batch {sequence}, the next was {expected}")
        while self._kept and self._kept[0].sequence <= sequence:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        """The oldest batch is stored: it need not be kept, and any break before now is over."""
        batch = self._kept.popleft()
        self._kept_bytes -= batch.size_bytes
        self._acknowledged_sequence = batch.sequence
        self.acknowledged_row_count += batch.row_count
        self.acknowledged_bytes += batch.size_bytes
        self.zero_row_count += batch.zero_row_count
        self._broken_since_s, self._attempts = None, 0

    def _fail(self, error: CovectorError) -> None:
        """Makes ``error`` the end, unless the stream has ended already."""
        with self._changed:
            if not self._is_over():
                self._failure = error
                self._kept.clear()
                self._kept_bytes = 0
            self._changed.notify_all()

    # The thread of grpc that sends

    def _requests(self, number: int) -> Iterator[bytes]:
        """The messages of stream ``number``; ends when there is nothing more to send, or the stream is another."""
        yield self._opening
        while (batch := self._next_batch(number)) is not None:
            for message in batch.messages:
                self._moved_at_s = time.monotonic()
                yield message

    def _next_batch(self, number: int) -> SealedBatch | None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_done(number) or self._unsent(number))
            if self._is_done(number):
                return None
            self._sent_sequence += 1
            return self._kept[self._sent_sequence - self._kept[0].sequence]

    def _unsent(self, number: int) -> bool:
        return self._stream == number and self._may_send and self._sent_sequence < self._last_sequence

    def _is_done(self, number: int) -> bool:
        return self._is_over() or self._stream != number


def _is_break(error: grpc.RpcError) -> bool:
    """Whether the connection broke, rather than the server refused."""
    reason = from_rpc_error(error)
    if isinstance(reason, Unavailable):
        return reason.facts.get("final") != "true"
    return type(reason) is Internal and any(sign in reason.message for sign in _BROKEN_STREAM)
