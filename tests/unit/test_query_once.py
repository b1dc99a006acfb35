"""A query in one message each way, congruent with the same query as a stream."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from tests.unit.scripted_calls import scripted
from tests.unit.test_query_rpc import (
    DIM,
    EndlessCheckpoint,
    Served,
    check_that_leaving_stops_it,
    failure,
    keys_message,
    pieces,
    query,
    spec_of,
    view,
)

import covector
from covector.errors import Corrupt, CovectorError, Internal, InvalidInput, LimitExceeded, NotFound
from covector.types import Key, Space
from covector.v1 import query_pb2, query_pb2_grpc, types_pb2
from covector_server.limits import Limits
from covector_server.query import joint
from covector_server.rpc import answers
from covector_server.testing.memory import MemoryCollection, memory_collection

__all__ = ["view"]  # the fixture


def vectors_of(checkpoint_count: int, count: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((checkpoint_count, count, DIM)).astype(np.float32)


async def once(channel: grpc.aio.Channel, spec: query_pb2.TopKSpec, vectors: np.ndarray) -> query_pb2.QueryOnceResponse:
    request = query_pb2.QueryOnceRequest(spec=spec, vectors=vectors.astype("<f4").tobytes())
    response: query_pb2.QueryOnceResponse = await query_pb2_grpc.QueryServiceStub(channel).QueryOnce(request)
    return response


def plain(summary: query_pb2.QuerySummary) -> query_pb2.QuerySummary:
    """Without the times, which differ from run to run."""
    copy = query_pb2.QuerySummary()
    copy.CopyFrom(summary)
    for stage in copy.stages:
        stage.seconds = 0
    return copy


@pytest.mark.parametrize(("count", "changes", "top"), [
    (1, {"names": ""}, {}),
    (3, {}, {}),
    (2, {"names": "b", "scorer": "cosine"}, {"offset": 3}),
    (4, {"groups": [0, 1, 1, 0]}, {}),
    (4, {"groups": [0, 1, 1, 0], "reduce": query_pb2.REDUCE_MAX}, {}),
    (4, {"reduce": query_pb2.REDUCE_MEAN}, {"keys_only": True}),
    (2, {"missing": query_pb2.MISSING_ROWS_ZERO}, {"k": 200}),
    (2, {"where_json": '{"year": {"gte": 2002}}'}, {}),
    (2, {"damaged": query_pb2.DAMAGED_ROWS_OMIT}, {}),
    (1, {"exact": True}, {"k": 600}),
])  # fmt: skip
def test_the_answer_is_that_of_a_stream(
    view: MemoryCollection, count: int, changes: dict[str, Any], top: dict[str, Any]
) -> None:
    names = changes.setdefault("names", "ab")
    served = Served({"c": view if names else replace(view, checkpoints={"a": view.checkpoints["a"]})})
    vectors = vectors_of(max(1, len(names)), count)
    spec = query_pb2.TopKSpec(query=spec_of(view, vectors, **changes), **{"k": 5, **top})
    streamed = served.run(lambda channel: query(channel, spec, pieces(vectors)))
    whole = served.run(lambda channel: once(channel, spec, vectors))
    assert not whole.too_large
    assert plain(whole.summary) == plain(streamed[0].summary)
    assert list(whole.hits) == [response.hits for response in streamed[1:]]
    assert served.open_count == 0


def test_stored_rows_as_queries(served: Served, view: MemoryCollection) -> None:
    keys: list[Key] = [1, "row-4"]
    stored = spec_of(view, np.empty((1, 0, DIM)), names="a", stored_keys=keys_message(keys))
    spec = query_pb2.TopKSpec(query=stored, k=3)
    streamed = served.run(lambda channel: query(channel, spec, []))
    assert list(served.run(lambda channel: once(channel, spec, np.empty(0))).hits) == [
        response.hits for response in streamed[1:]
    ]


@pytest.fixture
def served(view: MemoryCollection) -> Served:
    return Served({"c": view})


@pytest.mark.parametrize(("changes", "sent", "error", "message"), [
    ({}, 23, InvalidInput, "92 bytes of vectors came, which are not 2 checkpoints x 1 vectors of float32"),
    ({}, 0, InvalidInput, "0 bytes of vectors came"),
    ({}, 26, InvalidInput, "the query has dim 13, collection 'c' has dim 12"),
    ({"query_count": 0}, 24, InvalidInput, "the query has no vectors"),
    ({"collection": "d"}, 24, NotFound, "no collection 'd'"),
    ({"where_json": "{"}, 24, InvalidInput, "the filter is not JSON"),
    ({"scorer": "dots"}, 24, NotFound, "did you mean 'dot'"),
    ({"query_count": 5000}, 24, LimitExceeded, "query_vectors=4096"),
    ({"reduce": 7}, 24, InvalidInput, "reduce is newer than this server"),
    ({"space": types_pb2.Space(json='{"dim":13}')}, 24, InvalidInput, "dim: 12 here, 13 there"),
    ({"self_influence": True, "query_count": 0}, 0, InvalidInput, "what rows score for themselves is asked of Scores"),
    ({"stored_keys": keys_message([1])}, 24, InvalidInput, "no vectors are sent"),
])  # fmt: skip
def test_errors_arrive_as_they_were_raised(
    served: Served,
    view: MemoryCollection,
    changes: Mapping[str, Any],
    sent: int,
    error: type[CovectorError],
    message: str,
) -> None:
    spec = spec_of(view, np.ones((2, 1, DIM)))
    for name, value in changes.items():
        if isinstance(value, int | str):
            setattr(spec, name, value)
        else:
            getattr(spec, name).CopyFrom(value)
    found = failure(served, lambda channel: once(channel, query_pb2.TopKSpec(query=spec, k=3), np.ones(sent)))
    assert type(found) is error
    assert message in found.message


def test_vectors_that_are_not_finite(served: Served, view: MemoryCollection) -> None:
    vectors = np.full((2, 1, DIM), np.nan)
    spec = query_pb2.TopKSpec(query=spec_of(view, vectors), k=3)
    assert "holds NaN or infinity" in failure(served, lambda channel: once(channel, spec, vectors)).message


def test_groups_of_hits_are_asked_of_a_stream(served: Served, view: MemoryCollection) -> None:
    vectors = vectors_of(2, 1)
    spec = query_pb2.TopKSpec(query=spec_of(view, vectors), k=3, group_by="year")
    assert "ask Query" in failure(served, lambda channel: once(channel, spec, vectors)).message


def test_query_bytes_are_limited(view: MemoryCollection) -> None:
    served = Served({"c": view}, Limits(query_bytes=95))
    spec = query_pb2.TopKSpec(query=spec_of(view, vectors_of(2, 1)), k=3)
    found = failure(served, lambda channel: once(channel, spec, vectors_of(2, 1)))
    assert "96 exceeds the limit query_bytes=95" in found.message


@pytest.mark.parametrize("queue_bytes", [95, 200])
def test_vectors_and_answers_count_while_the_query_is_open(view: MemoryCollection, queue_bytes: int) -> None:
    """The vectors alone exceed the one limit, the answer the other."""
    served = Served({"c": view}, Limits(query_queue_bytes=queue_bytes))
    spec = query_pb2.TopKSpec(query=spec_of(view, vectors_of(2, 1)), k=30)
    found = failure(served, lambda channel: once(channel, spec, vectors_of(2, 1)))
    assert f"query_queue_bytes={queue_bytes}" in found.message
    assert (served.queries.admission.stream_count, served.queries.admission.used_bytes) == (0, 0)


@pytest.mark.parametrize("how", ["batch", "answer", "alone"])
def test_an_answer_that_is_too_large_is_not_sent(
    served: Served, view: MemoryCollection, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen while rows are read for a batch, when its message is made, or while one that is answered alone is made."""
    if how == "batch":
        monkeypatch.setattr(joint, "BATCH_BYTES", 10)
    else:
        monkeypatch.setattr(answers, "ANSWER_BYTES", 300)
    where = {"where_json": '{"year": {"gte": 2000}}'} if how == "alone" else {}
    vectors = vectors_of(2, 1)
    spec = query_pb2.TopKSpec(query=spec_of(view, vectors, **where), k=20)
    response = served.run(lambda channel: once(channel, spec, vectors))
    assert response == query_pb2.QueryOnceResponse(too_large=True)
    small = query_pb2.TopKSpec(query=spec_of(view, vectors, **where), k=20 if how == "batch" else 1, keys_only=True)
    assert len(served.run(lambda channel: once(channel, small, vectors)).hits[0].proponents) == small.k


