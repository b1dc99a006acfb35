"""The key table against a dict: every way a key can come, go, be written to a run and be found again."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from covector.blocks import Column, column_of
from covector.errors import Corrupt
from covector_server.kernels import keys as kernels
from covector_server.metadata.memory_catalog import MemoryCatalog
from covector_server.storage.disk import Disk
from covector_server.storage.key_hash import hash_keys
from covector_server.storage.key_runs import KeyRun, write_run
from covector_server.storage.key_table import KeyTable
from covector_server.storage.recent_keys import RecentKeys, RowIds


@pytest.fixture(autouse=True, params=["compiled", "numpy"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "IS_COMPILED", request.param == "compiled")


def test_hashes_are_what_they_always_were() -> None:
    found = hash_keys(column_of([b"\x02", b"\x01" + bytes(8), b"\x02a key of several words"]))
    assert [hex(value) for value in found.tolist()] == [
        "0x358faf979be1d2e3",
        "0xf5868691700aae20",
        "0x78339691796307c0",
    ]


@pytest.mark.parametrize("seed", range(3))
def test_a_hash_is_that_of_the_key_alone(seed: int) -> None:
    rng = random.Random(seed)
    keys = [rng.randbytes(rng.choice([1, 7, 8, 9, 17, 40, 1025])) for _ in range(300)]
    together = hash_keys(column_of(keys))
    assert together.tolist() == [int(hash_keys(column_of([key]))[0]) for key in keys]
    assert len(set(together.tolist())) == len(set(keys))


def test_no_key_no_hash() -> None:
    assert hash_keys(column_of([])).tolist() == []


def test_keys_that_differ_in_one_bit_differ_in_about_half_of_their_hash() -> None:
    base = bytes(range(17))
    flipped = [bytes(b ^ (1 << bit % 8) if n == bit // 8 else b for n, b in enumerate(base)) for bit in range(17 * 8)]
    hashes = hash_keys(column_of([base, *flipped]))
    distances = [int(hashes[0] ^ other).bit_count() for other in hashes[1:]]
    assert 28 < np.mean(distances) < 36
    assert min(distances) > 10


def test_recent_keys_find_what_collides() -> None:
    table = RecentKeys(0)
    hashes = np.array([5, 5, 5 + (1 << 40), 6, 5], dtype=np.uint64)
    table.add(hashes, np.arange(5))
    asked = np.array([5, 6, 7, 5 + (1 << 40)], dtype=np.uint64)
    found = table.find(asked)
    pairs = sorted(zip(found.places.tolist(), found.row_ids.tolist(), strict=True))
    assert pairs == [(0, 0), (0, 1), (0, 4), (1, 3), (3, 2)]


class Twin:
    """A table, and what it should say. Keys stand in memory, as the row log would hold them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.catalog = MemoryCatalog()
        self.table = KeyTable(directory, Disk(), recent_keys=50)
        self.keys: list[bytes] = []
        self.expected: dict[bytes, int] = {}

    def keys_of(self, row_ids: RowIds) -> list[bytes]:
        return [self.keys[row_id] for row_id in row_ids.tolist()]

    def add(self, keys: list[bytes]) -> None:
        row_ids = np.arange(len(self.keys), len(self.keys) + len(keys))
        self.keys += keys
        self.table.add(hash_keys(column_of(keys)), row_ids)
        self.expected.update(zip(keys, row_ids.tolist(), strict=True))

    def forget(self, count: int) -> None:
        row_id = len(self.keys) - count
        self.table.forget_from(row_id)
        del self.keys[row_id:]
        self.expected = {key: n for n, key in enumerate(self.keys)}

    def maintain(self) -> None:
        while (change := self.table.flush(len(self.keys)) or self.table.merge()) is not None:
            with self.catalog.write() as writer:
                self.table.commit(writer, 7, change)
            for path in self.table.install(change):
                path.unlink()

    def reopen(self) -> list[Path]:
        self.table = KeyTable(self.directory, Disk(), recent_keys=50)
        with self.catalog.read() as reader:
            return self.table.load(reader, 7, len(self.keys), self.replay)

    def replay(self, start: int, stop: int) -> Iterator[tuple[int, Column]]:
        for first in range(start, stop, 13):
            yield first, column_of(self.keys[first : min(first + 13, stop)])

    def check(self, rng: random.Random) -> None:
        asked = [*self.expected, *(rng.randbytes(9) for _ in range(50))]
        rng.shuffle(asked)
        column = column_of(asked)
        found = self.table.find(column, hash_keys(column), len(self.keys), self.keys_of)
        assert found.tolist() == [self.expected.get(key, -1) for key in asked]


