"""Streams of writers, damaged by a seed: each is answered at once with a clean status, and harms nobody else.

A valid stream (an OpenWriter, whole batches, a batch in parts) is cut, flipped, put out of order, sent twice, filled
with garbage or made to lie about its counts, before it is sent as it is. A well-behaved writer goes on all the while in
the same checkpoint; at the end each of its rows is compared.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.faults.made_rows import DIM, gradients_of, keys_of, metadata_of, stored_gradients_of, text_of

import covector
from covector.testing import ServerProcess
from covector.types import Space
from covector.v1 import ingest_pb2
from covector_server.testing.batches import batch_message

SEEDS = 400
TIMEOUT_S = 20.0  # far below what a server waits for a part that does not come
SILENT_TIMEOUT_S = 0.05
STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
}
Messages = list[bytes]
Rng = np.random.Generator


def valid_stream(seed: int) -> Messages:
    """A stream that would be accepted."""
    opened = ingest_pb2.OpenWriter(collection="c", writer_id=f"fuzz {seed}", checkpoint="one", eta=1)
    requests = [ingest_pb2.IngestRequest(open=opened)]
    for sequence in range(1, 5):
        keys = keys_of(str(seed), range(sequence * 100, sequence * 100 + 5))
        texts, metadata = [text_of(key) for key in keys], [metadata_of(key) for key in keys]
        made = batch_message(sequence, keys, gradients_of(keys, "one"), texts, metadata)
        rest = b""
        if sequence % 2 == 0:
            made.gradients, rest = made.gradients[:100], made.gradients[100:]
        requests.append(ingest_pb2.IngestRequest(batch=made))
        for start in range(0, len(rest), 200):
            part = ingest_pb2.BatchPart(gradients=rest[start : start + 200])
            requests.append(ingest_pb2.IngestRequest(part=part))
    return [request.SerializeToString() for request in requests]


def pick(rng: Rng, messages: Messages) -> int:
    return int(rng.integers(len(messages)))


def cut(rng: Rng, messages: Messages) -> None:
    at = pick(rng, messages)
    messages[at] = messages[at][: int(rng.integers(len(messages[at]) + 1))]


def flip(rng: Rng, messages: Messages) -> None:
    at = pick(rng, messages)
    flipped = bytearray(messages[at])
    for _ in range(int(rng.integers(1, 8)) if flipped else 0):
        flipped[int(rng.integers(len(flipped)))] ^= 1 << int(rng.integers(8))
    messages[at] = bytes(flipped)


def swap(rng: Rng, messages: Messages) -> None:
    first, second = pick(rng, messages), pick(rng, messages)
    messages[first], messages[second] = messages[second], messages[first]


def repeat(rng: Rng, messages: Messages) -> None:
    messages.insert(pick(rng, messages), messages[pick(rng, messages)])


def drop(rng: Rng, messages: Messages) -> None:
    del messages[pick(rng, messages)]


def add_garbage(rng: Rng, messages: Messages) -> None:
    garbage = rng.bytes(int(rng.integers(1, 300)))
    if rng.random() < 0.5:
        messages.insert(pick(rng, messages), garbage)
    else:
        messages[pick(rng, messages)] += garbage


def lie(rng: Rng, messages: Messages) -> None:
    """Another number, or another size of a column, in a batch that can still be parsed."""
    at = pick(rng, messages)
    try:
        request = ingest_pb2.IngestRequest.FromString(messages[at])
    except Exception:  # noqa: BLE001 - another damage came before this one
        return
    if request.WhichOneof("message") != "batch":
        return
    numbers = [0, 1, 3, 4, 6, 1 << 16, 1 << 31, int(rng.integers(1 << 32))]
    number = numbers[int(rng.integers(len(numbers)))]
    name = ("row_count", "gradients_size", "sequence", "scales", "trak_q", "ends", "gradients_crc32")[
        int(rng.integers(7))
    ]
    if name in ("scales", "trak_q"):
        setattr(request.batch, name, rng.bytes(number % 100))
    elif name == "ends":
        request.batch.keys.values.ends = rng.bytes(4 * request.batch.row_count % 400)
    else:
        setattr(request.batch, name, number)
    messages[at] = request.SerializeToString()


DAMAGES: list[Callable[[Rng, Messages], None]] = [cut, flip, swap, repeat, drop, add_garbage, lie]


def damaged_stream(seed: int) -> Messages:
    rng = np.random.default_rng(seed)
    messages = valid_stream(seed)
    for _ in range(int(rng.integers(1, 4))):
        if messages:
            DAMAGES[int(rng.integers(len(DAMAGES)))](rng, messages)
    return messages


class Stub:
    """A client that sends bytes."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)
        self.ingest: Any = self.channel.stream_stream(
            "/covector.v1.IngestService/Ingest", response_deserializer=ingest_pb2.IngestResponse.FromString
        )
        self.health: Any = health_pb2_grpc.HealthStub(self.channel)

    def status_of(self, messages: Messages) -> tuple[grpc.StatusCode, str]:
        """How a stream ends. It is read to the end."""
        try:
            for _ in self.ingest(iter(messages), timeout=TIMEOUT_S):
                pass
        except grpc.RpcError as error:
            told: Any = error
            return told.code(), told.details()
        return grpc.StatusCode.OK, ""

    def leave_early(self, messages: Messages, rng: Rng) -> None:
        """Sends a few messages, stalls, and vanishes."""
        stalled = threading.Event()

        def requests() -> Iterator[bytes]:
            yield from messages[: int(rng.integers(len(messages) + 1))]
            stalled.wait(SILENT_TIMEOUT_S)

        call = self.ingest(requests(), timeout=TIMEOUT_S)
        if rng.random() < 0.5:
            stalled.wait(SILENT_TIMEOUT_S / 5)
        call.cancel()
        stalled.set()


