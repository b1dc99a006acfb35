"""Strips of a stored checkpoint against its tiles, which are read chunk by chunk; and the threads that load them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from covector.errors import Corrupt
from covector.types import Space
from covector_server.ingest.batch import WriterSpec
from covector_server.ingest.committer import Committer
from covector_server.ingest.deleting import delete_rows
from covector_server.kernels import library, pages
from covector_server.limits import Limits
from covector_server.query.workers import Workers
from covector_server.storage import mapping
from covector_server.storage.damage import Damage
from covector_server.storage.mapping import map_file, prefetch_mapped
from covector_server.storage.store import Sizes, Store
from covector_server.storage.view import CheckpointView, Strip, StripSource, Tile
from covector_server.testing.batches import batch_of

DIM, ROWS, CHUNK, SHARD = 5, 150, 8, 32
ORDER = np.random.default_rng(1).permutation(ROWS)  # of arrival at the second checkpoint, by id
DELETED = [3, 4, 5, 40, 41, 127, 149]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """150 rows at two checkpoints in another order in each, a few deleted, the last shard unfinished."""
    store = Store(
        tmp_path_factory.mktemp("strips") / "store", Sizes(chunk_bytes=2 * DIM * CHUNK, shard_bytes=2 * DIM * SHARD)
    )
    committer, rng = Committer(store, Limits()), np.random.default_rng(0)
    store.create_collection("c", Space(dim=DIM), False)
    for name, order in (("one", np.arange(ROWS)), ("two", ORDER)):
        batch = batch_of(1, [f"key-{row:03}" for row in order], rng.standard_normal((ROWS, DIM)))
        committer.submit(WriterSpec("c", f"writer-{name}", name), batch).result()
    gone = np.array(DELETED, dtype=np.int64)
    committer.call(lambda: delete_rows(store, store.collection("c"), gone, "request")).result()
    yield store
    committer.stop()
    store.close()


@pytest.fixture(params=["one", "two"])
def checkpoint(store: Store, request: pytest.FixtureRequest) -> Iterator[CheckpointView]:
    with store.collection("c").reading() as view:
        yield view.checkpoints[request.param]


def joined(parts: list[Strip] | list[Tile]) -> list[np.ndarray]:
    """Rows, scales, row ids, trak_q."""
    rows = [part.rows if isinstance(part, Tile) else part.rows.copied() for part in parts]
    columns = [[getattr(part, name) for part in parts] for name in ("scales", "row_ids", "trak_q")]
    return [np.concatenate(column) for column in (rows, *columns)]


def same(strips: list[Strip], tiles: list[Tile]) -> None:
    for found, wanted in zip(joined(strips), joined(tiles), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("rows_max", [1, 5, 8, 20, 32, 1000])
@pytest.mark.parametrize("row_id_range", [None, (0, 150), (30, 90), (149, 150), (3, 6)])
def test_strips_are_the_tiles(checkpoint: CheckpointView, rows_max: int, row_id_range: tuple[int, int] | None) -> None:
    sources = list(checkpoint.strips(rows_max, row_id_range))
    strips = [source.load() for source in sources]
    assert max((len(strip.row_ids) for strip in strips), default=0) <= rows_max
    tiles = list(checkpoint.tiles(rows_max, row_id_range))
    if tiles:
        same(strips, tiles)
    else:
        assert all(not len(strip.row_ids) for strip in strips)
    if row_id_range is not None:
        assert all(len(strip.row_ids) for strip in strips)  # what cannot have rows is not read


@pytest.mark.parametrize("rows_max", [1, 7, 1000])
@pytest.mark.parametrize("wanted", [[], [7], [0, 1, 2, 3, 4, 64, 90, 148, 149], list(range(150))])
def test_strips_of_some_rows(checkpoint: CheckpointView, rows_max: int, wanted: list[int]) -> None:
    row_ids = np.array(wanted, dtype=np.int64)
    strips = [source.load() for source in checkpoint.strips_of(row_ids, rows_max)]
    expected = sorted(set(wanted) - set(DELETED))
    assert sorted(row_id for strip in strips for row_id in strip.row_ids.tolist()) == expected
    for strip in strips:
        assert len(strip.row_ids) <= rows_max
        same([strip], [checkpoint.gather(strip.row_ids)])


def test_a_damaged_chunk_is_left_out_and_counted(store: Store) -> None:
    path = next(store.data.glob("collections/1/1/0/gradients/c/1/0"))
    stride = 2 * DIM * CHUNK + 4
    _flip(path, stride + 3)  # rows 40 to 47, of which 40 and 41 are deleted
    collection = store.collection("c")
    array = collection.checkpoints["one"].arrays["gradients"]
    array.forget(1)  # type: ignore[attr-defined]
    try:
        with collection.reading() as view:
            one = view.checkpoints["one"]
            for rows_max in (3, 8, 1000):
                damages: list[Damage] = []
                strips = [source.load(damages.append) for source in one.strips(rows_max)]
                row_ids = np.concatenate([strip.row_ids for strip in strips])
                assert set(range(ROWS)) - set(row_ids.tolist()) == {*DELETED, *range(40, 48)}
                assert sum(damage.row_count for damage in damages) == 6
                assert len({damage.message for damage in damages}) == 1
            damages = []
            some = np.array([35, 45, 46, 60], dtype=np.int64)
            strips = [source.load(damages.append) for source in one.strips_of(some, 10)]
            assert np.concatenate([strip.row_ids for strip in strips]).tolist() == [35, 60]
            assert [damage.row_count for damage in damages] == [2]
            with pytest.raises(Corrupt, match="does not match its checksum"):
                [source.load() for source in one.strips(1000)]
            beside = np.array([35, 60], dtype=np.int64)
            assert len(next(source.load() for source in one.strips_of(beside, 10)).row_ids) == 2  # not touched
    finally:
        _flip(path, stride + 3)
        array.forget(1)  # type: ignore[attr-defined]


def _flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


@dataclass
class Counted:
    """A source that notes what is asked of it."""

    number: int
    loads: list[int]
    asked: list[int]
    absent: bool = False
    hold: threading.Event = field(default_factory=threading.Event)

    def prefetch(self) -> bool:
        self.asked.append(self.number)
        return self.absent

    def load(self, on_damage: object = None) -> Strip:
        raise AssertionError("the work of these tests loads nothing")


def sources_of(count: int, *, absent: bool = False) -> tuple[list[Counted], list[int], list[int]]:
    loads: list[int] = []
    asked: list[int] = []
    return [Counted(number, loads, asked, absent) for number in range(count)], loads, asked


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(3)
    yield made
    made.close()


def note(source: StripSource) -> None:
    assert isinstance(source, Counted)
    source.loads.append(source.number)


@pytest.mark.parametrize("count", [0, 1, 4, 50])
def test_every_strip_is_worked_on_once(workers: Workers, count: int) -> None:
    sources, loads, _ = sources_of(count)
    workers.each(note, sources)
    assert sorted(loads) == list(range(count))


def test_every_strip_is_asked_for_while_they_are_not_in_memory(workers: Workers) -> None:
    sources, _, asked = sources_of(50, absent=True)
    workers.each(note, sources)
    workers._reading.submit(int).result()  # it works in order: all that came before is done
    assert asked == list(range(50))


def test_few_strips_are_asked_for_once_they_are_found_in_memory(workers: Workers) -> None:
    sources, _, asked = sources_of(200)

    def work(source: StripSource) -> None:
        note(source)
        workers._reading.submit(int).result()

    workers.each(work, sources)
    workers._reading.submit(int).result()
    assert set(range(0, 200, 8)) <= set(asked)
    assert len(asked) < 60


def test_after_an_error_no_strip_is_begun(workers: Workers) -> None:
    sources, loads, _ = sources_of(1000)

    def work(source: StripSource) -> None:
        note(source)
        if loads[-1] >= 20:
            raise Corrupt("bad")

    with pytest.raises(Corrupt):
        workers.each(work, sources)
    assert max(loads) < 30
    loads.clear()
    workers.each(note, sources[:5])  # the threads live on
    assert sorted(loads) == list(range(5))


def test_an_error_of_the_list_of_strips_is_raised(workers: Workers) -> None:
    def sources() -> Iterator[StripSource]:
        yield from sources_of(10)[0]
        raise Corrupt("no list")

    with pytest.raises(Corrupt, match="no list"):
        workers.each(note, sources())


def test_scans_take_turns(workers: Workers) -> None:
    """The first has strips for long; the second, which comes later, is not kept waiting for their end."""
    begun, finish = threading.Event(), threading.Event()

    def slow(source: StripSource) -> None:
        note(source)
        begun.set()
        finish.wait(0.005)

    sources, loads, _ = sources_of(2000)
    with ThreadPoolExecutor(1) as asking:
        first = asking.submit(workers.each, slow, sources)
        assert begun.wait(10)
        workers.each(note, sources_of(20)[0])
        assert len(loads) < 1000
        finish.set()
        first.result(30)
    assert sorted(loads) == list(range(2000))


def test_closing_waits_for_what_is_under_way() -> None:
    workers, begun, finish = Workers(2), threading.Event(), threading.Event()

    def work(source: StripSource) -> None:
        begun.set()
        assert finish.wait(10)
        note(source)

    sources, loads, _ = sources_of(30)
    with ThreadPoolExecutor(2) as asking:
        scan = asking.submit(workers.each, work, sources)
        assert begun.wait(10)
        closing = asking.submit(workers.close)
        finish.set()
        closing.result(10)
        with suppress(RuntimeError):  # what is ahead of it cannot be asked for any more
            scan.result(10)
    assert loads
    with pytest.raises(RuntimeError):
        workers.each(note, sources)


def test_pages_that_are_not_in_memory_are_read(tmp_path: Path) -> None:
    """The system may keep pages that it is asked to drop, and then there is nothing to read."""
    path, size_bytes = tmp_path / "file", 4 << 20
    path.write_bytes(os.urandom(size_bytes))
    mapped = map_file(path, size_bytes)
    address = np.frombuffer(mapped, dtype=np.uint8).ctypes.data
    assert int(np.frombuffer(mapped, dtype=np.uint8).sum()) > 0
    assert not prefetch_mapped(mapped, 0, size_bytes)
    del mapped
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    mapped = map_file(path, size_bytes)
    address = np.frombuffer(mapped, dtype=np.uint8).ctypes.data
    was_resident = pages.is_resident(address, size_bytes, mapping.RESIDENT_STEP_BYTES)
    assert prefetch_mapped(mapped, 5, size_bytes - 5) is not was_resident
    assert bytes(mapped) == path.read_bytes()
    assert pages.is_resident(address, size_bytes, 4096)


def test_without_the_library_pages_count_as_present(monkeypatch: pytest.MonkeyPatch) -> None:
    assert library.LIBRARY is not None
    monkeypatch.setattr(pages, "LIBRARY", None)
    assert pages.is_resident(0, 1, 1)
