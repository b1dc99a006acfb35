"""Who may compact when; files wait for the readers that need them; which snapshots are named."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from covector.errors import Conflict, NotFound
from covector.types import Space
from covector_server.ingest.batch import WriterSpec
from covector_server.ingest.committer import Committer
from covector_server.ingest.deleting import delete_rows
from covector_server.jobs.compact import Compactor
from covector_server.jobs.compaction import Rules, unerased
from covector_server.jobs.holding_snapshots import snapshots_holding
from covector_server.jobs.operations import FAILED, SUCCEEDED, Operations
from covector_server.limits import Limits
from covector_server.metadata.records import BlockRecord
from covector_server.storage.readers import Readers
from covector_server.storage.relocations import Move, Relocations
from covector_server.storage.store import Store
from covector_server.testing.batches import batch_of

DIM = 64
WAIT_S = 20.0


class Rig:
    """A store of one collection with 40 rows, its operations, and a compactor that needs 10 dead rows to begin."""

    def __init__(self, data: Path, rules: Rules) -> None:
        self.store = Store(data)
        self.committer = Committer(self.store, Limits())
        self.operations = Operations(self.store, self.committer)
        self.compactor = Compactor(self.store, self.committer, self.operations, rules, dead_bytes_min=10 * 2 * DIM)
        self.committer.call(lambda: self.store.create_collection("c", Space(dim=DIM), False)).result()
        gradients = np.random.default_rng(0).standard_normal((40, DIM))
        self.committer.submit(WriterSpec("c", "w", "one"), batch_of(1, list(range(40)), gradients)).result()

    def delete(self, first: int, stop: int) -> None:
        work = lambda: delete_rows(self.store, self.store.collection("c"), np.arange(first, stop))  # noqa: E731
        self.committer.call(work).result()

    def close(self) -> None:
        self.operations.stop()
        self.committer.stop()
        self.store.close()


@pytest.fixture
def rules() -> Rules:
    return Rules(0.2, readers_wait_s=WAIT_S)


@pytest.fixture
def rig(tmp_path: Path, rules: Rules) -> Iterator[Rig]:
    made = Rig(tmp_path / "store", rules)
    yield made
    made.close()


def test_one_compaction_at_a_time(rig: Rig) -> None:
    rig.delete(0, 1)
    with rig.store.collection("c").reading():
        first = rig.compactor.start("c", "request-1")
        assert rig.compactor.start("c", "request-1").id == first.id
        with pytest.raises(Conflict, match="is being compacted"):
            rig.compactor.start("c", "request-2")
    record = rig.operations.wait(first.id, WAIT_S)
    assert record.state == SUCCEEDED
    assert record.result["rows_erased"] == 1
    assert record.result["checkpoints"]["one"]["action"] == "erased"
    second = rig.operations.wait(rig.compactor.start("c", "request-2").id, WAIT_S)
    assert second.result["rows_erased"] == 0
    with pytest.raises(NotFound):
        rig.compactor.start("d")


def test_a_collection_is_compacted_by_itself_past_a_share(rig: Rig) -> None:
    assert not rig.compactor.step()
    rig.delete(0, 9)  # a large share, but too few
    assert not rig.compactor.step()
    rig.delete(9, 12)
    assert rig.compactor.step()
    (record,) = rig.operations.list()
    assert rig.operations.wait(record.id, WAIT_S).result["checkpoints"]["one"]["action"] == "compacted"
    assert not rig.compactor.step()
    checkpoint = rig.store.collection("c").checkpoints["one"]
    assert (checkpoint.counters.row_count, len(checkpoint.dead)) == (28, 0)
    rig.delete(20, 31)
    assert rig.compactor.step()


def test_a_share_of_zero_turns_it_off(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "store", Rules(0.0))
    rig.delete(0, 40)
    assert not rig.compactor.step()
    record = rig.operations.wait(rig.compactor.start("c").id, WAIT_S)
    assert record.result["checkpoints"]["one"]["action"] == "erased"
    rig.close()


@pytest.mark.parametrize("rules", [Rules(0.2, readers_wait_s=0.0)])
def test_a_reader_that_does_not_leave_ends_the_compaction(rig: Rig) -> None:
    rig.delete(0, 20)
    old = rig.store.collection("c").checkpoints["one"].directory
    with rig.store.collection("c").reading() as view:
        record = rig.operations.wait(rig.compactor.start("c").id, WAIT_S)
        assert (record.state, record.error_kind) == (FAILED, "unavailable")
        assert "start the compaction again" in record.error_message
        assert old.exists()
        assert sum(len(tile.rows) for tile in view.checkpoints["one"].tiles(100)) == 20
        assert len(view.keys_of(np.arange(40))) == 40
    assert not old.exists()
    assert rig.operations.wait(rig.compactor.start("c").id, WAIT_S).state == SUCCEEDED
    assert rig.store.collection("c").erased_row_count == 20


def test_what_is_retired_waits_for_those_who_began_before() -> None:
    readers, removed = Readers(), []
    with readers.reading():
        readers.retire(lambda: removed.append("first"))
        with readers.reading():
            readers.retire(lambda: removed.append("second"))
            assert removed == []
    assert removed == ["first", "second"]
    with readers.reading():
        readers.retire(lambda: removed.append("third"))
        with ThreadPoolExecutor(1) as pool:  # a reader that begins afterwards is not waited for
            began, leave = threading.Event(), threading.Event()

            def read() -> None:
                with readers.reading():
                    began.set()
                    assert leave.wait(WAIT_S)

            late = pool.submit(read)
            assert began.wait(WAIT_S)
            assert removed == ["first", "second"]
            leave.set()
            late.result()
            assert removed == ["first", "second"]
    assert removed == ["first", "second", "third"]
    readers.retire(lambda: removed.append("fourth"))
    assert removed[-1] == "fourth"


def test_a_reader_finds_a_block_where_it_lay_when_it_began() -> None:
    first, second, third = (BlockRecord(file, 0, 10, first=5, last=9, row_count=5) for file in range(3))
    relocations = Relocations()
    moves = [Move(0, {5: first}), Move(1, {5: second})]
    for move in moves:
        relocations.add(move)
    assert [relocations.seen_from(epoch)(third) for epoch in (0, 1, 2)] == [first, second, third]
    relocations.remove(moves[0])
    assert relocations.seen_from(1)(third) == second


def test_rows_marked_erased_are_not_looked_at_again() -> None:
    deleted = np.array([1, 5, 70_000, 70_001, 200_000])
    assert unerased(deleted, {}).tolist() == deleted.tolist()
    assert unerased(deleted, {0: 2, 1: 1}).tolist() == [70_000, 70_001, 200_000]
    assert unerased(deleted, {0: 2, 1: 2, 3: 1}).tolist() == []


def test_snapshots_that_may_hold_a_row_are_named(tmp_path: Path) -> None:
    assert snapshots_holding(tmp_path, 3) == []
    for name, ids in (("other", [1, 2]), ("holding", [2, 3]), (".unfinished", [3])):
        directory = tmp_path / "snapshots" / name
        directory.mkdir(parents=True)
        (directory / "snapshot.json").write_text(json.dumps({"collections": [{"id": id_} for id_ in ids]}))
    (tmp_path / "snapshots" / "damaged").mkdir()
    assert snapshots_holding(tmp_path, 3) == ["damaged", "holding"]
