"""Every array of rows keeps the same contract; the one on files is read back by two other Zarr readers as well."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tensorstore
import zarr

from covector.errors import Corrupt
from covector_server.storage.array import ZarrArray
from covector_server.storage.contract import ArrayState, Piece, RowArray
from covector_server.storage.disk import Disk
from covector_server.storage.layout import ArrayLayout
from covector_server.storage.syncs import Syncs
from covector_server.testing.memory_array import MemoryArray

GRADIENTS = ArrayLayout("gradients", "<f2", (5,), chunk_rows=4, shard_rows=16)
COLUMN = ArrayLayout("row_ids", "<u8", (), chunk_rows=16, shard_rows=16)
MAKERS: dict[str, Callable[[Path, ArrayLayout], RowArray]] = {
    "zarr": lambda path, layout: ZarrArray(path / layout.name, layout, Disk()),
    "memory": lambda path, layout: MemoryArray(layout),
}


@pytest.fixture(params=[(maker, layout) for maker in MAKERS for layout in (GRADIENTS, COLUMN)], ids=str)
def array(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RowArray]:
    maker, layout = request.param
    made = MAKERS[maker](tmp_path, layout)
    made.create()
    yield made
    made.close()


def rows_of(layout: ArrayLayout, count: int, seed: int = 0) -> npt.NDArray[np.generic]:
    drawn = np.random.default_rng(seed).integers(0, 1000, (count, *layout.item_shape))
    return drawn.astype(layout.dtype)


def read_all(array: RowArray, row_count: int) -> npt.NDArray[np.generic]:
    step = array.layout.chunk_rows
    pieces = [array.read(start, min(start + step, row_count), row_count) for start in range(0, row_count, step)]
    return np.concatenate(pieces)


@pytest.mark.parametrize("cuts", [(50,), (1, 49), (4, 12, 16, 18), (3, 3, 3, 3, 3, 3, 32), (16, 16, 16, 2)])
def test_rows_come_back_however_they_were_cut(array: RowArray, cuts: tuple[int, ...]) -> None:
    rows, state, start = rows_of(array.layout, 50), ArrayState(), 0
    for count in cuts:
        state = array.write(state, [Piece(rows[start : start + count])], Syncs())
        start += count
    assert state.row_count == 50
    assert state.checksum == array.checksum_of_tail(50)
    np.testing.assert_array_equal(read_all(array, 50), rows)


def test_what_was_not_committed_is_written_over(array: RowArray) -> None:
    rows, other = rows_of(array.layout, 30), rows_of(array.layout, 30, seed=1)
    state = array.write(ArrayState(), [Piece(rows[:10])], Syncs())
    array.write(state, [Piece(other)], Syncs())  # a group that is never committed
    state = array.write(state, [Piece(rows[10:])], Syncs())
    assert state.checksum == array.checksum_of_tail(30)
    np.testing.assert_array_equal(read_all(array, 30), rows)


def test_published_rows_are_told_apart(array: RowArray) -> None:
    state = array.write(ArrayState(), [Piece(rows_of(array.layout, 20))], Syncs())
    assert array.published_row_count() == 0
    array.seal(0)
    array.set_published(16)
    assert array.published_row_count() == 16
    array.complete_tail(state)
    array.set_published(state.row_count)
    assert array.published_row_count() == 20


@pytest.fixture(params=[GRADIENTS, COLUMN], ids=lambda layout: layout.name)
def on_files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ZarrArray]:
    made = ZarrArray(tmp_path / "array", request.param, Disk())
    made.create()
    yield made
    made.close()


def read_by_others(array: ZarrArray) -> Iterator[npt.NDArray[np.generic]]:
    yield np.asarray(zarr.open_array(array.directory, mode="r")[...])
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(array.directory)}}
    yield tensorstore.open(spec).result().read().result()


@pytest.mark.parametrize("count", [1, 4, 6, 16, 17, 32, 50])
def test_other_zarr_readers_read_what_is_published(on_files: ZarrArray, count: int) -> None:
    rows = rows_of(on_files.layout, count)
    state = on_files.write(ArrayState(), [Piece(rows)], Syncs())
    for shard in range(count // 16):
        on_files.seal(shard)
    on_files.complete_tail(state)
    on_files.set_published(state.row_count)
    for found in read_by_others(on_files):
        np.testing.assert_array_equal(found, rows)


def test_a_published_tail_goes_on(on_files: ZarrArray) -> None:
    rows = rows_of(on_files.layout, 40)
    state = on_files.write(ArrayState(), [Piece(rows[:22])], Syncs())
    on_files.seal(0)
    on_files.complete_tail(state)
    on_files.set_published(state.row_count)
    on_files.set_published(16)
    state = on_files.write(state, [Piece(rows[22:])], Syncs())
    on_files.seal(1)
    on_files.complete_tail(state)
    on_files.set_published(state.row_count)
    for found in read_by_others(on_files):
        np.testing.assert_array_equal(found, rows)


def test_zarr_reads_the_shard_that_is_being_filled_as_missing(on_files: ZarrArray) -> None:
    on_files.write(ArrayState(), [Piece(rows_of(on_files.layout, 6))], Syncs())
    on_files.set_published(16)
    for found in read_by_others(on_files):
        assert not found.any()


def test_a_flip_in_a_complete_chunk_is_found_on_first_touch(on_files: ZarrArray) -> None:
    layout = on_files.layout
    on_files.write(ArrayState(), [Piece(rows_of(layout, 16))], Syncs())
    path = on_files.directory / layout.shard_file(0)
    for offset in (3, layout.chunk_bytes - 1, layout.chunk_bytes):
        data = bytearray(path.read_bytes())
        data[offset] ^= 16
        path.write_bytes(data)
        reopened = ZarrArray(on_files.directory, layout, Disk())
        with pytest.raises(Corrupt, match="rows 0 to"):
            reopened.read(0, 2, 16)
        reopened.close()
        data[offset] ^= 16
        path.write_bytes(data)


def test_the_metadata_is_what_zarr_python_writes(on_files: ZarrArray) -> None:
    opened = zarr.open_array(on_files.directory, mode="r")
    assert opened.shards == (on_files.layout.shard_rows, *on_files.layout.item_shape)
    assert opened.chunks == (on_files.layout.chunk_rows, *on_files.layout.item_shape)