def test_damage_fails_the_query_that_meets_it(view: MemoryCollection) -> None:
    served = Served({"c": replace(view, damaged_texts=frozenset(range(200)))})
    vectors = vectors_of(2, 1)
    spec = query_pb2.TopKSpec(query=spec_of(view, vectors), k=5)
    found = failure(served, lambda channel: once(channel, spec, vectors))
    assert type(found) is Corrupt
    keys_only = query_pb2.TopKSpec(query=spec_of(view, vectors), k=5, keys_only=True)
    assert len(served.run(lambda channel: once(channel, keys_only, vectors)).hits[0].proponents) == 5


def test_a_client_that_goes_away_stops_its_query(view: MemoryCollection) -> None:
    check_that_leaving_stops_it(view, once)


def test_a_deadline_stops_its_query(view: MemoryCollection) -> None:
    endless = EndlessCheckpoint("a", view.checkpoints["a"].stored)
    served = Served({"c": replace(view, checkpoints={"a": endless})})
    vectors = vectors_of(1, 1)
    spec = query_pb2.TopKSpec(query=spec_of(view, vectors, names=""), k=3)

    async def call(channel: grpc.aio.Channel) -> bool:
        request = query_pb2.QueryOnceRequest(spec=spec, vectors=vectors.tobytes())
        served.closed.clear()
        with pytest.raises(grpc.aio.AioRpcError, match="Deadline"):
            await query_pb2_grpc.QueryServiceStub(channel).QueryOnce(request, timeout=0.3)
        return await asyncio.to_thread(served.closed.wait, 30)

    assert served.run(call)


