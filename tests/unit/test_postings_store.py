"""Postings in a real store: some rows covered, some not, some known better since; files lost, damaged and replaced."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covector.types import Space
from covector_server.ingest.batch import WriterSpec
from covector_server.ingest.committer import Committer
from covector_server.jobs.postings import PostingsIndexer
from covector_server.limits import Limits
from covector_server.metadata.catalog import number
from covector_server.metadata.lmdb_catalog import LmdbCatalog
from covector_server.query.cancellation import never
from covector_server.query.engine import count_rows
from covector_server.query.filter import FilterParser, find_rows, matching_rows
from covector_server.storage.postings_files import PostingsCache, PostingsFile, unregister
from covector_server.storage.store import Store
from covector_server.testing.batches import batch_of
from covector_server.testing.faulty_disk import Fault, FaultyDisk

Metadata = dict[str, Any] | None
FILTERS: tuple[dict[str, Any], ...] = (
    {"source": "s1"},
    {"source": {"ne": "s1"}, "day": {"gte": 100, "lt": 400}},
    {"or": [{"url": "https://example.org/7"}, {"day": {"in": [3, 5, 500, 611]}}]},
    {"not": {"good": {"exists": True}}},
    {"url": {"gt": "https://example.org/5"}},
    {},
)


class SteppingDisk(FaultyDisk):
    """A disk that calls back between the steps of a protocol."""

    on_step: Callable[[str], None] = staticmethod(lambda name: None)

    def step(self, name: str) -> None:
        self.on_step(name)


class Rig:
    """A store with rows of known metadata, and what indexes it."""

    def __init__(self, data: Path, limits: Limits | None = None) -> None:
        self.data = data
        self.disk = SteppingDisk()
        self.limits = limits or Limits()
        self.rows: list[Metadata] = []
        self.sequence = 0
        self.open()
        self.committer.call(lambda: self.store.create_collection("c", Space(dim=2), False)).result()

    def open(self) -> None:
        self.store = Store(self.data, disk=self.disk)
        self.committer = Committer(self.store, self.limits)
        self.indexer = PostingsIndexer(self.store, self.committer, self.limits)

    def close(self) -> None:
        self.committer.stop()
        self.store.close()

    def restart(self) -> None:
        self.close()
        self.open()

    def add(self, count: int, metadata_of: Callable[[int], Metadata], batch_rows: int = 100) -> None:
        for start in range(0, count, batch_rows):
            first = len(self.rows)
            self.rows += [metadata_of(first + row) for row in range(min(batch_rows, count - start))]
            self._send(list(range(first, len(self.rows))))

    def supplement(self, keys: list[int], metadata_of: Callable[[int], Metadata]) -> None:
        for key in keys:
            self.rows[key] = metadata_of(key)
        self._send(keys)

    def _send(self, keys: list[int]) -> None:
        self.sequence += 1
        texts = [f"text {key}" for key in keys]
        batch = batch_of(self.sequence, keys, None, texts, [self.rows[key] for key in keys])
        self.committer.submit(WriterSpec("c", "w", None), batch).result()

    def index(self) -> int:
        """Steps until a still collection has nothing left to do; how many did something."""
        return sum(1 for _ in range(20) if self.indexer.step())

    @property
    def files(self) -> tuple[PostingsFile, ...]:
        return self.store.collection("c").postings.files

    def names(self) -> list[str]:
        return sorted(path.name for path in (self.data / "collections/1/postings").iterdir())

    def check(self) -> None:
        """Every filter finds what the row-by-row reading of the rows sent finds."""
        with self.store.collection("c").reading() as view:
            assert view.row_id_count == len(self.rows)
            for where in FILTERS:
                condition = FilterParser(view.fields, self.limits).parse(where)
                expected = [condition(metadata or {}) for metadata in self.rows]
                np.testing.assert_array_equal(matching_rows(view, where, self.limits, never), expected)
                assert count_rows(view, where, limits=self.limits) == sum(expected)


def metadata_of(row: int) -> Metadata:
    if row % 11 == 10:
        return None
    found: dict[str, Any] = {"source": f"s{row % 3}", "day": row, "url": f"https://example.org/{row}"}
    return found | ({"good": row % 2 == 0} if row % 5 == 0 else {"good": None})


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "store")
    yield made
    made.close()


def test_covered_and_uncovered_rows(rig: Rig) -> None:
    rig.add(50, lambda row: None)
    assert rig.index() == 0  # no fields, nothing to index
    rig.add(550, metadata_of)
    rig.check()
    assert rig.index() == 1
    assert [(file.first, file.row_count) for file in rig.files] == [(0, 600)]
    rig.check()
    rig.add(100, metadata_of)
    assert rig.index() == 0  # too few to build the range again
    rig.check()
    rig.add(200, metadata_of)
    assert rig.index() == 1
    assert [(file.first, file.row_count, file.number) for file in rig.files] == [(0, 900, 2)]
    assert rig.names() == ["00000002.postings"]
    rig.restart()
    assert [(file.first, file.row_count, file.number) for file in rig.files] == [(0, 900, 2)]
    rig.check()


def test_the_covered_rows_are_not_looked_at(rig: Rig) -> None:
    rig.add(600, metadata_of)
    rig.index()
    rig.add(10, metadata_of)
    with rig.store.collection("c").reading() as view:
        asked: list[Any] = []

        class Watched:
            def __getattr__(self, name: str) -> Any:
                return getattr(view, name)

            def metadata(self, row_id_range: tuple[int, int], on_damage: object) -> Any:
                asked.append(row_id_range)
                return view.metadata(row_id_range)

        found = find_rows(Watched(), {"day": {"gte": 595}}, rig.limits, never)  # type: ignore[arg-type]
        assert found.row_ids().tolist() == [row for row in range(595, 610) if row % 11 != 10]
        assert asked == [(600, 610)]


def test_metadata_that_came_later(rig: Rig) -> None:
    rig.add(600, lambda row: metadata_of(row) if row % 2 else None)
    rig.index()
    rig.supplement([0, 4, 598], metadata_of)
    rig.check()
    assert rig.index() == 0  # three rows are looked at instead
    rig.restart()
    rig.check()
    rig.supplement([row for row in range(100, 300) if row % 2 == 0], metadata_of)
    rig.check()
    assert rig.index() == 1
    assert [file.supplement_count for file in rig.files] == [2]
    rig.check()


def test_a_view_does_not_see_later_metadata(rig: Rig) -> None:
    rig.add(300, lambda row: metadata_of(row) if row else None)
    rig.index()
    with rig.store.collection("c").reading() as view:
        before = matching_rows(view, {"day": {"gte": 0}}, rig.limits, never)
        rig.supplement([0], lambda row: {"day": 1})
        np.testing.assert_array_equal(matching_rows(view, {"day": {"gte": 0}}, rig.limits, never), before)
        assert not before[0]


def test_large_metadata_takes_several_files(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "store", Limits(postings_build_bytes=5_000))
    rig.add(600, metadata_of)
    assert rig.index() > 1
    assert [file.first for file in rig.files] == np.cumsum([0, *(file.row_count for file in rig.files[:-1])]).tolist()
    assert all(file.record.is_complete for file in rig.files[:-1])
    rig.check()
    rig.close()


@pytest.mark.parametrize("damage", ["missing", "flipped", "cut", "another"])
def test_a_lost_file_is_told_of_and_built_again(rig: Rig, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    rig.add(400, metadata_of)
    rig.index()
    rig.restart()
    path = rig.files[0].path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    other = rig.files[0].path.read_bytes()[:-1] + b"?"
    path.unlink()
    if damage != "missing":
        path.write_bytes({"flipped": bytes(data), "cut": bytes(data[:100]), "another": other}[damage])
    with caplog.at_level(logging.WARNING):
        rig.check()
    assert [record.getMessage().count("rows 0 to 399 are filtered one by one") for record in caplog.records] == [1]
    assert rig.index() == 1
    assert rig.names() == ["00000002.postings"]
    rig.check()
    assert rig.files[0].open() is not None


def test_a_damaged_entry_of_the_catalog_closes_nothing(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.add(400, metadata_of)
    rig.index()
    catalog = rig.store.catalog
    assert isinstance(catalog, LmdbCatalog)
    with catalog._environment.begin(write=True) as transaction:
        transaction.put(number(1, 1), b"damaged", db=catalog._tables["postings"])
    rig.restart()
    assert "until they are indexed again" in caplog.text
    rig.check()
    assert rig.index() == 1
    rig.restart()
    assert [(file.number, file.row_count) for file in rig.files] == [(1, 400)]
    rig.check()


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_a_disk_that_fails(rig: Rig, operation: str, caplog: pytest.LogCaptureFixture) -> None:
    rig.add(400, metadata_of)
    rig.disk.fault = Fault(operation)
    assert not rig.indexer.step()
    assert "could not be indexed" in caplog.text
    rig.check()
    assert rig.files == ()
    assert rig.index() == 1
    rig.check()
    rig.add(10, metadata_of)  # the collection is not read-only: nothing that was acknowledged hung on the file


@pytest.mark.parametrize("step", ["postings.written", "postings.synced", "postings.renamed", "postings.listed"])
def test_an_end_between_two_steps_leaves_no_trace(rig: Rig, step: str) -> None:
    rig.add(400, metadata_of)

    def fail(name: str) -> None:
        if name == step:
            raise OSError("the process ends here")

    rig.disk.on_step = fail
    assert not rig.indexer.step()
    rig.disk.on_step = lambda name: None
    rig.restart()
    rig.check()
    assert rig.index() == (0 if step == "postings.listed" else 1)
    assert rig.names() == ["00000001.postings"]
    rig.check()


def test_what_is_forgotten_while_it_is_built_is_not_listed(rig: Rig) -> None:
    """As an erasure does: it takes the files of erased rows away, and none built before it may come after it."""
    rig.add(400, metadata_of)
    collection = rig.store.collection("c")

    def forget(name: str) -> None:
        if name == "postings.written":
            collection.postings.forget(())

    rig.disk.on_step = forget
    assert rig.indexer.step()
    assert rig.files == ()
    assert rig.names() == []
    rig.disk.on_step = lambda name: None
    assert rig.index() == 1
    with rig.store.catalog.write() as writer:
        unregister(writer, 1, [1])
    collection.postings.forget([1])
    collection.postings.remove([1])
    rig.check()
    rig.restart()
    assert rig.files == ()
    assert rig.index() == 1
    rig.check()


def test_a_collection_deleted_meanwhile(rig: Rig) -> None:
    rig.add(400, metadata_of)

    def delete(name: str) -> None:
        if name == "postings.renamed":
            rig.committer.call(lambda: rig.store.delete_collection("c")).result()

    rig.disk.on_step = delete
    rig.indexer.step()
    with rig.store.catalog.read() as reader:
        assert list(reader.scan("postings")) == []


def test_a_view_outlives_the_files_it_was_taken_with(rig: Rig) -> None:
    rig.add(400, metadata_of)
    rig.index()
    rig.restart()  # nothing is opened yet
    with rig.store.collection("c").reading() as view:
        rig.add(300, metadata_of)
        rig.index()
        assert rig.names() == ["00000002.postings"]
        found = matching_rows(view, {"source": "s1"}, rig.limits, never)
        assert len(found) == 400
        np.testing.assert_array_equal(found, [bool(row and row["source"] == "s1") for row in rig.rows[:400]])


def test_queries_while_rows_come_and_are_indexed(rig: Rig) -> None:
    """Files come and go under the views; no answer may show it."""
    rig.add(300, metadata_of)
    done = threading.Event()

    def index() -> None:
        while not done.is_set():
            rig.indexer.step()

    indexing = threading.Thread(target=index)
    indexing.start()
    try:
        for _ in range(12):
            rig.add(270, lambda row: metadata_of(row) if row % 2 else None)
            rig.check()
            rig.supplement([row for row in range(300, len(rig.rows), 7) if rig.rows[row] is None], metadata_of)
            rig.check()
    finally:
        done.set()
        indexing.join()
    rig.index()
    rig.check()
    assert rig.names() == [file.path.name for file in rig.files]
    assert rig.files[0].number > 1


def test_the_cache_keeps_to_its_bound(rig: Rig) -> None:
    rig.add(400, metadata_of)
    rig.index()
    postings = rig.files[0].open()
    assert postings is not None
    cache = PostingsCache(bytes_max=postings.size_bytes * 2)
    for name in "abc":
        cache.put(Path(name), postings)
    assert [cache.get(Path(name)) is None for name in "abc"] == [True, False, False]
    cache.drop(Path("b"))
    cache.put(Path("d"), postings)
    assert [cache.get(Path(name)) is None for name in "abcd"] == [True, True, False, False]
