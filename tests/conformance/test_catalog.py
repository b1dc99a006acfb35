"""Every catalog keeps the same contract."""

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from covector.errors import Corrupt, Unavailable
from covector_server.metadata.catalog import TABLES, Catalog, number, numbers, open_value, seal_value
from covector_server.metadata.content import CONTENT_KEY, content_of, decode_content
from covector_server.metadata.lmdb_catalog import LmdbCatalog
from covector_server.metadata.memory_catalog import MemoryCatalog

MAKERS: dict[str, Callable[[Path], Catalog]] = {
    "lmdb": lambda path: LmdbCatalog(path / "catalog.lmdb"),
    "memory": lambda path: MemoryCatalog(),
}


@pytest.fixture(params=MAKERS)
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    opened = MAKERS[request.param](tmp_path)
    yield opened
    opened.close()


def test_a_commit_is_seen_whole(catalog: Catalog) -> None:
    with catalog.write() as writer:
        writer.put("names", b"a", b"1")
        writer.put("collections", number(1), b"x")
    with catalog.read() as reader:
        assert reader.get("names", b"a") == b"1"
        assert reader.get("collections", number(1)) == b"x"
        assert reader.get("names", b"b") is None


def test_an_exception_leaves_no_trace(catalog: Catalog) -> None:
    with catalog.write() as writer:
        writer.put("names", b"a", b"1")
    with contextlib.suppress(KeyError), catalog.write() as writer:
        writer.put("names", b"a", b"2")
        writer.put("names", b"b", b"2")
        raise KeyError
    with catalog.read() as reader:
        assert list(reader.scan("names")) == [(b"a", b"1")]


def test_a_reader_keeps_its_snapshot(catalog: Catalog) -> None:
    with catalog.write() as writer:
        writer.put("names", b"a", b"1")
    with catalog.read() as reader:
        with catalog.write() as writer:
            writer.put("names", b"a", b"2")
        assert reader.get("names", b"a") == b"1"
    with catalog.read() as reader:
        assert reader.get("names", b"a") == b"2"


def test_a_writer_sees_what_it_wrote(catalog: Catalog) -> None:
    with catalog.write() as writer:
        writer.put("names", b"a", b"1")
        assert writer.get("names", b"a") == b"1"
        writer.delete("names", b"a")
        writer.delete("names", b"never there")
        assert writer.get("names", b"a") is None


def test_scan_goes_in_order_of_keys_below_a_prefix(catalog: Catalog) -> None:
    keys = [number(2, 300), number(2, 5), number(1, 9), number(3, 0), number(2, 1 << 40)]
    with catalog.write() as writer:
        for key in keys:
            writer.put("row_blocks", key, key)
    with catalog.read() as reader:
        assert [numbers(key)[1] for key, _ in reader.scan("row_blocks", number(2))] == [5, 300, 1 << 40]
        assert len(list(reader.scan("row_blocks"))) == len(keys)
        assert not list(reader.scan("row_blocks", number(4)))


def test_a_copy_is_one_committed_state_and_stands_alone(catalog: Catalog, tmp_path: Path) -> None:
    with catalog.write() as writer:
        writer.put("names", b"a", b"1")
        writer.put("collections", number(1), b"x" * 5000)
    with catalog.write() as writer:
        writer.put("names", b"never committed", b"1")
        writer.delete("names", b"a")
        if isinstance(catalog, LmdbCatalog):  # a commit under way holds nobody up
            catalog.copy_to(tmp_path / "while writing.copy")
    with catalog.write() as writer:
        writer.put("names", b"a", b"1")
        writer.delete("names", b"never committed")
    catalog.copy_to(tmp_path / "later.copy")
    with catalog.write() as writer:
        writer.put("names", b"a", b"2")
    for path in tmp_path.glob("*.copy"):
        copy = LmdbCatalog(path)
        with copy.read() as reader:
            assert list(reader.scan("names")) == [(b"a", b"1")]
            assert list(reader.scan("collections")) == [(number(1), b"x" * 5000)]
        with copy.write() as writer:
            writer.put("names", b"a", b"3")
        copy.close()
    with catalog.read() as reader:
        assert reader.get("names", b"a") == b"2"


def test_a_copy_that_cannot_be_made(tmp_path: Path) -> None:
    catalog = LmdbCatalog(tmp_path / "catalog.lmdb")
    with pytest.raises(Unavailable, match="could not be copied"):
        catalog.copy_to(tmp_path / "catalog.lmdb")


def test_the_content_digest_follows_every_change(catalog: Catalog) -> None:
    rng = random.Random(0)
    for _ in range(30):
        with contextlib.suppress(KeyError), catalog.write() as writer:
            for _ in range(rng.randrange(5)):
                table, key = rng.choice(TABLES[1:]), number(rng.randrange(6))
                if rng.random() < 0.3:
                    writer.delete(table, key)
                else:
                    writer.put(table, key, rng.randbytes(rng.randrange(40)))
            if rng.random() < 0.2:
                raise KeyError
        with catalog.read() as reader:
            stored = reader.get("store", CONTENT_KEY)
            assert (decode_content(stored) if stored else 0) == content_of(reader)


def test_a_digest_that_a_copy_brings_along_does_not_count(catalog: Catalog) -> None:
    with catalog.write() as writer:
        writer.put("store", CONTENT_KEY, b"\7" * 8)
        writer.put("names", b"a", b"1")
    with catalog.read() as reader:
        assert decode_content(reader.get("store", CONTENT_KEY) or b"") == content_of(reader)


