"""The query and row services over a real server, congruent with calls in process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import numpy as np
import pytest

from covector.blocks import column_from_message, column_to_message, decode_key, encode_key, key_column
from covector.errors import CovectorError, InvalidInput, LimitExceeded, NotFound, from_rpc_error
from covector.types import Key, Space
from covector.v1 import query_pb2, query_pb2_grpc, rows_pb2, rows_pb2_grpc, types_pb2
from covector_server.limits import Limits
from covector_server.query.engine import scores, top_k
from covector_server.query.question import CheckpointChoice, Question
from covector_server.rpc.convert import space_to_message
from covector_server.rpc.query import QueryServicer
from covector_server.rpc.rows import RowsServicer
from covector_server.rpc.streams import MESSAGE_BYTES, runs
from covector_server.storage.view import CollectionView, RowIds, StripSource
from covector_server.testing.memory import MemoryCheckpoint, MemoryCollection, MemoryStrip, memory_collection

DIM = 12


@dataclass
class Served:
    """A server on some collections; ``open_count`` is how many views are held."""

    views: dict[str, MemoryCollection]
    limits: Limits = field(default_factory=Limits)
    open_count: int = 0
    deletes: list[tuple[str, list[int], str]] = field(default_factory=list)
    queries: QueryServicer = field(init=False)
    closed: threading.Event = field(default_factory=threading.Event)

    async def delete(self, collection: str, row_ids: RowIds, request_id: str) -> int:
        self.deletes.append((collection, row_ids.tolist(), request_id))
        return len(row_ids)

    @contextmanager
    def open_view(self, name: str) -> Iterator[CollectionView]:
        if name not in self.views:
            raise NotFound(f"no collection {name!r}")
        self.open_count += 1
        try:
            yield self.views[name]
        finally:
            self.open_count -= 1
            self.closed.set()

    def run(self, call: Callable[[grpc.aio.Channel], Awaitable[Any]]) -> Any:
        """The result of a call over the wire, its error as covector's own.

        A client of grpc.aio that is refused while it still writes may see "Internal error from Core" instead of the
        refusal. That is a race of its own, so the call is made again; the synchronous client that users have knows it
        not.
        """
        for _ in range(20):
            try:
                return asyncio.run(self._run(call))
            except CovectorError as error:
                if "Internal error from Core" not in error.message:
                    raise
        raise AssertionError("grpc.aio did not tell the error in 20 tries")

    async def _run(self, call: Callable[[grpc.aio.Channel], Awaitable[Any]]) -> Any:
        async with self._channel() as channel:
            try:
                return await call(channel)
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from None

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[grpc.aio.Channel]:
        server = grpc.aio.server()
        with ThreadPoolExecutor(2) as pool:
            self.queries = QueryServicer(self.open_view, pool, self.limits)
            query_pb2_grpc.add_QueryServiceServicer_to_server(self.queries, server)
            rows = RowsServicer(self.open_view, pool, self.queries.admission, self.limits, self.delete)
            rows_pb2_grpc.add_RowsServiceServicer_to_server(rows, server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield channel
            await server.stop(None)
            self.queries.close()


@pytest.fixture(scope="module")
def view() -> MemoryCollection:
    rng = np.random.default_rng(0)
    keys = [place if place % 2 else f"row-{place}" for place in range(200)]
    return memory_collection(
        "c",
        Space(dim=DIM),
        {"a": (keys[:150], rng.standard_normal((150, DIM))), "b": (keys[149::-1], rng.standard_normal((150, DIM)))},
        texts={key: f"text of {key}" for place, key in enumerate(keys) if place % 3 == 0 or place >= 150},
        metadata={key: {"year": 2000 + place % 5} for place, key in enumerate(keys[:100])},
        eta={"b": 0.25},
    )


@pytest.fixture
def served(view: MemoryCollection) -> Served:
    return Served({"c": view})


def spec_of(view: MemoryCollection, vectors: np.ndarray, **changes: Any) -> query_pb2.QuerySpec:
    names = changes.pop("names", "ab")
    return query_pb2.QuerySpec(
        collection="c",
        checkpoints=[query_pb2.CheckpointQuery(name=name) for name in names],
        query_count=vectors.shape[1],
        space=space_to_message(view.space),
        **changes,
    )


def pieces(vectors: np.ndarray, size_bytes: int = 100) -> Iterator[query_pb2.VectorPart]:
    data = vectors.astype("<f4").tobytes()
    for start in range(0, len(data), size_bytes):
        yield query_pb2.VectorPart(data=data[start : start + size_bytes])


async def query(
    channel: grpc.aio.Channel, spec: query_pb2.TopKSpec, parts: Iterable[query_pb2.VectorPart]
) -> list[query_pb2.QueryResponse]:
    requests = [query_pb2.QueryRequest(spec=spec), *(query_pb2.QueryRequest(vectors=part) for part in parts)]
    return [response async for response in query_pb2_grpc.QueryServiceStub(channel).Query(iter(requests))]


def test_hits_are_those_of_a_call_in_process(served: Served, view: MemoryCollection) -> None:
    vectors = np.random.default_rng(1).standard_normal((2, 3, DIM)).astype(np.float32)
    spec = query_pb2.TopKSpec(query=spec_of(view, vectors, where_json='{"year": {"gte": 2002}}', scorer="cosine"), k=5)
    responses = served.run(lambda channel: query(channel, spec, pieces(vectors)))
    choices = [CheckpointChoice("a"), CheckpointChoice("b")]
    question = Question(vectors=vectors, checkpoints=choices, scorer="cosine", where={"year": {"gte": 2002}})
    expected = top_k(view, question, 5)
    summary, hits = responses[0].summary, [response.hits for response in responses[1:]]
    assert (summary.exact, summary.result_count, summary.scorer) == (True, 3, "cosine")
    assert [(s.name, s.rows_in, s.rows_out) for s in summary.stages] == [
        (s.name, s.rows_in, s.rows_out) for s in expected.stages
    ]
    assert [message.result_index for message in hits] == [0, 1, 2]
    for message, ends in zip(hits, expected.results, strict=True):
        for found, end in ((message.proponents, ends.proponents), (message.opponents, ends.opponents)):
            assert [hit.key for hit in found] == end.keys
            assert [hit.score for hit in found] == end.scores.astype(np.float32).tolist()
            for hit, row in zip(found, view.details_of(end.row_ids), strict=True):
                assert (hit.text if hit.HasField("text") else None) == row.text
                assert hit.metadata_json == f'{{"year":{(row.metadata or {})["year"]}}}'


def test_groups_and_reductions_travel(served: Served, view: MemoryCollection) -> None:
    vectors = np.random.default_rng(2).standard_normal((1, 4, DIM)).astype(np.float32)
    query_spec = spec_of(view, vectors, names="b", groups=[0, 1, 1, 0], reduce=query_pb2.REDUCE_MAX)
    spec = query_pb2.TopKSpec(query=query_spec, k=4, keys_only=True)
    responses = served.run(lambda channel: query(channel, spec, pieces(vectors)))
    question = Question(vectors=vectors, checkpoints=[CheckpointChoice("b")], groups=[0, 1, 1, 0], reduce="max")
    (ends,) = top_k(view, question, 4).results
    assert [hit.key for hit in responses[1].hits.proponents] == ends.proponents.keys
    assert not any(hit.HasField("text") or hit.metadata_json for hit in responses[1].hits.proponents)


def test_many_hits_come_in_several_messages() -> None:
    keys: list[Key] = [f"row-{place}" for place in range(50)]
    rows = np.random.default_rng(3).standard_normal((50, DIM))
    texts = {key: str(key) * 15_000 for key in keys}
    served = Served({"c": memory_collection("c", Space(dim=DIM), {"a": (keys, rows)}, texts=texts)})
    vectors = np.ones((1, 1, DIM), dtype=np.float32)
    spec = query_pb2.TopKSpec(query=spec_of(served.views["c"], vectors, names=""), k=50)
    responses = served.run(lambda channel: query(channel, spec, pieces(vectors)))
    messages = [response.hits for response in responses[1:]]
    assert len(messages) > 5
    assert max(message.ByteSize() for message in messages) < 2 * MESSAGE_BYTES
    assert sum(len(message.proponents) for message in messages) == 50
    assert all(str(decode_key(hit.key)) * 15_000 == hit.text for message in messages for hit in message.opponents)


async def all_scores(
    channel: grpc.aio.Channel, spec: query_pb2.QuerySpec, vectors: np.ndarray
) -> list[query_pb2.ScoresResponse]:
    parts = (query_pb2.ScoresRequest(vectors=part) for part in pieces(vectors))
    requests = [query_pb2.ScoresRequest(spec=spec), *parts]
    return [response async for response in query_pb2_grpc.QueryServiceStub(channel).Scores(iter(requests))]


def test_scores_are_those_of_a_call_in_process(served: Served, view: MemoryCollection) -> None:
    vectors = np.random.default_rng(4).standard_normal((2, 2, DIM)).astype(np.float32)
    spec = spec_of(view, vectors, missing=query_pb2.MISSING_ROWS_ZERO)
    (response,) = served.run(lambda channel: all_scores(channel, spec, vectors))
    choices = [CheckpointChoice("a"), CheckpointChoice("b")]
    (block,) = scores(view, Question(vectors=vectors, checkpoints=choices, missing="zero")).blocks
    assert column_from_message(response.keys.values, 150, "keys").values() == view.keys_of(block.row_ids)
    np.testing.assert_array_equal(np.frombuffer(response.scores, "<f4").reshape(2, 150), block.scores)


def test_scores_come_in_several_messages() -> None:
    rng = np.random.default_rng(5)
    view = memory_collection("c", Space(dim=2), {"a": (range(5000), rng.standard_normal((5000, 2)))})
    vectors = rng.standard_normal((1, 200, 2)).astype(np.float32)
    responses = Served({"c": view}).run(lambda channel: all_scores(channel, spec_of(view, vectors, names=""), vectors))
    assert len(responses) > 3
    assert max(response.ByteSize() for response in responses) <= MESSAGE_BYTES + 100
    blocks = [np.frombuffer(response.scores, "<f4").reshape(200, -1) for response in responses]
    (block,) = scores(view, Question(vectors=vectors)).blocks
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), block.scores)


def test_scores_of_nothing_still_say_how_many_results() -> None:
    view = memory_collection("c", Space(dim=2), {"a": ([], np.zeros((0, 2)))})
    vectors = np.ones((1, 3, 2), dtype=np.float32)
    (response,) = Served({"c": view}).run(lambda c: all_scores(c, spec_of(view, vectors, names=""), vectors))
    assert (response.result_count, response.scores) == (3, b"")


def failure(served: Served, call: Callable[[grpc.aio.Channel], Awaitable[Any]]) -> CovectorError:
    with pytest.raises(CovectorError) as caught:
        served.run(call)
    assert served.open_count == 0
    return caught.value


@pytest.mark.parametrize(("changes", "sent", "error", "message"), [
    ({}, 20, InvalidInput, "80 bytes of vectors came, but 2 checkpoints x 1 vectors x dim 12 are 96 bytes"),
    ({}, 25, InvalidInput, "more vectors came than the spec says: 2 checkpoints x 1 vectors x dim 12"),
    ({"collection": "d"}, 24, NotFound, "no collection 'd'"),
    ({"where_json": "{"}, 24, InvalidInput, "the filter is not JSON"),
    ({"scorer": "dots"}, 24, NotFound, "did you mean 'dot'"),
    ({"query_count": 5000}, 24, LimitExceeded, "query_vectors=4096"),
    ({"reduce": 7}, 24, InvalidInput, "reduce is newer than this server"),
    ({"space": types_pb2.Space(json='{"dim":13}')}, 24, InvalidInput, "dim: 12 here, 13 there"),
])  # fmt: skip
def test_errors_arrive_as_they_were_raised(
    served: Served,
    view: MemoryCollection,
    changes: dict[str, Any],
    sent: int,
    error: type[CovectorError],
    message: str,
) -> None:
    spec = spec_of(view, np.ones((2, 1, DIM)))
    spec.MergeFrom(query_pb2.QuerySpec(**{name: value for name, value in changes.items() if name != "space"}))
    if "space" in changes:
        spec.space.CopyFrom(changes["space"])
    top_k_spec = query_pb2.TopKSpec(query=spec, k=3)
    found = failure(served, lambda channel: query(channel, top_k_spec, pieces(np.ones(sent))))
    assert type(found) is error
    assert message in found.message


def test_query_bytes_are_limited(view: MemoryCollection) -> None:
    served = Served({"c": view}, Limits(query_bytes=95))
    spec = query_pb2.TopKSpec(query=spec_of(view, np.ones((2, 1, DIM))), k=3)
    found = failure(served, lambda channel: query(channel, spec, pieces(np.ones(24))))
    assert "96 exceeds the limit query_bytes=95" in found.message


def test_a_query_must_begin_with_its_spec(served: Served) -> None:
    async def call(channel: grpc.aio.Channel) -> None:
        requests = iter([query_pb2.QueryRequest(vectors=query_pb2.VectorPart(data=b"1234"))])
        async for _ in query_pb2_grpc.QueryServiceStub(channel).Query(requests):
            pass

    assert "the first message" in failure(served, call).message


@dataclass(frozen=True)
class EndlessCheckpoint(MemoryCheckpoint):
    """Gives its tile again and again: only a cancelled query comes to an end."""

    started: threading.Event = field(default_factory=threading.Event)

    def strips(self, rows_max: int, row_id_range: tuple[int, int] | None = None) -> Iterator[StripSource]:
        while True:
            self.started.set()
            yield MemoryStrip(self, np.arange(self.row_count))


def check_that_leaving_stops_it(
    view: MemoryCollection,
    ask: Callable[[grpc.aio.Channel, query_pb2.TopKSpec, np.ndarray], Coroutine[Any, Any, object]],
) -> None:
    """Asserts that a query that ``ask`` begins, and that would never end, does when its client goes away."""
    endless = EndlessCheckpoint("a", view.checkpoints["a"].stored)
    served = Served({"c": replace(view, checkpoints={"a": endless})})
    vectors = np.ones((1, 1, DIM), dtype=np.float32)
    spec = query_pb2.TopKSpec(query=spec_of(view, vectors, names=""), k=3)

    async def call(channel: grpc.aio.Channel) -> bool:
        asking = asyncio.create_task(ask(channel, spec, vectors))
        assert await asyncio.to_thread(endless.started.wait, 30)
        served.closed.clear()
        asking.cancel()
        return await asyncio.to_thread(served.closed.wait, 30)

    assert served.run(call)
    assert served.open_count == 0


def test_a_client_that_goes_away_stops_its_query(view: MemoryCollection) -> None:
    check_that_leaving_stops_it(view, lambda channel, spec, vectors: query(channel, spec, pieces(vectors)))


def keys_message(keys: Iterable[Key]) -> types_pb2.KeyColumn:
    return types_pb2.KeyColumn(values=column_to_message(key_column(list(keys))))


async def get(channel: grpc.aio.Channel, request: rows_pb2.GetRowsRequest) -> list[rows_pb2.GetRowsResponse]:
    return [response async for response in rows_pb2_grpc.RowsServiceStub(channel).GetRows(request)]


def test_rows_come_in_the_order_of_the_keys(served: Served, view: MemoryCollection) -> None:
    keys: list[Key] = [151, "row-0", 3, 3, "row-198"]
    request = rows_pb2.GetRowsRequest(collection="c", keys=keys_message(keys), checkpoint="b", gradients=True)
    (response,) = served.run(lambda channel: get(channel, request))
    row_ids = view.row_ids_of([encode_key(key) for key in keys])
    details = view.details_of(row_ids)
    assert column_from_message(response.texts, 5, "texts").strings() == [row.text for row in details]
    metadata = column_from_message(response.metadata, 5, "metadata").strings()
    assert metadata == [None, '{"year":2000}', '{"year":2003}', '{"year":2003}', None]
    scales = np.frombuffer(response.scales, "<f4")
    rows = np.frombuffer(response.gradients, "<f2").reshape(5, DIM)
    assert np.isnan(scales).tolist() == [True, False, False, False, True]
    tile = view.checkpoints["b"].gather(row_ids[1:4])
    np.testing.assert_array_equal(rows[1:4], tile.rows)
    np.testing.assert_array_equal(scales[1:4], tile.scales)
    assert not rows[[0, 4]].any()


def test_rows_without_gradients_asked_for(served: Served) -> None:
    request = rows_pb2.GetRowsRequest(collection="c", keys=keys_message([1, 101]))
    (response,) = served.run(lambda channel: get(channel, request))
    assert (response.row_count, response.scales, response.gradients) == (2, b"", b"")
    assert not response.HasField("texts")


def test_a_long_gradient_spans_messages() -> None:
    dim = 3 * (MESSAGE_BYTES // 2) + 5
    rows = np.random.default_rng(6).standard_normal((2, dim))
    view = memory_collection("c", Space(dim=dim), {"a": ([1, 2], rows)})
    request = rows_pb2.GetRowsRequest(collection="c", keys=keys_message([2, 1]), gradients=True)
    responses = Served({"c": view}).run(lambda channel: get(channel, request))
    assert [response.row_count for response in responses] == [1, 0, 0, 0, 1, 0, 0, 0]
    data = b"".join(response.gradients for response in responses)
    np.testing.assert_array_equal(np.frombuffer(data, "<f2").reshape(2, dim), view.checkpoints["a"].stored.rows[::-1])


@pytest.mark.parametrize(("changes", "message"), [
    ({"keys": [1, "nobody"]}, "no row 'nobody' in 'c'"),
    ({"keys": [1], "gradients": True}, "several checkpoints; say which"),
    ({"keys": [1], "gradients": True, "checkpoint": "z"}, "no checkpoint 'z' in 'c'"),
    ({"keys": [1], "collection": "d"}, "no collection 'd'"),
])  # fmt: skip
def test_rows_that_cannot_be_had(served: Served, changes: dict[str, Any], message: str) -> None:
    keys = keys_message(changes.pop("keys"))
    request = rows_pb2.GetRowsRequest(**{"collection": "c", "keys": keys, **changes})
    assert message in failure(served, lambda channel: get(channel, request)).message


def test_missing_gradients_are_listed_request_by_request(served: Served) -> None:
    asked: list[tuple[str, list[Key]]] = [("a", ["row-0", "row-198", "nobody", 1]), ("a", []), ("new", [1, 3])]
    requests = [
        rows_pb2.ListMissingRequest(collection="c", checkpoint=name, keys=keys_message(keys)) for name, keys in asked
    ]

    async def call(channel: grpc.aio.Channel) -> list[list[int]]:
        responses = rows_pb2_grpc.RowsServiceStub(channel).ListMissing(iter(requests))
        return [np.frombuffer(response.positions, "<u4").tolist() async for response in responses]

    assert served.run(call) == [[1, 2], [], [0, 1]]


def test_counts(served: Served) -> None:
    async def call(channel: grpc.aio.Channel) -> list[int]:
        stub = rows_pb2_grpc.RowsServiceStub(channel)
        requests = [rows_pb2.CountRowsRequest(collection="c", where_json=text) for text in ("", '{"year": 2001}')]
        return [(await stub.CountRows(request)).row_count for request in requests]

    assert served.run(call) == [200, 20]


def test_runs() -> None:
    assert list(runs([], 10)) == []
    assert [(run.start, run.stop) for run in runs([4, 4, 4, 20, 1, 9, 1], 10)] == [
        (0, 2),
        (2, 3),
        (3, 4),
        (4, 6),
        (6, 7),
    ]