def test_many_at_once(view: MemoryCollection) -> None:
    """Each gets its own answer, also where one of them is wrong and another is answered alone."""
    served = Served({"c": view})
    asked = [vectors_of(2, 1 + seed % 2, seed) for seed in range(12)]
    specs = [query_pb2.TopKSpec(query=spec_of(view, vectors), k=3 + place) for place, vectors in enumerate(asked)]
    specs[4].k = 0
    specs[7].query.where_json = '{"year": 2003}'

    async def call(channel: grpc.aio.Channel) -> list[Any]:
        return await asyncio.gather(*map(once, [channel] * 12, specs, asked), return_exceptions=True)

    answers = served.run(call)
    assert isinstance(answers[4], grpc.aio.AioRpcError)
    for place in set(range(12)) - {4}:
        streamed = served.run(functools.partial(query, spec=specs[place], parts=list(pieces(asked[place]))))
        assert list(answers[place].hits) == [response.hits for response in streamed[1:]]


HIT = query_pb2.Hit(key=b"\x02a", score=2.0, text="t", metadata_json='{"b":1}')
SUMMARY = query_pb2.QuerySummary(result_count=1, scorer="dot", exact=True)


def test_the_client_asks_for_what_is_small_in_one_message() -> None:
    """And for the rest in a stream."""
    came: list[str] = []

    def whole(request: query_pb2.QueryOnceRequest) -> query_pb2.QueryOnceResponse:
        came.append("once")
        if request.spec.offset == 7:
            return query_pb2.QueryOnceResponse(too_large=True)
        assert len(request.vectors) == 12 * request.spec.query.query_count
        return query_pb2.QueryOnceResponse(summary=SUMMARY, hits=[query_pb2.ResultHits(proponents=[HIT])])

    def stream(requests: list[query_pb2.QueryRequest]) -> list[query_pb2.QueryResponse]:
        came.append("stream")
        return [
            query_pb2.QueryResponse(summary=SUMMARY),
            query_pb2.QueryResponse(hits=query_pb2.ResultHits(proponents=[HIT])),
        ]

    with scripted({"QueryOnce": whole, "Query": stream}) as address, covector.connect(address) as client:
        collection = client.collection("c")
        asked: list[tuple[dict[str, Any], list[str]]] = [
            ({"queries": np.ones(3)}, ["once"]),
            ({"queries": np.ones((4, 3)), "k": 128}, ["once"]),
            ({"queries": np.ones((4, 3)), "k": 129}, ["stream"]),
            ({"queries": np.ones((4, 3)), "k": 129, "reduce": "mean"}, ["once"]),
            ({"keys": ["a"]}, ["once"]),
            ({"queries": np.ones(3), "group_by": "b"}, ["stream"]),
            ({"queries": np.ones((100_000, 3)), "k": 1, "reduce": "mean"}, ["stream"]),
            ({"queries": np.ones(3), "offset": 7}, ["once", "stream"]),
        ]
        for arguments, expected in asked:
            came.clear()
            result = collection.query(**arguments)
            assert came == expected
            (hit,) = result.hits[0].proponents
            assert (hit.key, hit.score, hit.text, hit.metadata) == ("a", 2.0, "t", {"b": 1})
            assert (result.exact, result.scorer) == (True, "dot")


def test_an_answer_that_is_not_as_the_proto_says() -> None:
    response = query_pb2.QueryOnceResponse(summary=SUMMARY, hits=[query_pb2.ResultHits(result_index=1)])
    with (
        scripted({"QueryOnce": lambda request: response}) as address,
        covector.connect(address) as client,
        pytest.raises(Internal, match="hits of result 1 came, there are 1 results"),
    ):
        client.collection("c").query(np.ones(3))


def test_large_texts_come_all_the_same() -> None:
    keys: list[Key] = list(range(30))
    rows = np.random.default_rng(3).standard_normal((30, DIM))
    texts = {key: str(key) * 300_000 for key in keys}
    served = Served({"c": memory_collection("c", Space(dim=DIM), {"a": (keys, rows)}, texts=texts)})
    vectors = np.ones((1, 1, DIM), dtype=np.float32)
    spec = query_pb2.TopKSpec(query=spec_of(served.views["c"], vectors, names=""), k=15)
    assert served.run(lambda channel: once(channel, spec, vectors)).too_large
    few = query_pb2.TopKSpec(query=spec_of(served.views["c"], vectors, names=""), k=1)
    (hits,) = served.run(lambda channel: once(channel, few, vectors)).hits
    assert len(hits.proponents[0].text) >= 300_000
