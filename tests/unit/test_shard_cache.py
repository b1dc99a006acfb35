"""Mapped shards: a bounded number, without descriptors, valid for whoever holds them, forgotten when told."""

import errno
import gc
import threading
from pathlib import Path

import numpy as np
import pytest

from covector.errors import Unavailable
from covector_server.kernels.rows import checksums_of
from covector_server.storage import segment
from covector_server.storage.array import ZarrArray
from covector_server.storage.contract import ArrayState, BadRows, Piece, Rows
from covector_server.storage.damage import Damage, DamageLog
from covector_server.storage.disk import Disk
from covector_server.storage.layout import CHECKSUM_BYTES, ArrayLayout
from covector_server.storage.mapping import map_file
from covector_server.storage.shard_cache import ShardCache
from covector_server.storage.syncs import Syncs

LAYOUT = ArrayLayout("gradients", "<f2", (4,), chunk_rows=8, shard_rows=16)
SHARDS = 12
ROWS = np.random.default_rng(0).standard_normal((SHARDS * 16, 4)).astype("<f2")


def array_of(path: Path, shards: ShardCache) -> ZarrArray:
    array = ZarrArray(path / "gradients", LAYOUT, Disk(), shards)
    array.create()
    array.write(ArrayState(), [Piece(ROWS)], Syncs())
    for shard in range(SHARDS):
        array.seal(shard)
    return array


def read(array: ZarrArray, shard: int, chunk: int = 0) -> Rows:
    start = shard * 16 + chunk * 8
    return array.read(start, start + 8, len(ROWS))


def path_of(array: ZarrArray, shard: int) -> Path:
    return array.directory / LAYOUT.shard_file(shard)


def mapped_files(directory: Path) -> int:
    return sum(str(directory) in line for line in Path("/proc/self/maps").read_text().splitlines())


def open_files(directory: Path) -> int:
    links = [entry.readlink() for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return sum(str(directory) in str(link) for link in links)


def damage(path: Path, chunk: int = 0) -> None:
    """Puts a file with a bad chunk in the place of another, as a rewrite would."""
    data = bytearray(path.read_bytes())
    data[chunk * LAYOUT.stride_bytes + 3] ^= 1
    other = path.with_suffix(".new")
    other.write_bytes(data)
    other.replace(path)


def test_no_more_are_mapped_than_allowed_and_none_holds_a_descriptor(tmp_path: Path) -> None:
    shards = ShardCache(3)
    array = array_of(tmp_path, shards)
    for _ in range(3):
        for shard in range(SHARDS):
            np.testing.assert_array_equal(read(array, shard), ROWS[shard * 16 : shard * 16 + 8])
            assert shards.mapped_count <= 3
    gc.collect()
    assert mapped_files(tmp_path) == 3
    assert open_files(tmp_path) == 0
    array.close()
    gc.collect()
    assert (shards.mapped_count, mapped_files(tmp_path)) == (0, 0)


def test_a_view_outlives_its_map(tmp_path: Path) -> None:
    array = array_of(tmp_path, ShardCache(1))
    held = read(array, 0)
    read(array, 1)
    array.close()
    path_of(array, 0).unlink()
    gc.collect()
    assert not held.flags.writeable
    np.testing.assert_array_equal(held, ROWS[:8])
    assert mapped_files(tmp_path) == 1
    del held
    gc.collect()
    assert mapped_files(tmp_path) == 0


def test_what_was_verified_is_not_verified_again_when_it_is_mapped_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = array_of(tmp_path, ShardCache(1))
    verified: list[int] = []

    def noting(pieces: np.ndarray) -> np.ndarray:
        verified.extend(map(len, pieces))
        return checksums_of(pieces)

    monkeypatch.setattr(segment, "checksums_of", noting)
    for shard in (0, 1, 0, 1, 0):
        read(array, shard)
    assert len(verified) == 2
    read(array, 0, chunk=1)
    assert len(verified) == 3
    assert set(verified) == {LAYOUT.stride_bytes - CHECKSUM_BYTES}
    array.close()


def test_a_file_that_took_anothers_place_is_seen_once_the_old_one_is_forgotten(tmp_path: Path) -> None:
    shards = ShardCache(8)
    array = array_of(tmp_path, shards)
    held = read(array, 0)
    damage(path_of(array, 0))
    np.testing.assert_array_equal(read(array, 0), ROWS[:8])  # still the old one
    shards.forget(path_of(array, 0))
    with pytest.raises(BadRows) as caught:
        read(array, 0)
    assert (caught.value.start, caught.value.stop, caught.value.path) == (0, 8, path_of(array, 0))
    np.testing.assert_array_equal(held, ROWS[:8])
    array.close()


def test_bad_rows_are_named_by_their_place_in_the_array(tmp_path: Path) -> None:
    array = array_of(tmp_path, ShardCache(8))
    damage(path_of(array, 5), chunk=1)
    path_of(array, 6).unlink()
    read(array, 5)
    for shard, chunk, found in ((5, 1, (88, 96)), (6, 0, (96, 112))):
        with pytest.raises(BadRows) as caught:
            read(array, shard, chunk)
        assert (caught.value.start, caught.value.stop) == found
    array.close()


def test_a_shortage_of_descriptors_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = array_of(tmp_path, ShardCache(8))

    def refuse(path: Path, size_bytes: int) -> memoryview:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(segment, "map_file", refuse)
        with pytest.raises(Unavailable, match=r"Too many open files.*try again"):
            read(array, 0)
    read(array, 0)
    array.close()


def test_threads_may_read_forget_and_let_go(tmp_path: Path) -> None:
    shards = ShardCache(2)
    array = array_of(tmp_path, shards)
    wrong: list[int] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for shard in rng.integers(0, SHARDS, 300).tolist():
            if rng.random() < 0.1:
                shards.forget(path_of(array, shard))
            if not np.array_equal(read(array, shard), ROWS[shard * 16 : shard * 16 + 8]):
                wrong.append(shard)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    array.close()


def test_a_map_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(5000))
    mapped = map_file(path, 5000)
    with path.open("r+b") as file:
        file.seek(4000)
        file.write(b"later")
    assert bytes(mapped[4000:4005]) == b"later"
    with pytest.raises(EOFError, match="shorter than 5001"):
        map_file(path, 5001)
    with pytest.raises(FileNotFoundError):
        map_file(tmp_path / "none", 1)


def test_the_log_of_damage_keeps_each_place_once_and_not_without_end() -> None:
    log = DamageLog(2)
    log.report("c", Damage("one", "a", "bad", 3))
    log.report("c", Damage("one", "a", "bad", 8))
    log.report("c", Damage("one", "a", "bad", 1))
    log.report("d", Damage("one", "a", "bad", 1))
    log.report("c", Damage("one", "b", "bad", 1))
    assert log.found() == [("c", Damage("one", "a", "bad", 8)), ("d", Damage("one", "a", "bad", 1))]
    assert log.dropped_count == 1