class GoodWriter(threading.Thread):
    """Writes until it is told to stop; ``run`` keeps what went wrong."""

    def __init__(self, collection: covector.Collection) -> None:
        super().__init__(name="good writer")
        self.stopping = threading.Event()
        self.failure: Exception | None = None
        self.row_count = 0
        self._collection = collection

    def run(self) -> None:
        try:
            with self._collection.writer("one") as writer:
                while not self.stopping.wait(0.002):
                    keys = keys_of("good", range(self.row_count, self.row_count + 7))
                    texts, metadata = [text_of(key) for key in keys], [metadata_of(key) for key in keys]
                    writer.add(keys, gradients_of(keys, "one"), texts=texts, metadata=metadata)
                    writer.flush()
                    self.row_count += len(keys)
        except Exception as error:  # noqa: BLE001 - told by the test
            self.failure = error


def is_clean(code: grpc.StatusCode, details: str) -> bool:
    """Whether a status tells a client what it did. gRPC itself answers bytes that are no message with INTERNAL."""
    return code in STATUSES or code is grpc.StatusCode.OK or "deserializing request" in details


@pytest.mark.timeout(240)
def test_damaged_streams_harm_nobody(server: ServerProcess) -> None:
    with covector.connect(server.address) as client:
        collection = client.create_collection("c", Space(dim=DIM))
        good = GoodWriter(collection)
        stub = Stub(server.address)
        assert stub.status_of(valid_stream(SEEDS)) == (grpc.StatusCode.OK, "")
        good.start()
        try:
            ended = [end_of(stub, collection, seed) for seed in range(SEEDS)]
        finally:
            good.stopping.set()
            good.join()
            stub.channel.close()
        assert good.failure is None
        assert good.row_count > 100
        keys = keys_of("good", range(good.row_count))
        rows = collection.get(keys, gradients=True, checkpoint="one")
        assert [(row.text, row.metadata) for row in rows] == [(text_of(key), metadata_of(key)) for key in keys]
        np.testing.assert_array_equal([row.gradient for row in rows], stored_gradients_of(keys, "one"))
        assert len(set(ended)) > 2, ended


def end_of(stub: Stub, collection: covector.Collection, seed: int) -> str:
    """Sends the stream of a seed and returns its status; every so often asks whether the server is well."""
    messages = damaged_stream(seed)
    rng = np.random.default_rng([seed, 1])
    if rng.random() < 0.15:
        stub.leave_early(messages, rng)
        return "left early"
    code, details = stub.status_of(messages)
    assert is_clean(code, details), f"seed {seed}: {code} {details}; see damaged_stream({seed})"
    if seed % 20 == 0:
        assert stub.health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S).status == 1
        assert collection.query(np.ones(DIM, dtype=np.float32), k=1)[0].proponents
    return str(code)
