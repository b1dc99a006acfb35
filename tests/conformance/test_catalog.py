"""Every catalog keeps the same contract."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from covector.errors import Corrupt, Unavailable
from covector_server.metadata.catalog import Catalog, number, numbers, open_value, seal_value
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