@pytest.mark.parametrize("seed", range(8))
def test_it_says_what_a_dict_says(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    twin = Twin(tmp_path)
    damaged: set[Path] = set()
    for _ in range(60):
        what = rng.choice(["add", "add", "add", "again", "forget", "maintain", "reopen", "damage"])
        if what == "add":
            twin.add(list({rng.randbytes(rng.randint(1, 12)) for _ in range(rng.randint(1, 80))} - set(twin.expected)))
        elif what == "again" and twin.expected:
            twin.add(rng.sample(list(twin.expected), min(5, len(twin.expected))))
        elif what == "forget":
            unflushed = len(twin.keys) - twin.table.covered_until
            twin.forget(rng.randint(0, min(unflushed, 20)))
        elif what == "maintain":
            twin.maintain()
        elif what == "reopen":
            assert set(twin.reopen()) <= damaged
        elif what == "damage" and twin.table.run_paths:
            path = rng.choice(twin.table.run_paths)
            data = bytearray(path.read_bytes())
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.unlink()
            path.write_bytes(data)
            damaged.add(path)
            assert path in twin.reopen()
        twin.check(rng)


def test_a_roll_back_does_not_bring_back_what_is_being_written(tmp_path: Path) -> None:
    twin = Twin(tmp_path)
    twin.add([b"key %d" % n for n in range(60)])
    change = twin.table.flush(len(twin.keys))
    assert change is not None
    twin.add([b"never committed"])
    twin.forget(1)
    assert twin.table.install(change) == []
    assert twin.table.flush(len(twin.keys)) is None
    assert len(twin.table.run_paths) == 1
    twin.check(random.Random(0))


def test_the_part_of_keys_past_a_view_is_not_seen(tmp_path: Path) -> None:
    twin = Twin(tmp_path)
    twin.add([b"a", b"b"])
    twin.add([b"a"])  # written again after a delete
    column = column_of([b"a", b"b"])
    for stop, expected in ((3, [2, 1]), (2, [0, 1]), (1, [0, -1]), (0, [-1, -1])):
        assert twin.table.find(column, hash_keys(column), stop, twin.keys_of).tolist() == expected


@pytest.mark.parametrize("count", [0, 1, 15, 1000, 70_000])
def test_a_run_holds_its_rows_and_no_others(tmp_path: Path, count: int) -> None:
    rng = np.random.default_rng(count)
    hashes = rng.integers(0, 1 << 64, count, dtype=np.uint64)
    write_run(Disk(), tmp_path / "run", [(hashes, np.arange(10, 10 + count))], (10, 10 + count))
    run = KeyRun(tmp_path / "run")
    found = run.find(hashes)
    assert (found.row_ids == found.places + 10).all()
    assert found.places.tolist() == list(range(count))
    absent = rng.integers(0, 1 << 64, 5000, dtype=np.uint64)
    assert len(run.find(absent).places) == 0


def test_runs_are_joined_part_by_part(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    count, runs = 1 << 17, []
    hashes = rng.integers(0, 1 << 64, 16 * count, dtype=np.uint64)
    for n in range(16):
        rows = (n * count, (n + 1) * count)
        write_run(Disk(), tmp_path / str(n), [(hashes[slice(*rows)], np.arange(*rows))], rows)
        runs.append(KeyRun(tmp_path / str(n)))
    write_run(Disk(), tmp_path / "all", runs, (0, 16 * count))
    joined = KeyRun(tmp_path / "all")
    asked = rng.permutation(16 * count)[:5000]
    found = joined.find(hashes[asked])
    assert found.row_ids.tolist() == asked[found.places].tolist()
    assert len(found.places) == len(asked)


def test_every_flipped_byte_of_a_run_is_found(tmp_path: Path) -> None:
    path = tmp_path / "run"
    write_run(Disk(), path, [(np.arange(40, dtype=np.uint64) << np.uint64(58), np.arange(40))], (0, 40))
    good = path.read_bytes()
    for offset in range(len(good)):
        path.unlink()
        path.write_bytes(good[:offset] + bytes([good[offset] ^ 4]) + good[offset + 1 :])
        with pytest.raises(Corrupt):
            KeyRun(path)
    for size in (0, 10, len(good) - 1):
        path.unlink()
        path.write_bytes(good[:size])
        with pytest.raises(Corrupt):
            KeyRun(path)
