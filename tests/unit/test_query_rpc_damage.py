"""Damage and limits of queries over the wire: what is left out is told, streams and bytes are bounded, none holds a
thread."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import numpy as np
import pytest
from tests.unit.test_query_rpc import DIM, Served, all_scores, failure, pieces, query, spec_of

from covector.blocks import column_from_message
from covector.errors import Corrupt, InvalidInput, LimitExceeded, Unavailable, from_rpc_error
from covector.types import Space
from covector.v1 import query_pb2, query_pb2_grpc, rows_pb2, rows_pb2_grpc
from covector_server.limits import Limits
from covector_server.query.engine import scores, top_k
from covector_server.query.question import Question
from covector_server.storage.damage import OnDamage
from covector_server.storage.view import RowDetails, RowIds
from covector_server.testing.memory import MemoryCollection, memory_collection

OMIT = query_pb2.DAMAGED_ROWS_OMIT
VECTORS = np.random.default_rng(1).standard_normal((1, 2, DIM)).astype(np.float32)
BAD = frozenset(range(10, 40))


@pytest.fixture(scope="module")
def view() -> MemoryCollection:
    rows = np.random.default_rng(0).standard_normal((100, DIM))
    return memory_collection(
        "c", Space(dim=DIM), {"a": (range(100), rows)}, texts={row: f"text of {row}" for row in range(100)}
    )


def with_bad_rows(view: MemoryCollection) -> MemoryCollection:
    return replace(view, checkpoints={"a": replace(view.checkpoints["a"], damaged=BAD)})


def top_spec(view: MemoryCollection, k: int = 100, keys_only: bool = False, **changes: Any) -> query_pb2.TopKSpec:
    return query_pb2.TopKSpec(query=spec_of(view, VECTORS, names="", **changes), k=k, keys_only=keys_only)


def hits_of(responses: list[query_pb2.QueryResponse]) -> list[query_pb2.Hit]:
    return [hit for response in responses[1:] for hit in (*response.hits.proponents, *response.hits.opponents)]


@pytest.mark.parametrize("damaged", [query_pb2.DAMAGED_ROWS_UNSPECIFIED, query_pb2.DAMAGED_ROWS_FAIL])
def test_a_query_that_is_not_told_otherwise_fails(view: MemoryCollection, damaged: query_pb2.DamagedRows) -> None:
    served = Served({"c": with_bad_rows(view)})
    found = failure(served, lambda channel: query(channel, top_spec(view, damaged=damaged), pieces(VECTORS)))
    assert type(found) is Corrupt
    assert "memory/a" in found.message
    assert (found.facts["checkpoint"], found.facts["collection"]) == ("a", "c")
    found = failure(served, lambda channel: all_scores(channel, top_spec(view, damaged=damaged).query, VECTORS))
    assert type(found) is Corrupt


def test_a_choice_this_server_does_not_know_is_refused(view: MemoryCollection) -> None:
    found = failure(Served({"c": view}), lambda channel: query(channel, top_spec(view, damaged=3), pieces(VECTORS)))
    assert type(found) is InvalidInput
    assert "damaged is newer" in found.message


def test_the_summary_tells_what_is_left_out(view: MemoryCollection) -> None:
    bad = with_bad_rows(view)
    responses = Served({"c": bad}).run(lambda channel: query(channel, top_spec(view, damaged=OMIT), pieces(VECTORS)))
    expected = top_k(bad, Question(vectors=VECTORS, damaged="omit"), 100)
    assert [hit.key for hit in hits_of(responses)] == [
        key for ends in expected.results for end in (ends.proponents, ends.opponents) for key in end.keys
    ]
    (damage,) = responses[0].summary.damages
    assert (damage.checkpoint, damage.path, damage.row_count) == ("a", "memory/a", len(BAD))


def test_hits_whose_texts_are_damaged_leave_with_their_keys(view: MemoryCollection) -> None:
    bad = replace(view, damaged_texts=BAD)
    served = Served({"c": bad})
    responses = served.run(lambda channel: query(channel, top_spec(view, damaged=OMIT), pieces(VECTORS)))
    sound = Served({"c": view}).run(lambda channel: query(channel, top_spec(view), pieces(VECTORS)))
    assert [hit.key for hit in hits_of(responses)] == [hit.key for hit in hits_of(sound)]
    without = {hit.key for hit in hits_of(responses) if not hit.HasField("text")}
    assert without == {view.rows[row_id].key for row_id in BAD}
    (damage,) = responses[0].summary.damages
    assert (damage.checkpoint, damage.row_count) == ("", len(BAD))
    found = failure(served, lambda channel: query(channel, top_spec(view), pieces(VECTORS)))
    assert type(found) is Corrupt
    for wanted in (OMIT, query_pb2.DAMAGED_ROWS_FAIL):  # keys alone need no text
        spec = top_spec(view, keys_only=True, damaged=wanted)
        responses = served.run(functools.partial(query, spec=spec, parts=list(pieces(VECTORS))))
        assert [hit.key for hit in hits_of(responses)] == [hit.key for hit in hits_of(sound)]
        assert not responses[0].summary.damages


@dataclass(frozen=True)
class LateDamage(MemoryCollection):
    """Texts that go bad once they were looked at."""

    seen: list[RowIds] = field(default_factory=list)

    def details_of(self, row_ids: RowIds, on_damage: OnDamage | None = None) -> list[RowDetails]:
        bad = self if not self.seen else replace(self, damaged_texts=BAD)
        self.seen.append(row_ids)
        return MemoryCollection.details_of(bad, row_ids, on_damage)


def test_damage_that_comes_after_the_summary_ends_the_answer(view: MemoryCollection) -> None:
    served = Served({"c": LateDamage(view.name, view.space, view.rows, view.fields, view.checkpoints)})
    found = failure(served, lambda channel: query(channel, top_spec(view, k=20, damaged=OMIT), pieces(VECTORS)))
    assert type(found) is Corrupt
    assert "ask again" in found.message


def test_scores_tell_what_is_left_out_as_they_go(view: MemoryCollection) -> None:
    bad = replace(with_bad_rows(view), damaged_keys=frozenset({0, 99}))
    spec = top_spec(view, damaged=OMIT).query
    (response,) = Served({"c": bad}).run(lambda channel: all_scores(channel, spec, VECTORS))
    left = sorted(set(range(1, 99)) - BAD)
    keys = column_from_message(response.keys.values, len(left), "keys").values()
    assert keys == [view.rows[row_id].key for row_id in left]
    (block,) = scores(view, Question(vectors=VECTORS)).blocks
    np.testing.assert_allclose(
        np.frombuffer(response.scores, "<f4").reshape(2, -1), block.scores[:, left], rtol=1e-5, atol=1e-5
    )
    assert sorted((damage.checkpoint, damage.row_count) for damage in response.damages) == [("", 2), ("a", len(BAD))]


def test_scores_of_damaged_rows_only_still_tell(view: MemoryCollection) -> None:
    bad = replace(view, checkpoints={"a": replace(view.checkpoints["a"], damaged=frozenset(range(100)))})
    spec = top_spec(view, damaged=OMIT).query
    (response,) = Served({"c": bad}).run(lambda channel: all_scores(channel, spec, VECTORS))
    assert (response.scores, response.result_count) == (b"", 2)
    assert [damage.row_count for damage in response.damages] == [100]


class Held:
    """Query streams that stay open: each sends some messages, then nothing more until it is let go."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = query_pb2_grpc.QueryServiceStub(channel)
        self._released = asyncio.Event()
        self._calls: list[Any] = []

    def open(self, *messages: query_pb2.QueryRequest) -> Any:
        async def requests() -> AsyncIterator[query_pb2.QueryRequest]:
            for message in messages:
                yield message
            await self._released.wait()

        call = self._stub.Query(requests())
        self._calls.append(call)
        return call

    async def open_scores(self, spec: query_pb2.QuerySpec, vectors: np.ndarray) -> None:
        """Asks for scores, reads one message and no more."""
        parts = [query_pb2.ScoresRequest(vectors=part) for part in pieces(vectors, 10_000)]
        call = self._stub.Scores(iter([query_pb2.ScoresRequest(spec=spec), *parts]))
        self._calls.append(call)
        await call.read()

    async def release(self) -> None:
        self._released.set()
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*(call.code() for call in self._calls))


