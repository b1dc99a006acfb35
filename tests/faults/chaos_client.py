"""A client of the chaos tests: rounds of work drawn from a seed, each noted in a journal before and after.

It lives through the kills of its server, as a training job would: its writers reconnect by themselves, its calls are
tried again until a time limit. When it is killed itself, its next life sends again what the last one had not
acknowledged. SIGTERM ends it after the round. Rows of stems that it replaces or deletes are its own; all other rows
have one content for ever, and several clients send them at once.
"""

from __future__ import annotations

import argparse
import functools
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tests.faults.journal import Journal, Operation
from tests.faults.made_rows import DIM, gradients_of, metadata_of, text_of

import covector
from covector import connection, row_stream, sender
from covector.errors import Conflict, CovectorError, Unavailable

T = TypeVar("T")
RETRY_S = 60.0
CHECKPOINTS = ("one", "two")
SHARED_ROWS = 40  # of each stem that every client sends


class Client:
    """One life. ``name`` and ``life`` make the stems that are its own."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._name, self._life = given.name, given.life
        self._address = given.to
        self._collections = [f"{given.collection}{number}" for number in range(2)]
        self._journal = Journal(given.journal)
        self._rng = np.random.default_rng([given.seed, hash_of(given.name), given.life])
        self._written = dict.fromkeys((f"{given.life}{given.name}", f"replaced-{given.name}-{given.life}"), 0)
        self._rows_max = given.rows_max
        self._wishes: Path | None = given.wishes
        self._version = 0
        self._snapshots = 0
        self.stopping = False

    def run(self, rounds: int) -> None:
        """Works for so many rounds, or until it is told to stop."""
        with self._connect() as self._client:
            if self._name == "0":
                for name in self._collections:
                    self._persist(functools.partial(self._client.create_collection, name, SPACE, exist_ok=True))
            self._send_again()
            for _ in range(rounds):
                if self.stopping:
                    return
                self._round()

    def _connect(self) -> covector.Client:
        return self._persist(lambda: covector.connect(self._address))

    def _persist(self, call: Callable[[], T], patience_s: float = RETRY_S) -> T:
        """Calls until the server is there to answer."""
        give_up_s = time.monotonic() + patience_s
        while True:
            try:
                return call()
            except (Unavailable, covector.errors.NotFound):
                if time.monotonic() > give_up_s:
                    raise
                time.sleep(0.05)

    def _collection(self, name: str) -> covector.Collection:
        return self._persist(lambda: self._client.collection(name))

    def _send_again(self) -> None:
        acknowledged, open_ = self._journal.earlier()
        for operation in [*open_, *acknowledged[-2:]]:
            if operation.is_lasting:
                self._put([operation], "ignore")

    def _round(self) -> None:
        works: list[tuple[float, Callable[[], None]]] = [
            (0.50, self._put_new),
            (0.15, self._put_shared),
            (0.15, self._put_replacing),
            (0.08, self._add_details),
            (0.04, self._publish),
            (0.08, self._delete),
            (0.03, self._compact),
            (0.03, self._snapshot),
        ]
        wanted = self._wish()
        if wanted is not None and self._rng.random() < 0.5:
            wanted()
            return
        weights = np.array([weight for weight, _ in works])
        works[int(self._rng.choice(len(works), p=weights / weights.sum()))][1]()

    def _wish(self) -> Callable[[], None] | None:
        """The work that has the step at which the server is to be killed, where it is rare."""
        protocol = self._wishes.read_text().partition(".")[0] if self._wishes and self._wishes.exists() else ""
        works = {"delete": self._delete, "snapshot": self._snapshot, "compact": self._compact, "erase": self._compact}
        return works.get(protocol)

    def _pick(self, choices: Sequence[str]) -> str:
        return choices[int(self._rng.integers(len(choices)))]

    def _next_rows(self, stem: str, part: float = 1.0) -> tuple[int, int]:
        """The next rows of a stem: up to so many, or a part of them."""
        start = self._written.get(stem, 0)
        stop = self._written[stem] = start + int(self._rng.integers(1, max(2, int(self._rows_max * part))))
        return start, stop

    def _put_new(self) -> None:
        """Rows of its own, in a few batches."""
        collection, checkpoint, stem = (
            self._pick(self._collections),
            self._pick(CHECKPOINTS),
            f"{self._life}{self._name}",
        )
        puts = []
        for _ in range(int(self._rng.integers(1, 8))):
            start, stop = self._next_rows(stem)
            puts.append(Operation("put", collection, checkpoint, stem, start, stop))
        self._put(puts, "error")
        if self._rng.random() < 0.3:  # the same rows at the other checkpoint, and once more
            other = CHECKPOINTS[1 - CHECKPOINTS.index(checkpoint)]
            self._put([replace(put, checkpoint=other) for put in puts], "error")
            self._put(puts[:1], "error")

    def _put_shared(self) -> None:
        """Rows that other clients send at the same time."""
        start = SHARED_ROWS * int(self._rng.integers(8))
        put = Operation(
            "put", self._collections[0], self._pick(CHECKPOINTS), f"shared-{self._life}", start, start + SHARED_ROWS
        )
        self._put([put], self._pick(("error", "ignore")))

    def _put_replacing(self) -> None:
        """Rows that get another gradient, and new ones beside them."""
        stem = f"replaced-{self._name}-{self._life}"
        start, stop = self._next_rows(stem, 0.25)
        self._version += 1
        start = int(self._rng.integers(start + 1))
        self._put([Operation("put", self._collections[1], "one", stem, start, stop, self._version)], "replace")

    def _put(self, puts: Sequence[Operation], on_conflict: Any) -> None:
        """Sends puts of one collection and checkpoint; notes each when the writer counts its rows as acknowledged."""
        first = puts[0]
        under_way: deque[tuple[int, int]] = deque()  # number in the journal, rows up to its end
        writer = self._collection(first.collection).writer(first.checkpoint, on_conflict=on_conflict, retry_s=RETRY_S)
        with writer:
            sent_row_count = 0
            for put in puts:
                sent_row_count += put.row_count
                under_way.append((self._journal.sent(put), sent_row_count))
                keys = put.keys
                texts, metadata = [text_of(key) for key in keys], [metadata_of(key) for key in keys]
                writer.add(keys, gradients_of(keys, put.checkpoint, put.version), texts=texts, metadata=metadata)
                if self._rng.random() < 0.5:
                    writer.flush()
                self._note(under_way, writer.acknowledged)
        self._note(under_way, writer.acknowledged)
        assert not under_way

    def _note(self, under_way: deque[tuple[int, int]], acknowledged_row_count: int) -> None:
        while under_way and under_way[0][1] <= acknowledged_row_count:
            self._journal.acknowledged(under_way.popleft()[0])

    def _add_details(self) -> None:
        collection, stem = self._pick(self._collections), f"details-{self._name}-{self._life}"
        start, stop = self._next_rows(stem, 0.5)
        operation = Operation("details", collection, "", stem, start, stop)
        keys = operation.keys
        texts, metadata = [text_of(key) for key in keys], [metadata_of(key) for key in keys]
        self._call(operation, lambda: self._collection(collection).add_rows(keys, texts=texts, metadata=metadata))

    def _delete(self) -> None:
        stem = f"replaced-{self._name}-{self._life}"
        collection: Any = self._collection(self._collections[1])
        if not hasattr(collection, "delete") or not self._written[stem]:
            return
        start = int(self._rng.integers(self._written[stem]))
        stop = min(start + int(self._rng.integers(1, 20)), self._written[stem])
        operation = Operation("delete", collection.name, "one", stem, start, stop)
        self._call(operation, lambda: collection.delete(operation.keys))

    def _publish(self) -> None:
        collection = self._collection(self._pick(self._collections))
        self._call(Operation("other", collection.name), lambda: collection.publish().wait())

    def _compact(self) -> None:
        collection: Any = self._collection(self._pick(self._collections))
        if hasattr(collection, "compact"):
            self._call(Operation("other", collection.name), lambda: collection.compact().wait())

    def _snapshot(self) -> None:
        client: Any = self._client
        if hasattr(client, "snapshot"):
            self._snapshots += 1
            name = f"{self._name}-{self._life}-{self._snapshots}"
            self._call(Operation("snapshot", self._collections[0], stem=name), lambda: client.snapshot(name).wait())

    def _call(self, operation: Operation, call: Callable[[], object]) -> None:
        """A call that may be tried again; work on the side that meets a kill or its like is given up."""
        number = self._journal.sent(operation)
        on_the_side = operation.action in {"other", "snapshot"}
        try:
            if on_the_side:
                call()
            else:
                self._persist(call)
            self._journal.acknowledged(number)
        except CovectorError as error:
            unknown = "does not know this call" in str(error)  # of a server that lacks compaction or snapshots
            if not on_the_side or not (unknown or isinstance(error, SIDE_WORK_MAY_FAIL)):
                raise


SPACE = covector.Space(dim=DIM)
# An operation ends with its server, another client's is under way, or a new server does not know it.
SIDE_WORK_MAY_FAIL = (Unavailable, Conflict, covector.errors.NotFound, covector.errors.AlreadyExists)


def return_at_once() -> None:
    """Takes the pauses out of reconnecting: servers live for a fraction of a second here."""
    start = connection.Connection._start
    connection.Connection._start = functools.partialmethod(start, wait_for_ready=True)  # type: ignore[assignment]
    others = [option for option in connection._OPTIONS if "reconnect_backoff" not in option[0]]
    connection._OPTIONS = (*others, *((f"grpc.{name}_reconnect_backoff_ms", 100) for name in ("initial", "max")))
    policy = functools.partial(sender.RetryPolicy, first_pause_s=0.01, pause_s_max=0.05)
    vars(row_stream)["RetryPolicy"] = policy


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode(), "big")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="chaos_client")
    parser.add_argument("--to", required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--name", default="0", help="digits")
    parser.add_argument("--life", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1_000_000)
    parser.add_argument("--wishes", type=Path, help="a file with the step that is waited for")
    parser.add_argument("--rows-max", type=int, default=120, help="of a batch")
    parser.add_argument("--collection", default="c")
    given = parser.parse_args(arguments)
    return_at_once()
    client = Client(given)

    def stop(*_: object) -> None:
        client.stopping = True

    signal.signal(signal.SIGTERM, stop)
    client.run(given.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