def test_the_content_digest_does_not_depend_on_the_order_of_writes() -> None:
    digests = []
    for keys in ([1, 2, 3], [3, 1, 2]):
        catalog = MemoryCatalog()
        for key in keys:
            with catalog.write() as writer:
                writer.put("names", number(key), b"x" * key)
        with catalog.read() as reader:
            digests.append(reader.get("store", CONTENT_KEY))
    assert digests[0] == digests[1]


def test_a_catalog_without_a_digest_gets_it_with_the_first_write(tmp_path: Path) -> None:
    catalog = LmdbCatalog(tmp_path / "catalog.lmdb")
    with catalog._environment.begin(write=True) as transaction:
        for key in (b"a", b"b"):
            transaction.put(key, seal_value("names", key, b"1"), db=catalog._tables["names"])
    with catalog.write():
        pass
    with catalog.read() as reader:
        assert reader.get("store", CONTENT_KEY) is None
    with catalog.write() as writer:
        writer.put("names", b"c", b"1")
    with catalog.read() as reader:
        assert decode_content(reader.get("store", CONTENT_KEY) or b"") == content_of(reader) > 0
    catalog.close()


def test_a_flipped_bit_is_named() -> None:
    stored = bytearray(seal_value("names", b"key", b"value"))
    assert open_value("names", b"key", bytes(stored)) == b"value"
    for position in range(len(stored)):
        flipped = bytes(byte ^ 4 if place == position else byte for place, byte in enumerate(stored))
        with pytest.raises(Corrupt, match="names"):
            open_value("names", b"key", flipped)
    with pytest.raises(Corrupt):
        open_value("names", b"another key", bytes(stored))


def test_lmdb_keeps_what_was_committed(tmp_path: Path) -> None:
    first = LmdbCatalog(tmp_path / "catalog.lmdb")
    with first.write() as writer:
        writer.put("names", b"a", b"1")
    first.close()
    second = LmdbCatalog(tmp_path / "catalog.lmdb")
    with second.read() as reader:
        assert reader.get("names", b"a") == b"1"
    second.close()


def test_compaction_changes_no_entry(catalog: Catalog) -> None:
    for first in range(0, 4000, 500):
        with catalog.write() as writer:
            for place in range(first, first + 500):
                writer.put("row_blocks", number(1, place), b"the value of %d" % place)
    with catalog.write() as writer:
        for place in range(4000):
            if place % 97:
                writer.delete("row_blocks", number(1, place))
    with catalog.read() as reader:
        before = list(reader.scan("row_blocks"))
    assert catalog.compact() >= 0
    with catalog.read() as reader:
        assert list(reader.scan("row_blocks")) == before
    with catalog.write() as writer:
        writer.put("names", b"a", b"1")
    with catalog.read() as reader:
        assert reader.get("names", b"a") == b"1"


def test_nothing_deleted_is_left_in_a_compacted_file(tmp_path: Path) -> None:
    path = tmp_path / "catalog.lmdb"
    catalog = LmdbCatalog(path)
    with catalog.write() as writer:
        for place in range(2000):
            writer.put("names", b"kept %d" % place, b"1")
            writer.put("names", b"secret %d" % place, b"a secret value")
    with catalog.write() as writer:
        for place in range(2000):
            writer.delete("names", b"secret %d" % place)
    assert b"a secret value" in path.read_bytes()
    size_bytes = path.stat().st_size
    assert catalog.compact() == size_bytes - path.stat().st_size > 0
    assert b"secret" not in path.read_bytes()
    catalog.close()
    reopened = LmdbCatalog(path)
    with reopened.read() as reader:
        assert len(list(reader.scan("names"))) == 2000
    reopened.close()
    assert sorted(found.name for found in tmp_path.iterdir()) == ["catalog.lmdb", "catalog.lmdb-lock"]


def test_a_compaction_that_fails_changes_nothing(tmp_path: Path) -> None:
    catalog = LmdbCatalog(tmp_path / "catalog.lmdb")
    with catalog.write() as writer:
        writer.put("names", b"a", b"1")

    def fail(step: str) -> None:
        raise OSError(28, "a fault on purpose")

    with pytest.raises(Unavailable, match="could not be compacted"):
        catalog.compact(fail)
    with catalog.read() as reader:
        assert reader.get("names", b"a") == b"1"
    catalog.close()
    assert sorted(found.name for found in tmp_path.iterdir()) == ["catalog.lmdb", "catalog.lmdb-lock"]


def test_the_file_is_swapped_between_readers(tmp_path: Path) -> None:
    catalog = LmdbCatalog(tmp_path / "catalog.lmdb")
    with catalog.write() as writer:
        writer.put("names", b"a", b"1")
    copied, done, began = threading.Event(), threading.Event(), threading.Event()

    def compact() -> None:
        catalog.compact(lambda step: copied.set())
        done.set()

    def read_late() -> bytes | None:
        began.set()
        with catalog.read() as reader:
            return reader.get("names", b"a")

    with ThreadPoolExecutor(2) as pool:
        with catalog.read() as reader:
            compacting = pool.submit(compact)
            assert copied.wait(10)
            late = pool.submit(read_late)
            assert began.wait(10)
            assert not done.is_set()
            assert reader.get("names", b"a") == b"1"
            with catalog.read() as inner:  # a thread that reads already does not wait for itself
                assert inner.get("names", b"a") == b"1"
        compacting.result(10)
        assert late.result(10) == b"1"
    catalog.close()
