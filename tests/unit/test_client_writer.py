"""The writer against a server that breaks, refuses and stalls: nothing lost, nothing twice, nothing silent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tests.unit.scripted_ingest import WAIT_S, Script, ScriptedServer

from covector import sender as sender_module
from covector.blocks import column_from_message, keys_of
from covector.connection import Connection
from covector.errors import Conflict, Corrupt, InvalidInput, NotFound, Unavailable
from covector.sender import RetryPolicy
from covector.types import GradientKind, Gradients, Space
from covector.writer import Writer

DIM = 1 << 17  # a row has 256 KiB: three and a bit make a batch, so that a few rows make a few batches
SPACE = Space(dim=DIM)
Serve = Callable[[Script], ScriptedServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[ScriptedServer] = []

    def start(script: Script) -> ScriptedServer:
        servers.append(ScriptedServer(script))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken stream is tried again at once."""
    monkeypatch.setattr(sender_module.Sender, "_pause_s", lambda self: 0.0)


def writer(connection: Connection, space: Space = SPACE, **options: Any) -> Writer:
    return Writer(connection, "c", space, "epoch-1", **options)


def rows(count: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def keys_stored(server: ScriptedServer) -> list[Any]:
    return [
        key
        for batch in server.batches
        for key in keys_of(column_from_message(batch.keys.values, batch.row_count, "keys"))
    ]


def batch_messages(stream: list[bytes]) -> list[bytes]:
    return stream[1:]


def test_every_row_is_acknowledged_after_the_block(serve: Serve) -> None:
    server = serve(Script())
    gradients = rows(10)
    gradients[4] = 0
    with writer(server.connect(), eta=0.5) as out:
        for row in range(10):
            out.add([row], gradients[row : row + 1], [f"text {row}"], [{"row": row}])
    assert out.acknowledged == 10
    assert out.zero_rows == 1
    assert keys_stored(server) == list(range(10))
    assert [batch.row_count for batch in server.batches] == [3, 3, 3, 1]
    assert server.opened[0].eta == 0.5
    assert (server.opened[0].collection, server.opened[0].checkpoint) == ("c", "epoch-1")


def test_a_writer_without_rows_opens_nothing(serve: Serve) -> None:
    server = serve(Script())
    with writer(server.connect()) as out:
        out.flush()
        out.add([], np.empty((0, DIM)))
    assert out.acknowledged == 0
    assert server.streams == []


@pytest.mark.parametrize("store_then_break", [False, True])
@pytest.mark.parametrize("break_after", [[0], [2], [1, 0, 0, 2], [0] * 12])
def test_broken_streams_lose_nothing_and_store_nothing_twice(
    serve: Serve, break_after: list[int], store_then_break: bool
) -> None:
    server = serve(Script(break_after=list(break_after), store_then_break=store_then_break))
    with writer(server.connect()) as out:
        out.add(list(range(20)), rows(20))
    assert out.acknowledged == 20
    assert keys_stored(server) == list(range(20))
    assert len({opened.writer_id for opened in server.opened}) == 1
    assert len(server.streams) >= 2


def test_a_batch_sent_again_is_the_same_to_the_bit(serve: Serve) -> None:
    server = serve(Script(break_after=[1]))
    with writer(server.connect()) as out:
        out.add(list(range(9)), rows(9))
    first, second = map(batch_messages, server.streams)
    again = [message for message in first if message in second]
    assert again == first[1:]
    assert second[: len(again)] == again


def test_a_row_larger_than_a_message_arrives_whole(serve: Serve) -> None:
    server = serve(Script(message_bytes_max=64 << 10, break_after=[1]))
    with writer(server.connect()) as out:
        out.add(["big", "bigger"], rows(2))
    assert keys_stored(server) == ["big", "bigger"]
    assert max(len(message) for stream in server.streams for message in stream) <= 64 << 10
    scaled = np.frombuffer(b"".join(batch.gradients for batch in server.batches), "<f2").reshape(2, DIM)
    scales = np.frombuffer(b"".join(batch.scales for batch in server.batches), "<f4")
    np.testing.assert_allclose(scaled * scales[:, None], rows(2), rtol=1e-3, atol=1e-3)


def test_a_refused_batch_is_raised_and_ends_the_writer(serve: Serve) -> None:
    refusal = Conflict("key 4 stands with another gradient", key=4)
    server = serve(Script(refuse={2: refusal}))
    out = writer(server.connect())
    out.add(list(range(9)), rows(9))
    for _ in range(2):
        with pytest.raises(Conflict, match="key 4 stands with another gradient") as caught:
            out.flush()
        assert caught.value.facts == {"key": "4"}
    with pytest.raises(Conflict):
        out.add([100], rows(1))
    with pytest.raises(Conflict):
        out.close()
    assert out.acknowledged == 3
    assert keys_stored(server) == [0, 1, 2]
    assert len(server.streams) == 1


def test_a_refusal_is_raised_at_the_end_of_the_block(serve: Serve) -> None:
    server = serve(Script(refuse={1: Conflict("no")}))
    with pytest.raises(Conflict, match="no"), writer(server.connect()) as out:
        out.add([1], rows(1))


def test_a_refusal_to_open_is_raised_by_the_first_add(serve: Serve) -> None:
    server = serve(Script(refuse_to_open=NotFound("no collection 'c'; there are none yet")))
    out = writer(server.connect())
    with pytest.raises(NotFound, match="no collection 'c'"):
        out.add([1], rows(1))


def test_an_exception_inside_the_block_flushes_nothing_further(serve: Serve) -> None:
    server = serve(Script())
    with pytest.raises(RuntimeError, match="mine"), writer(server.connect()) as out:  # noqa: PT012
        out.add([0, 1], rows(2))
        out.flush()
        out.add([2], rows(1))
        raise RuntimeError("mine")
    assert out.acknowledged == 2
    assert keys_stored(server) == [0, 1]
    with pytest.raises(Unavailable, match="aborted"):
        out.add([3], rows(1))


def test_a_closed_writer_says_so(serve: Serve) -> None:
    with writer(serve(Script()).connect()) as out:
        out.add([0], rows(1))
    out.close()
    with pytest.raises(InvalidInput, match="closed; open another"):
        out.add([1], rows(1))


def test_add_waits_while_too_much_is_in_flight(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "IN_FLIGHT_BYTES", 3 << 20)
    hold = threading.Event()
    server = serve(Script(hold=hold))
    out = writer(server.connect())
    added: list[int] = []

    def add_all() -> None:
        for row in range(30):
            out.add([row], rows(1, seed=row))
            added.append(row)

    adding = threading.Thread(target=add_all)
    adding.start()
    server.wait_for_messages(2)
    sender = out._stream._sender
    assert sender is not None
    with sender._changed:
        assert sender._changed.wait_for(lambda: not sender._has_room(1 << 20), WAIT_S)
    assert adding.is_alive()
    assert len(added) <= 16  # three MiB are four batches of three rows; one batch more is in the buffer
    assert out.acknowledged == 0
    hold.set()
    adding.join(WAIT_S)
    out.close()
    assert keys_stored(server) == list(range(30))


def test_adds_from_many_threads_all_arrive(serve: Serve) -> None:
    server = serve(Script(break_after=[3, 2]))
    space = Space(dim=4096)
    with writer(server.connect(), space) as out:

        def add_some(thread: int) -> None:
            for row in range(50):
                out.add([f"{thread}-{row}"], rows(1, 4096, seed=row))

        threads = [threading.Thread(target=add_some, args=(thread,)) for thread in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
    assert out.acknowledged == 300
    assert sorted(keys_stored(server)) == sorted(f"{thread}-{row}" for thread in range(6) for row in range(50))


def test_it_gives_up_after_a_while_without_progress(serve: Serve) -> None:
    server = serve(Script(break_after=[0] * 1000))
    out = writer(server.connect(), retry_s=0.0)
    out.add([1], rows(1))
    with pytest.raises(Unavailable, match=r"gave up after 0 s without progress.*the script broke the stream"):
        out.flush()


@pytest.mark.parametrize(("final", "said"), [("true", "collection 'c' takes no"), ("false", "gave up after 0 s")])
def test_a_final_refusal_is_not_tried_again(serve: Serve, final: str, said: str) -> None:
    refusal = Unavailable("collection 'c' takes no rows: a sync failed", final=final)
    server = serve(Script(refuse={2: refusal}))
    out = writer(server.connect(), retry_s=60.0 if final == "true" else 0.0)
    with pytest.raises(Unavailable, match=f"^{said}.*a sync failed"), out:
        out.add(list(range(9)), rows(9))
    assert len(server.streams) == 1
    assert out.acknowledged == 3


def test_a_silent_stream_is_broken_and_tried_again(serve: Serve) -> None:
    server = serve(Script(silent_streams=1))
    with writer(server.connect(timeout_s=0.3)) as out:
        out.add([1], rows(1))
    assert out.acknowledged == 1
    assert len(server.streams) == 2


def test_a_server_that_lost_what_it_acknowledged_is_named(serve: Serve) -> None:
    server = serve(Script(break_after=[2], forget=True))
    with pytest.raises(Corrupt, match="up to 0, but 2 were acknowledged of"), writer(server.connect()) as out:
        out.add(list(range(12)), rows(12))


def test_the_first_gradients_say_where_they_come_from(serve: Serve) -> None:
    server = serve(Script())
    kind = GradientKind("margin", "token_mean", "none")
    given = Gradients(rows(2), SPACE, kind, "abcdef", np.array([0.25, 0.5], dtype=np.float32))
    with writer(server.connect()) as out:
        out.add([0, 1], given)
        with pytest.raises(InvalidInput, match="weights: abcdef before, 123456 now"):
            out.add([2, 3], Gradients(rows(2), SPACE, kind, "123456"))
        with pytest.raises(InvalidInput, match="a bare array now"):
            out.add([2, 3], rows(2))
        with pytest.raises(InvalidInput, match=r"another space than collection 'c': architecture: None here, X there"):
            out.add([2, 3], Gradients(rows(2), Space(dim=DIM, architecture="X")))
    (opened,) = server.opened
    assert opened.weights_digest == "abcdef"
    assert opened.space.fingerprint == SPACE.fingerprint
    assert (opened.kind.function, opened.kind.token_reduction, opened.kind.optimiser_correction) == (2, 1, 1)
    assert np.frombuffer(server.batches[0].trak_q, "<f4").tolist() == [0.25, 0.5]


def test_a_bad_row_takes_none_of_its_call_and_the_writer_goes_on(serve: Serve) -> None:
    server = serve(Script())
    bad = rows(30)
    bad[29, 7] = np.nan
    with writer(server.connect()) as out:
        with pytest.raises(InvalidInput, match="gradient of key 'k29'"):
            out.add([f"k{row}" for row in range(30)], bad)
        out.add(["fine"], rows(1))
    assert keys_stored(server) == ["fine"]


@pytest.mark.parametrize(
    ("options", "message"), [({"on_conflict": "skip"}, "one of error, ignore, replace, not 'skip'"), ({}, "checkpoint")]
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    connection = Connection("127.0.0.1:1")
    with pytest.raises(InvalidInput, match=message):
        Writer(connection, "c", SPACE, "e" if options else "", **options)


def test_pauses_grow_and_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    policy = RetryPolicy(first_pause_s=0.1, pause_s_max=5.0)
    out = sender_module.Sender(lambda requests: requests, b"", policy, lambda: None)
    pauses = [out._pause_s() for _ in range(100)]
    assert 0.05 <= pauses[0] <= 0.1
    assert 2.5 <= min(pauses[10:]) <= max(pauses) <= 5.0