def opening(view: MemoryCollection) -> list[query_pb2.QueryRequest]:
    (part, *_) = pieces(VECTORS, 40)
    return [query_pb2.QueryRequest(spec=top_spec(view)), query_pb2.QueryRequest(vectors=part)]


async def error_of(call: Any) -> Exception:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return from_rpc_error(caught.value)


def test_idle_streams_and_stalled_readers_do_not_keep_a_query_from_running() -> None:
    rng = np.random.default_rng(5)
    view = memory_collection("c", Space(dim=DIM), {"a": (range(5_000), rng.standard_normal((5_000, DIM)))})
    many = rng.standard_normal((1, 400, DIM)).astype(np.float32)
    served = Served({"c": view}, Limits(part_wait_s=600))  # on two threads

    async def call(channel: grpc.aio.Channel) -> list[query_pb2.QueryResponse]:
        held = Held(channel)
        for _ in range(70):
            held.open()
            held.open(opening(view)[0])
            held.open(*opening(view))
        for _ in range(4):
            await held.open_scores(spec_of(view, many, names=""), many)  # 8 MB of them
        await until(lambda: served.queries.admission.stream_count == 214)
        found = await asyncio.wait_for(query(channel, top_spec(view, k=3), pieces(VECTORS)), 60)
        assert served.open_count > 0  # of readers that stall
        await held.release()
        return found

    assert len(hits_of(served.run(call))) == 12


