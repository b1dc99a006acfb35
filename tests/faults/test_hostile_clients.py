"""Clients that lie, stall, send garbage or vanish harm nobody but themselves."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from covector.testing import ServerProcess
from covector.types import Space
from covector.v1 import collections_pb2, collections_pb2_grpc, ingest_pb2, ingest_pb2_grpc, query_pb2, query_pb2_grpc
from covector.v1 import types_pb2 as types
from covector_server.testing.batches import batch_message

DIM = 8
OPEN = ingest_pb2.IngestRequest(open=ingest_pb2.OpenWriter(collection="c", writer_id="w", checkpoint="one", eta=1))


class Calls:
    """Bare stubs: what a client in another language would have."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)
        self.collections = collections_pb2_grpc.CollectionsServiceStub(self.channel)
        self.ingest = ingest_pb2_grpc.IngestServiceStub(self.channel)
        self.query = query_pb2_grpc.QueryServiceStub(self.channel)
        space = types.Space(json=Space(dim=DIM).json)
        self.collections.CreateCollection(collections_pb2.CreateCollectionRequest(name="c", space=space))

    def row_count(self) -> int:
        request = collections_pb2.GetCollectionRequest(name="c")
        return int(self.collections.GetCollection(request, timeout=10).collection.row_count)

    def send(self, *requests: ingest_pb2.IngestRequest) -> list[Any]:
        return list(self.ingest.Ingest(iter(requests), timeout=10))


@pytest.fixture
def calls(server: ServerProcess) -> Iterator[Calls]:
    made = Calls(server.address)
    yield made
    made.channel.close()


def batch(sequence: int = 1, rows: int = 4, first: int = 0) -> ingest_pb2.Batch:
    gradients = np.random.default_rng(first).standard_normal((rows, DIM))
    return batch_message(sequence, range(first, first + rows), gradients)


def in_batch(made: ingest_pb2.Batch) -> ingest_pb2.IngestRequest:
    return ingest_pb2.IngestRequest(batch=made)


def part(size: int) -> ingest_pb2.IngestRequest:
    return ingest_pb2.IngestRequest(part=ingest_pb2.BatchPart(gradients=b"\0" * size))


def changed(change: Callable[[ingest_pb2.Batch], object]) -> ingest_pb2.IngestRequest:
    made = batch()
    change(made)
    return in_batch(made)


def cut(made: ingest_pb2.Batch) -> None:
    """Leaves the start of the gradients: the rest is to come in parts."""
    made.gradients = made.gradients[:10]


