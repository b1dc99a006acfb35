"""Snapshots: whole while ingest runs, independent of the store they are of, and nothing when they do not succeed.

Fault model: the process ends between any two calls to the disk (from then on no call does anything), a call fails, the
operation is cancelled. Everything that must be durable is, judged by a disk that keeps book of what was synced.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from covector.errors import AlreadyExists, Conflict, Corrupt, CovectorError, NotFound, Unavailable
from covector_server.jobs.operations import CANCELLED, SUCCEEDED, Operations
from covector_server.jobs.snapshot import create_snapshot
from covector_server.metadata.catalog import number
from covector_server.metadata.lmdb_catalog import LmdbCatalog
from covector_server.metadata.records import CheckpointRecord
from covector_server.storage.disk import Disk
from covector_server.storage.key_table import MERGED_RUNS
from covector_server.storage.restore import restore
from covector_server.storage.snapshot import Snapshots, read_record
from covector_server.storage.space import FreeSpace
from covector_server.storage.store import Store
from covector_server.testing.faulty_disk import Fault, FaultyDisk

from .snapshot_rig import DIM, Rig, TestWriter, assert_right, content_of, files_of, opened, restored, writing

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
STEPS = ("pinned", "catalog_copied", "copied", "synced", "renamed")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with opened(tmp_path / "store") as made:
        yield made


def fill(rig: Rig, writer: TestWriter, batches: int = 12, rows: int = 7) -> None:
    """Several sealed shards, a tail with a partial chunk, several files of the row log."""
    for _ in range(batches):
        writer.write(rig.committer, rows)
    rig.settle()


def no_report(done: int, total: int) -> None:
    pass


@pytest.mark.parametrize("seed", range(3))
def test_a_snapshot_under_ingest_holds_what_was_acknowledged(rig: Rig, tmp_path: Path, seed: int) -> None:
    writers = [TestWriter("a"), TestWriter("b"), TestWriter("c", checkpoint="two")]
    for writer in writers:
        fill(rig, writer, batches=4)
    before = []
    with writing(rig, writers, seed):
        for name in ("first", "second", "third"):
            before.append({key for writer in writers for batch in writer.batches for key in batch})
            rig.snapshots.create(name)
            for writer in writers:  # so that the next one is of another state
                writer.wait_for_more(3)
    for name, acknowledged in zip(("first", "second", "third"), before, strict=True):
        with opened(restored(rig, name, tmp_path / name)) as copy:
            content = content_of(copy.store)
            assert_right(content)
            keys = {key for _, key in content}
            assert acknowledged <= keys
            for writer in writers:  # whole batches, without a gap
                there = [set(batch) <= keys for batch in writer.batches]
                assert there == sorted(there, reverse=True)
                assert sum(map(len, writer.batches[: sum(there)])) == sum(key.startswith(writer.name) for key in keys)
            assert read_record(rig.snapshots.path(name)).row_count == len(keys)
    assert len(content_of(rig.store)) > len(before[-1])


def test_neither_store_writes_into_the_other(rig: Rig, tmp_path: Path) -> None:
    writer = TestWriter("a")
    fill(rig, writer)
    rig.committer.call(lambda: rig.store.publish(rig.store.collection("c"))).result()
    rig.snapshots.create("s")
    snapshot = rig.snapshots.path("s")
    as_made, content = files_of(snapshot), content_of(rig.store)
    with opened(restored(rig, "s", tmp_path / "restored")) as copy:
        assert content_of(copy.store) == content
        twin = TestWriter("a", sequence=writer.sequence, row_count=1000)  # goes on where the snapshot was
        for _ in range(15):
            writer.write(rig.committer, 9)
            twin.write(copy.committer, 5)
        copy.settle()
        rig.settle()
        for store, own, other in ((rig.store, writer, twin), (copy.store, twin, writer)):
            found = content_of(store)
            assert_right(found)
            assert {("one", key) for batch in own.batches[-15:] for key in batch} <= found.keys()
            assert not {("one", key) for batch in other.batches[-15:] for key in batch} & found.keys()
        copy_files = files_of(copy.store.data)
        assert files_of(snapshot) == as_made
    shared = [path for path in snapshot.rglob("*") if path.is_file() and path.stat().st_nlink > 1]
    assert {path.name for path in shared} >= {"0", "1", "00000000.blocks"}
    for path in shared:  # what is shared has stayed what it was, in all three
        relative = path.relative_to(snapshot)
        here, there = as_made[str(relative)], copy_files.get(str(relative))
        if path.suffix == ".run":  # runs of the key table may have been joined since
            assert there in {None, here}
            continue
        assert (rig.store.data / relative).read_bytes() == here == there


def test_what_is_shared_and_what_is_not(rig: Rig) -> None:
    writer = TestWriter("a")
    fill(rig, writer)
    rig.snapshots.create("s")
    checkpoint = rig.store.collection("c").checkpoints["one"]
    sealed, last = checkpoint.counters.sealed_shard_count, checkpoint.counters.row_count // 32
    assert sealed >= 2
    assert last == sealed
    live = checkpoint.directory.relative_to(rig.store.data) / "gradients"
    for shard in range(last + 1):
        inodes = {(root / live / f"c/{shard}/0").stat().st_ino for root in (rig.store.data, rig.snapshots.path("s"))}
        assert len(inodes) == (1 if shard < sealed else 2)
    logs = sorted((rig.snapshots.path("s") / "collections/1/rows").iterdir())
    assert len(logs) >= 3
    assert [path.stat().st_nlink for path in logs] == [2] * (len(logs) - 1) + [1]


def test_zarr_tools_read_every_row_of_a_snapshot(rig: Rig) -> None:
    writer = TestWriter("a")
    fill(rig, writer, batches=5)
    rig.snapshots.create("s")
    with rig.store.collection("c").reading() as view:
        (tile,) = [tile for tile in view.checkpoints["one"].tiles(8) if tile.row_ids[0] == 32]
    directory = rig.store.collection("c").checkpoints["one"].directory
    root = rig.snapshots.path("s") / directory.relative_to(rig.store.data)
    arrays = {name: np.asarray(zarr.open_array(root / name, mode="r")[...]) for name in ("gradients", "row_ids")}
    assert arrays["gradients"].shape == (35, DIM)
    np.testing.assert_array_equal(arrays["gradients"][32:35], tile.rows)
    assert arrays["row_ids"].tolist() == list(range(35))
    assert zarr.open_array(directory / "row_ids", mode="r").shape == (32,)


def test_published_tails_and_later_generations(rig: Rig, tmp_path: Path) -> None:
    writer = TestWriter("a")
    fill(rig, writer)
    rig.close()
    data = rig.store.data
    (data / "collections/1/1/0").rename(data / "collections/1/1/3")
    catalog = LmdbCatalog(data / "catalog.lmdb")
    with catalog.write() as change:
        value = change.get("checkpoints", number(1, 1))
        assert value is not None
        change.put("checkpoints", number(1, 1), replace(CheckpointRecord.decode(value), generation=3).encode())
    catalog.close()
    rig.open(data)
    (data / "collections/1/1/9").mkdir()  # a generation that no committed state names
    writer.write(rig.committer, 3)
    rig.snapshots.create("s")
    with opened(restored(rig, "s", tmp_path / "restored")) as copy:
        assert_right(content_of(copy.store))
        assert content_of(copy.store) == content_of(rig.store)
        assert [path.name for path in (copy.store.data / "collections/1/1").iterdir()] == ["3"]


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("format-*")))
def test_a_store_of_every_format(tmp_path: Path, name: str) -> None:
    shutil.copytree(GOLDEN / name, tmp_path / "store")
    store = Store(tmp_path / "store")
    expected = content_of(store, "golden")
    Snapshots(store).create("s")
    store.close()
    restore(tmp_path / "store/snapshots/s", tmp_path / "restored", no_report)
    copy = Store(tmp_path / "restored")
    assert content_of(copy, "golden") == expected
    assert len(expected) > 10
    copy.close()


def test_an_empty_store_and_an_empty_collection(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "store", names=())
    rig.snapshots.create("nothing")
    rig.create_collection("c")
    rig.snapshots.create("no rows")
    assert [record.row_count for record in rig.snapshots.records()] == [0, 0]
    with opened(restored(rig, "nothing", tmp_path / "nothing")) as copy:
        assert content_of(copy.store) == {}  # the rig makes the collection
    with opened(restored(rig, "no rows", tmp_path / "no rows")) as copy:
        writer = TestWriter("a")
        writer.write(copy.committer, 3)
        assert len(content_of(copy.store)) == 3
    rig.close()


def test_the_running_servers_own_records_are_left_out(rig: Rig, tmp_path: Path) -> None:
    with rig.store.catalog.write() as writer:
        writer.put("operations", b"o", b"{}")
        writer.put("requests", b"r", number(1))
    fill(rig, TestWriter("a"), batches=1)
    rig.snapshots.create("s")
    catalog = LmdbCatalog(rig.snapshots.path("s") / "catalog.lmdb")
    with catalog.read() as reader:
        assert not [*reader.scan("operations"), *reader.scan("requests")]
        assert len(list(reader.scan("writers"))) == 1
    catalog.close()


class DyingDisk(Disk):
    """A disk whose process ends at a step, or at the n-th call: from then on nothing is done."""

    def __init__(self, step: str | None = None, after: int | None = None) -> None:
        self.last_step = step
        self.left = after
        self.is_dead = False

    def step(self, name: str) -> None:
        self._live()
        if name == self.last_step:
            self._die()

    def _live(self) -> None:
        if self.left is not None:
            self.left -= 1
        if self.is_dead or (self.left is not None and self.left < 0):
            self._die()

    def _die(self) -> None:
        self.is_dead = True
        raise Killed

    open = write = sync = sync_directory = link = copy_range = rename = None  # type: ignore[assignment]
    make_directory = make_directories = replace_json = remove_file = remove_tree = None  # type: ignore[assignment]


class Killed(BaseException):
    """The process is gone."""


def death_of(death: str | float, protocol: str, work: Callable[[Disk], object]) -> DyingDisk:
    """A disk that dies at a step of a protocol, or after this share of the calls that ``work`` makes."""
    if isinstance(death, str):
        return DyingDisk(f"{protocol}.{death}")
    counting = DyingDisk(after=1 << 40)
    work(counting)
    assert counting.left is not None
    return DyingDisk(after=int(((1 << 40) - counting.left) * death))


def snapshot_on(rig: Rig, disk: Disk, name: str) -> None:
    rig.snapshots._disk = disk
    rig.snapshots.create(name)


SHARES = np.linspace(0, 0.999, 9).tolist()


def _forward(name: str) -> Callable[..., Any]:
    def call(self: DyingDisk, *arguments: Any) -> Any:
        self._live()
        return getattr(Disk, name)(self, *arguments)

    return call


for _name in [name for name, value in vars(DyingDisk).items() if value is None and not name.startswith("_")]:
    setattr(DyingDisk, _name, _forward(_name))


@pytest.mark.parametrize("death", [*STEPS, *SHARES])
def test_a_crash_leaves_a_whole_snapshot_or_none(tmp_path: Path, death: str | float) -> None:
    with opened(tmp_path / "store") as rig:
        fill(rig, TestWriter("a"))
        disk = death_of(death, "snapshot", lambda disk: snapshot_on(rig, disk, "judge"))
        shutil.rmtree(rig.store.data / "snapshots", ignore_errors=True)
        with pytest.raises(Killed):
            snapshot_on(rig, disk, "s")
        expected = content_of(rig.store)
    with opened(tmp_path / "store") as rig:
        assert content_of(rig.store) == expected
        names = [record.name for record in rig.snapshots.records()]
        assert [path.name for path in rig.store.data.glob("snapshots/*")] == names
        assert not list(rig.store.data.glob("snapshots/.*"))
        assert names in ([], ["s"])
        assert not isinstance(death, str) or names == (["s"] if death == "renamed" else [])
        if not names:
            rig.snapshots.create("s")
        with opened(restored(rig, "s", tmp_path / "restored")) as copy:
            assert content_of(copy.store) == expected


@pytest.mark.parametrize("death", ["catalog_copied", "copied", *SHARES])
def test_a_crash_while_restoring_leaves_nothing_in_the_way(rig: Rig, tmp_path: Path, death: str | float) -> None:
    fill(rig, TestWriter("a"))
    rig.snapshots.create("s")
    snapshot, target = rig.snapshots.path("s"), tmp_path / "restored"
    disk = death_of(death, "restore", lambda disk: restore(snapshot, tmp_path / "judge", no_report, disk))
    with pytest.raises(Killed):
        restore(snapshot, target, no_report, disk)
    if not target.exists():
        restored(rig, "s", target)
    with opened(target) as copy:
        assert content_of(copy.store) == content_of(rig.store)
    assert {path.name for path in tmp_path.iterdir()} - {"judge"} == {"store", "restored"}


@pytest.mark.parametrize("death", ["snapshot.deleted", 1, 2])
def test_a_crash_while_deleting_leaves_a_whole_snapshot_or_none(tmp_path: Path, death: str | int) -> None:
    with opened(tmp_path / "store") as rig:
        fill(rig, TestWriter("a"))
        rig.snapshots.create("s")
        disk = DyingDisk(death) if isinstance(death, str) else DyingDisk(after=death)
        rig.snapshots._disk = disk
        with pytest.raises(Killed):
            rig.snapshots.delete("s")
    with opened(tmp_path / "store") as rig:
        assert not list(rig.store.data.glob("snapshots/.*"))
        for record in rig.snapshots.records():
            restored(rig, record.name, tmp_path / "restored")
        assert_right(content_of(rig.store))


@pytest.mark.parametrize("operation", ["write", "sync"])
@pytest.mark.parametrize("after", [0, 2, 5])
def test_a_call_that_fails_leaves_nothing(rig: Rig, operation: str, after: int) -> None:
    fill(rig, TestWriter("a"))
    disk = FaultyDisk()
    rig.snapshots._disk = disk
    disk.fault = Fault(operation, after, errno.ENOSPC)
    with pytest.raises(Unavailable, match="could not be written"):
        rig.snapshots.create("s")
    assert not list(rig.store.data.glob("snapshots/*"))
    assert not list(rig.store.data.glob("snapshots/.*"))
    rig.snapshots.create("s")


class BookkeepingDisk(Disk):
    """Knows what would not survive a loss of power: files written and directories changed since their last sync."""

    def __init__(self) -> None:
        self.unsynced: set[Path] = set()
        self.paths: dict[int, Path] = {}
        self.at_rename: set[Path] | None = None

    def open(self, path: Path, size_bytes: int) -> int:
        if not path.exists():
            self.unsynced |= {path, path.parent}
        descriptor = super().open(path, size_bytes)
        self.paths[descriptor] = path
        return descriptor

    def write(self, descriptor: int, data: bytes | memoryview, offset_bytes: int) -> None:
        self.unsynced.add(self.paths[descriptor])
        super().write(descriptor, data, offset_bytes)

    def copy_range(self, source: int, target: int, offset_bytes: int, size_bytes: int) -> None:
        self.unsynced.add(self.paths[target])
        super().copy_range(source, target, offset_bytes, size_bytes)

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        self.unsynced.discard(self.paths[descriptor])

    def link(self, source: Path, target: Path) -> None:
        super().link(source, target)
        self.unsynced.add(target.parent)

    def make_directory(self, path: Path) -> None:
        super().make_directory(path)
        self.unsynced |= {path, path.parent}

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        self.unsynced.discard(path)

    def rename(self, old: Path, new: Path) -> None:
        if old.is_dir():
            self.at_rename = {path for path in self.unsynced if path.is_relative_to(old)}
        super().rename(old, new)
        self.unsynced |= {old.parent, new.parent}


def test_everything_is_synced_before_the_name_is_given(rig: Rig, tmp_path: Path) -> None:
    fill(rig, TestWriter("a"))
    disk = BookkeepingDisk()
    rig.snapshots._disk = disk
    rig.snapshots.create("s")
    assert disk.at_rename == set()
    assert disk.unsynced == set()
    restore(rig.snapshots.path("s"), tmp_path / "deep/below/restored", no_report, disk)
    assert disk.at_rename == set()
    assert disk.unsynced == set()


class NoLinks(Disk):
    """Two file systems."""

    def link(self, source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "on purpose")


def test_restoring_to_another_file_system_copies(rig: Rig, tmp_path: Path) -> None:
    fill(rig, TestWriter("a"))
    rig.snapshots.create("s")
    reports: list[tuple[int, int]] = []
    restore(
        rig.snapshots.path("s"), tmp_path / "restored", lambda done, total: reports.append((done, total)), NoLinks()
    )
    assert [path for path in (tmp_path / "restored").rglob("*") if path.is_file() and path.stat().st_nlink > 1] == []
    assert reports == sorted(reports)
    assert reports[-1][0] == reports[-1][1] > 0
    with opened(tmp_path / "restored") as copy:
        assert content_of(copy.store) == content_of(rig.store)


class Asked(Exception):
    """To stop."""


@pytest.mark.parametrize("reports", range(0, 20, 4))
def test_a_snapshot_that_is_stopped_leaves_nothing(rig: Rig, tmp_path: Path, reports: int) -> None:
    fill(rig, TestWriter("a"))
    left = reports

    def report(done: int, total: int) -> None:
        nonlocal left
        assert done <= total
        left -= 1
        if left < 0:
            raise Asked

    with pytest.raises(Asked):
        rig.snapshots.create("s", report)
    assert not list(rig.store.data.glob("snapshots/.*"))
    assert not rig.snapshots.records()
    rig.snapshots.create("s")
    left = reports
    with pytest.raises(Asked):
        restore(rig.snapshots.path("s"), tmp_path / "restored", report)
    assert {path.name for path in tmp_path.iterdir()} == {"store"}


class WaitingDisk(Disk):
    """Calls ``at`` at a step, once."""

    def __init__(self, step: str, at: Callable[[], object]) -> None:
        self.calls = {step: at}

    def step(self, name: str) -> None:
        self.calls.pop(name, lambda: None)()


def test_as_an_operation_it_has_progress_a_result_and_can_be_cancelled(rig: Rig) -> None:
    fill(rig, TestWriter("a"))
    operations = Operations(rig.store, rig.committer)
    waits, goes_on = threading.Event(), threading.Event()

    def hold() -> None:
        waits.set()
        assert goes_on.wait(30)

    rig.snapshots._disk = WaitingDisk("snapshot.catalog_copied", hold)
    rig.snapshots.reserve("s")
    with pytest.raises(AlreadyExists):
        rig.snapshots.reserve("s")
    record = operations.start("snapshot", "", create_snapshot(rig.snapshots, "s"))
    assert waits.wait(30)
    operations.cancel(record.id)
    goes_on.set()
    assert operations.wait(record.id, 30).state == CANCELLED
    rig.snapshots.reserve("s")
    record = operations.start("snapshot", "", create_snapshot(rig.snapshots, "s"))
    ended = operations.wait(record.id, 30)
    assert ended.state == SUCCEEDED
    assert ended.steps_done == ended.steps_total > 1000
    assert ended.result == {"name": "s", "row_count": 84, "size_bytes": rig.snapshots.records()[0].size_bytes}
    with pytest.raises(AlreadyExists, match="choose another name"):
        rig.snapshots.reserve("s")
    operations.stop()


def test_a_collection_deleted_meanwhile_is_whole_in_the_snapshot(rig: Rig, tmp_path: Path) -> None:
    fill(rig, TestWriter("a"))
    expected = content_of(rig.store)
    rig.snapshots._disk = WaitingDisk("snapshot.catalog_copied", lambda: rig.delete_collection("c"))
    rig.snapshots.create("s")
    assert rig.store.collections() == []
    assert not (rig.store.data / "collections/1").exists()
    with opened(restored(rig, "s", tmp_path / "restored")) as copy:
        assert content_of(copy.store) == expected


def test_a_collection_made_meanwhile_is_held_too(rig: Rig, tmp_path: Path) -> None:
    def make() -> None:
        rig.create_collection("d")
        fill(rig, TestWriter("b", collection="d"))

    disk = WaitingDisk("snapshot.pinned", make)
    disk.calls["snapshot.catalog_copied"] = lambda: rig.delete_collection("d")
    rig.snapshots._disk = disk
    rig.snapshots.create("s")
    with opened(restored(rig, "s", tmp_path / "restored")) as copy:
        assert len(content_of(copy.store, "d")) == 84


def test_runs_of_the_key_table_joined_meanwhile_stay_for_the_snapshot(rig: Rig, tmp_path: Path) -> None:
    writer, collection = TestWriter("a"), rig.store.collection("c")
    rig.maintenance.stop()

    def flush() -> None:
        writer.write(rig.committer, 25)
        rig.committer.call(lambda: rig.store._flush_keys(collection)).result()

    def join() -> None:
        for _ in range(MERGED_RUNS):
            flush()
        change = collection.keys.merge()
        assert change is not None
        rig.committer.call(lambda: rig.store.register_keys(collection, change)).result()
        assert first.exists()

    flush()
    (first,) = (rig.store.data / "collections/1/keys").iterdir()
    expected = content_of(rig.store)
    rig.snapshots._disk = WaitingDisk("snapshot.catalog_copied", join)
    rig.snapshots.create("s")
    assert not first.exists()
    with opened(restored(rig, "s", tmp_path / "restored")) as copy:
        assert content_of(copy.store) == expected


def test_a_collection_made_and_deleted_meanwhile_is_not_in_the_way(rig: Rig) -> None:
    def make() -> None:
        rig.create_collection("d")
        disk.calls["snapshot.pinned"] = lambda: rig.delete_collection("d")

    disk = WaitingDisk("snapshot.pinned", make)
    rig.snapshots._disk = disk
    rig.snapshots.create("s")
    assert [collection["name"] for collection in rig.snapshots.records()[0].collections] == ["c"]


def test_it_waits_for_those_who_replace_files_and_they_for_it(rig: Rig) -> None:
    fill(rig, TestWriter("a"))
    done: list[str] = []
    with rig.store.pins.replacing():
        making = threading.Thread(target=lambda: done.append(rig.snapshots.create("s").name))
        making.start()
        assert not done
        assert not (rig.store.data / "snapshots/.s.partial/catalog.lmdb").exists()
    making.join(30)
    assert done == ["s"]

    def stop() -> None:
        raise Asked

    def replace() -> None:
        with pytest.raises(Asked), rig.store.pins.replacing(stop):
            done.append("replaced")

    rig.snapshots._disk = WaitingDisk("snapshot.copied", replace)
    rig.snapshots.create("t")
    assert done == ["s"]


def gradients_file(rig: Rig, shard: int) -> Path:
    return rig.store.collection("c").checkpoints["one"].directory / f"gradients/c/{shard}/0"


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("damage", "named"), [
    (lambda rig: gradients_file(rig, 0).unlink(), "gradients/c/0/0 is missing"),
    (lambda rig: os.truncate(gradients_file(rig, 1), 100), "gradients/c/1/0 is missing or has fewer"),
    (lambda rig: flip(gradients_file(rig, 2), 16 * 8 + 2 * 4 + 1), "rows 16 to 19 of the shard do not match"),
    (lambda rig: (rig.store.data / "collections/1/rows/00000000.blocks").unlink(), "00000000.blocks is missing"),
    (lambda rig: os.truncate(max((rig.store.data / "collections/1/rows").iterdir()), 5), "blocks is missing or has"),
    (lambda rig: (gradients_file(rig, 0).parents[2] / "zarr.json").write_text("{"), "zarr.json cannot be read"),
])  # fmt: skip
def test_a_damaged_store_gives_no_snapshot(rig: Rig, damage: Callable[[Rig], object], named: str) -> None:
    fill(rig, TestWriter("a"))
    damage(rig)
    with pytest.raises(Corrupt, match=named):
        rig.snapshots.create("s")
    assert not list(rig.store.data.glob("snapshots/.*"))


def test_a_damaged_snapshot_restores_to_nothing(rig: Rig, tmp_path: Path) -> None:
    fill(rig, TestWriter("a"))
    for damaged in ("collections/1/rows/00000000.blocks", "catalog.lmdb", "snapshot.json"):
        rig.snapshots.create("s")
        (rig.snapshots.path("s") / damaged).unlink()
        with pytest.raises((Corrupt, NotFound)):
            restore(rig.snapshots.path("s"), tmp_path / "restored", no_report)
        assert {path.name for path in tmp_path.iterdir()} == {"store"}
        assert [record.name for record in rig.snapshots.records()] == ["s"]
        rig.snapshots.delete("s")
    assert_right(content_of(rig.store))


def test_no_room(rig: Rig) -> None:
    fill(rig, TestWriter("a"))
    free = [10_000_000, 3000]
    seconds = itertools.count()
    rig.snapshots._space = FreeSpace(rig.store.data, 2000, lambda path: free.pop(0), lambda: next(seconds))
    with pytest.raises(Unavailable, match="disk_low_water_bytes=2000"):
        rig.snapshots.create("s")
    assert not list(rig.store.data.glob("snapshots/.*"))


def test_deleting_a_snapshot_leaves_the_store(rig: Rig, tmp_path: Path) -> None:
    fill(rig, TestWriter("a"))
    rig.snapshots.create("backup-1")
    restored(rig, "backup-1", tmp_path / "restored")
    rig.snapshots.delete("backup-1")
    assert list((rig.store.data / "snapshots").iterdir()) == []
    assert_right(content_of(rig.store))
    with opened(tmp_path / "restored") as copy:
        assert content_of(copy.store) == content_of(rig.store)
    rig.snapshots.create("backup-2")
    with pytest.raises(NotFound, match="did you mean 'backup-2'"):
        rig.snapshots.delete("backup-1")


def test_which_snapshots_hold_a_row(rig: Rig) -> None:
    fill(rig, TestWriter("a"), batches=1)
    rig.snapshots.create("early")
    fill(rig, TestWriter("b"), batches=1)
    rig.snapshots.create("late")
    assert rig.snapshots.holding(1, 6) == ["early", "late"]
    assert rig.snapshots.holding(1, 7) == ["late"]
    assert rig.snapshots.holding(1, 14) == rig.snapshots.holding(2, 0) == []


def test_where_one_cannot_restore_to(rig: Rig, tmp_path: Path) -> None:
    rig.snapshots.create("s")
    snapshot = rig.snapshots.path("s")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    refused: list[tuple[Path, type[CovectorError]]] = [
        (tmp_path / "full", AlreadyExists),
        (tmp_path / "full/file", AlreadyExists),
        (rig.store.data, AlreadyExists),
        (snapshot / "below", Conflict),
    ]
    for target, error in refused:
        with pytest.raises(error):
            restore(snapshot, target, no_report)
    assert (tmp_path / "full/file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    restored(rig, "s", tmp_path / "empty")
    with pytest.raises(NotFound, match="is no snapshot"):
        restore(rig.store.data, tmp_path / "other", no_report)


def test_a_snapshot_is_not_served(rig: Rig) -> None:
    rig.snapshots.create("s")
    as_made = files_of(rig.snapshots.path("s"))
    with pytest.raises(Conflict, match="covector snapshot restore"):
        Store(rig.snapshots.path("s"))
    assert files_of(rig.snapshots.path("s")) == as_made