def test_no_more_streams_than_the_limit(view: MemoryCollection) -> None:
    served = Served({"c": view}, Limits(query_streams=3))

    async def call(channel: grpc.aio.Channel) -> None:
        held = Held(channel)
        for _ in range(3):
            held.open(*opening(view))
        await until(lambda: served.queries.admission.stream_count == 3)
        error = await error_of(held.open())
        assert isinstance(error, LimitExceeded)
        assert "3 queries are open, query_streams=3" in error.message
        await held.release()
        await until(lambda: served.queries.admission.stream_count == 0)
        assert len(hits_of(await query(channel, top_spec(view, k=3), pieces(VECTORS)))) == 12

    served.run(call)


def test_streams_of_rows_count_as_queries_do(view: MemoryCollection) -> None:
    served = Served({"c": view}, Limits(query_streams=1))

    async def call(channel: grpc.aio.Channel) -> None:
        held, rows = Held(channel), rows_pb2_grpc.RowsServiceStub(channel)
        held.open(*opening(view))
        await until(lambda: served.queries.admission.stream_count == 1)
        for refused in (rows.GetRows(rows_pb2.GetRowsRequest(collection="c")), rows.ListMissing(iter(()))):
            assert isinstance(await error_of(refused), LimitExceeded)
        await held.release()
        await until(lambda: served.queries.admission.stream_count == 0)
        assert [response async for response in rows.ListMissing(iter(()))] == []

    served.run(call)


async def until(condition: Callable[[], bool]) -> None:
    """Returns once the server has come so far."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


def test_the_bytes_of_all_queries_are_limited_as_they_come(view: MemoryCollection) -> None:
    served = Served({"c": view}, Limits(query_queue_bytes=100))

    async def call(channel: grpc.aio.Channel) -> None:
        held = Held(channel)
        whole = [opening(view)[0], *(query_pb2.QueryRequest(vectors=part) for part in pieces(VECTORS))]
        held.open(whole[0])  # says that it will send 96 bytes, and holds none
        assert len(hits_of(await query(channel, top_spec(view, k=3), pieces(VECTORS)))) == 12
        held.open(*opening(view))  # 40 of them
        await until(lambda: served.queries.admission.used_bytes == 40)
        error = await error_of(held.open(*whole))
        assert isinstance(error, LimitExceeded)
        assert "hold 40 bytes of vectors, 96 more exceed query_queue_bytes=100" in error.message
        await held.release()
        await until(lambda: served.queries.admission.used_bytes == 0)
        assert len(hits_of(await query(channel, top_spec(view, k=3), pieces(VECTORS)))) == 12

    served.run(call)


@pytest.mark.parametrize("sent", [0, 1, 2])
def test_a_stream_that_stalls_is_ended(view: MemoryCollection, sent: int) -> None:
    served = Served({"c": view}, Limits(part_wait_s=0.05, query_streams=1))

    async def call(channel: grpc.aio.Channel) -> None:
        held = Held(channel)
        error = await error_of(held.open(*opening(view)[:sent]))
        assert isinstance(error, Unavailable)
        assert "part_wait_s=0.05" in str(error)
        await until(lambda: served.queries.admission.stream_count == 0)
        await held.release()

    served.run(call)
