"""A client of the ingest benchmarks in a process of its own: makes batches beforehand, then sends them when told to.

Batches are made and sent by the client's own code (BatchBuffer, Connection, Sender), the same for every server. The
parent talks to it over a pipe: a task, "ready" from here, "go" from there, a ``Sent`` back. Times are of the
monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from typing import Any

import numpy as np
from bare_streams import send_bare, send_tcp
from ingest_rows import RowMaker, Rows, rows_per_batch

import covector
from covector.batches import BatchBuffer, SealedBatch, Sizes
from covector.connection import Connection
from covector.inputs import given_rows
from covector.sender import RetryPolicy, Sender
from covector.v1 import ingest_pb2

CHECKPOINT = "one"
COLLECTION = "benchmark"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a client sends: ``size_bytes`` of rows, as ingested bytes are counted, or ``row_count`` rows."""

    dim: int
    size_bytes: int = 0
    row_count: int = 0
    seed: int = 1
    with_text: bool = True
    rows_a_batch: int | None = None  # None: about a MiB

    def rows(self) -> Iterator[Rows]:
        maker = RowMaker(self.seed, self.dim, with_text=self.with_text)
        step, rows, size = self.rows_a_batch or rows_per_batch(self.dim), 0, 0
        while rows < self.row_count or size < self.size_bytes:
            made = maker.make(min(step, self.row_count - rows) if self.row_count else step)
            rows, size = rows + len(made.keys), size + made.size_bytes
            yield made


@dataclass(frozen=True, slots=True)
class Task:
    """``kind``: ``replay`` sends the prepared batches; ``generate`` makes them while sending; ``bare`` and ``tcp`` send
    the prepared bytes; ``writer`` adds the rows of ``plan`` through a Writer, ``rows_a_call`` at once.

    window: batches in flight at most, None for what the Sender allows.
    """

    kind: str
    address: str
    plan: Plan | None = None
    checkpoint: str = CHECKPOINT
    window: int | None = None
    style: str = ""
    rows_a_call: int = 1


@dataclass(slots=True)
class Sent:
    """From the first byte that was sent to the last acknowledgement. ``latencies_s``: of each batch, where it is
    measured."""

    begin_s: float
    end_s: float
    row_count: int
    size_bytes: int
    latencies_s: list[float] = field(default_factory=list)


def sealed(rows: Iterable[Rows]) -> Iterator[tuple[SealedBatch, Rows]]:
    """A batch for each group of rows."""
    buffer = BatchBuffer(Sizes(batch_bytes=8 << 20, batch_rows=1 << 20))  # they are cut already
    for group in rows:
        texts = None if group.texts is None else [text.decode() for text in group.texts]
        given = given_rows([key.decode() for key in group.keys], texts, None, gradients=group.gradients)
        assert not list(buffer.add(given))
        yield buffer.seal(), group


def run(pipe: Pipe) -> None:
    """The process: tasks until None comes."""
    client = _Client(pipe)
    while (order := pipe.recv()) is not None:
        if isinstance(order, Plan):
            client.prepare(order)
            pipe.send("ready")
        else:
            pipe.send(client.work(order))


class _Client:
    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._batches: list[SealedBatch] = []
        self._row_count = 0
        self._size_bytes = 0

    def prepare(self, plan: Plan) -> None:
        self._batches.clear()
        self._row_count = self._size_bytes = 0
        for batch, rows in sealed(plan.rows()):
            self._batches.append(batch)
            self._row_count += len(rows.keys)
            self._size_bytes += rows.size_bytes

    def work(self, task: Task) -> Sent:
        if task.kind in {"replay", "generate"}:
            return self._send(task)
        if task.kind == "writer":
            return self._write(task)
        messages = [message for batch in self._batches for message in batch.messages]
        begin_s = self._go()
        if task.kind == "tcp":
            send_tcp(task.address, messages)
        else:
            send_bare(task.address, task.style, messages)
        return Sent(begin_s, time.monotonic(), self._row_count, self._size_bytes)

    def _go(self) -> float:
        self._pipe.send("ready")
        self._pipe.recv()
        return time.monotonic()

    def _send(self, task: Task) -> Sent:
        connection = Connection(task.address)
        window = _Window(task.window)
        sender = Sender(connection.ingest, _opening(task), RetryPolicy(), window.note)
        window.sender = sender
        sender.open()
        begin_s = self._go()
        if task.kind == "replay":
            row_count, size_bytes = self._row_count, self._size_bytes
            for batch in self._batches:
                window.put(batch)
        else:
            assert task.plan is not None
            row_count = size_bytes = 0
            for batch, rows in sealed(task.plan.rows()):
                window.put(batch)
                row_count, size_bytes = row_count + len(rows.keys), size_bytes + rows.size_bytes
        sender.drain()
        end_s = time.monotonic()
        sender.close()
        connection.close()
        assert sender.acknowledged_row_count == row_count
        return Sent(begin_s, end_s, row_count, size_bytes, window.latencies_s)

    def _write(self, task: Task) -> Sent:
        """Rows through the public API; what they are made of is made before the clock starts."""
        assert task.plan is not None
        calls = [
            ([key.decode() for key in rows.keys], np.asarray(rows.gradients), [t.decode() for t in rows.texts or []])
            for rows in task.plan.rows()
        ]
        row_count = sum(len(keys) for keys, _, _ in calls)
        with covector.connect(task.address) as client:
            collection = client.collection(COLLECTION)
            begin_s = self._go()
            with collection.writer(task.checkpoint) as writer:
                for keys, gradients, texts in calls:
                    writer.add(keys, gradients, texts)
            end_s = time.monotonic()
        return Sent(begin_s, end_s, row_count, sum(array.nbytes for _, array, _ in calls))


class _Window:
    """Lets at most ``size`` batches be in flight, and notes how long each was."""

    def __init__(self, size: int | None) -> None:
        self.latencies_s: list[float] = []
        self.sender: Any = None
        self._room = None if size is None else threading.Semaphore(size)
        self._put_at_s: list[float] = []
        self._ends: list[int] = [0]  # bytes put, after each batch

    def put(self, batch: SealedBatch) -> None:
        if self._room is not None:
            self._room.acquire()
            self._ends.append(self._ends[-1] + batch.size_bytes)
            self._put_at_s.append(time.monotonic())
        self.sender.put(batch)

    def note(self) -> None:
        """Called by the Sender after each answer."""
        if self._room is None or self.sender is None:
            return
        now_s, done = time.monotonic(), len(self.latencies_s)
        while done < len(self._put_at_s) and self._ends[done + 1] <= self.sender.acknowledged_bytes:
            self.latencies_s.append(now_s - self._put_at_s[done])
            self._room.release()
            done += 1


def _opening(task: Task) -> bytes:
    opening = ingest_pb2.OpenWriter(
        collection=COLLECTION,
        writer_id=str(uuid.uuid4()),
        checkpoint=task.checkpoint,
        eta=1.0,
        on_conflict=ingest_pb2.CONFLICT_POLICY_ERROR,
        cumulative_acknowledgements=True,
    )
    return ingest_pb2.IngestRequest(open=opening).SerializeToString()