LIES = {
    "no open": [in_batch(batch())],
    "nothing in the message": [ingest_pb2.IngestRequest()],
    "opened twice": [OPEN, OPEN],
    "a part of nothing": [OPEN, part(10)],
    "claims more bytes than its rows have": [OPEN, changed(lambda made: setattr(made, "gradients_size", 10_000))],
    "stops in the middle": [OPEN, changed(cut)],
    "claims fewer": [OPEN, changed(lambda made: setattr(made, "gradients_size", 3))],
    "an empty part": [OPEN, changed(cut), part(0)],
    "a part too long": [OPEN, changed(cut), part(99)],
    "another batch before the first is whole": [OPEN, changed(cut), in_batch(batch(2))],
    "a size past every limit": [OPEN, changed(lambda made: setattr(made, "gradients_size", 1 << 62))],
    "rows past the limit": [OPEN, changed(lambda made: setattr(made, "row_count", 1 << 31))],
    "a gap in the sequence": [OPEN, in_batch(batch(sequence=7))],
    "sequence zero": [OPEN, in_batch(batch(sequence=0))],
    "no writer id": [ingest_pb2.IngestRequest(open=ingest_pb2.OpenWriter(collection="c", checkpoint="one"))],
    "eta that is no number": [
        ingest_pb2.IngestRequest(
            open=ingest_pb2.OpenWriter(collection="c", writer_id="w", checkpoint="one", eta=float("nan"))
        )
    ],
    "bytes that were flipped on the way": [OPEN, changed(lambda made: setattr(made, "gradients_crc32", 1))],
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_and_nothing_is_stored(calls: Calls, lie: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        calls.send(*LIES[lie])
    assert raised.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert calls.row_count() == 0
    assert len(calls.send(OPEN, in_batch(batch()))) == 2
    assert calls.row_count() == 4


def test_what_was_acknowledged_before_a_lie_stays(calls: Calls) -> None:
    answers = calls.ingest.Ingest(iter([OPEN, in_batch(batch(1)), in_batch(batch(2, first=4)), part(3)]), timeout=10)
    assert next(answers).opened.dim == DIM
    assert [next(answers).acknowledged.sequence for _ in range(2)] == [1, 2]
    with pytest.raises(grpc.RpcError, match="after OpenWriter come batches"):
        next(answers)
    assert calls.row_count() == 8


def test_garbage_is_refused(calls: Calls) -> None:
    rng = np.random.default_rng(0)
    raw: Any = calls.channel.stream_stream("/covector.v1.IngestService/Ingest")
    for _ in range(20):
        with pytest.raises(grpc.RpcError):
            list(raw(iter([rng.bytes(int(rng.integers(1, 2000)))]), timeout=10))
    unary: Any = calls.channel.unary_unary("/covector.v1.CollectionsService/CreateCollection")
    for _ in range(20):
        with pytest.raises(grpc.RpcError):
            unary(rng.bytes(int(rng.integers(1, 2000))), timeout=10)
    assert calls.row_count() == 0


def test_a_client_that_vanishes_in_a_batch_leaves_nothing_half(calls: Calls) -> None:
    sent = threading.Event()

    def requests() -> Iterator[ingest_pb2.IngestRequest]:
        yield OPEN
        yield changed(cut)
        sent.set()
        threading.Event().wait(30)

    stream = calls.ingest.Ingest(requests())
    next(stream)
    assert sent.wait(10)
    stream.cancel()
    assert calls.row_count() == 0
    calls.send(OPEN, in_batch(batch()))
    assert calls.row_count() == 4


def test_clients_that_vanish_before_the_answer_stop_nobody(calls: Calls) -> None:
    for number in range(30):
        opened = ingest_pb2.OpenWriter(collection="c", writer_id=f"vanishing {number}", checkpoint="one", eta=1)
        requests = [ingest_pb2.IngestRequest(open=opened)]
        requests += [in_batch(batch(sequence, first=4 * sequence)) for sequence in range(1, 20)]
        stream = calls.ingest.Ingest(iter(requests))
        next(stream)
        if number % 2:
            next(stream)
        stream.cancel()
    assert len(calls.send(OPEN, in_batch(batch(first=1000)))) == 2
    assert calls.row_count() in range(8, 4 * 20 + 1)


def test_two_hundred_idle_writers_delay_nobody(calls: Calls, server: ServerProcess) -> None:
    closing = threading.Event()

    def idle(number: int) -> Iterator[ingest_pb2.IngestRequest]:
        opened = ingest_pb2.OpenWriter(collection="c", writer_id=f"w{number}", checkpoint="one", eta=1)
        yield ingest_pb2.IngestRequest(open=opened)
        closing.wait(60)

    streams = [calls.ingest.Ingest(idle(number)) for number in range(200)]
    for stream in streams:
        assert next(stream).opened.dim == DIM
    health: Any = health_pb2_grpc.HealthStub(calls.channel)
    for number in range(20):
        opened = ingest_pb2.OpenWriter(collection="c", writer_id=f"busy {number}", checkpoint="one", eta=1)
        sent = [in_batch(batch(sequence, first=100 * number + 4 * sequence)) for sequence in (1, 2)]
        assert len(calls.send(ingest_pb2.IngestRequest(open=opened), *sent)) == 3
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=5).status == 1
        spec = query_pb2.TopKSpec(k=1, query=query_pb2.QuerySpec(collection="c", query_count=1))
        vectors = query_pb2.VectorPart(data=np.ones(DIM, "<f4").tobytes())
        question = [query_pb2.QueryRequest(spec=spec), query_pb2.QueryRequest(vectors=vectors)]
        assert len(list(calls.query.Query(iter(question), timeout=5))) == 2
    closing.set()
    for stream in streams:
        assert list(stream) == []


def test_a_client_that_reads_no_answers_stalls_itself_alone(calls: Calls) -> None:
    sequences = range(1, 301)
    requests = [OPEN, *(in_batch(batch(sequence, first=4 * sequence)) for sequence in sequences)]
    silent = calls.ingest.Ingest(iter(requests), timeout=60)
    opened = ingest_pb2.OpenWriter(collection="c", writer_id="other", checkpoint="one", eta=1)
    for number in range(5):
        sent = in_batch(batch(number + 1, first=10_000 + 4 * number))
        assert len(calls.send(ingest_pb2.IngestRequest(open=opened), sent)) == 2
    next(silent)
    assert [answer.acknowledged.sequence for answer in silent] == list(sequences)
    assert calls.row_count() == 4 * (len(sequences) + 5)


def test_a_stop_ends_streams_with_a_clear_status(calls: Calls, server: ServerProcess) -> None:
    closing = threading.Event()

    def requests() -> Iterator[ingest_pb2.IngestRequest]:
        yield OPEN
        yield in_batch(batch())
        closing.wait(60)

    stream = calls.ingest.Ingest(requests())
    assert next(stream).opened.dim == DIM
    assert next(stream).acknowledged.stored_row_count == 4
    assert server.stop() == 0
    with pytest.raises(grpc.RpcError, match="send what was not acknowledged") as raised:
        next(stream)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    closing.set()
    server.start()
    assert row_count_at(server.address) == 4


def row_count_at(address: str) -> int:
    with grpc.insecure_channel(address) as channel:
        stub = collections_pb2_grpc.CollectionsServiceStub(channel)
        return int(stub.GetCollection(collections_pb2.GetCollectionRequest(name="c")).collection.row_count)


def test_reflection_and_health_are_on(calls: Calls) -> None:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    stub: Any = reflection_pb2_grpc.ServerReflectionStub(calls.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    answer = next(iter(stub.ServerReflectionInfo(iter([request]))))
    names = {service.name for service in answer.list_services_response.service}
    assert {"covector.v1.IngestService", "covector.v1.QueryService", "grpc.health.v1.Health"} <= names
    health: Any = health_pb2_grpc.HealthStub(calls.channel)
    for name in ("", "covector.v1.IngestService"):
        assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == 1
