"""Erasure and compaction: what is deleted is in no file, what is not is as it was, whatever fails between the steps.

Fault model: a kill is a copy of the files as they are at a step of the protocol, opened as a store of its own; a step,
a write or a sync fails; a byte of a shard was flipped before. The judge keeps every row in a dict.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from tests.faults.erasure_judge import assert_erased, assert_no_orphans, blocks, catalog_has, files_with

from covector.blocks import encode_key, key_column, scale_rows
from covector.errors import Conflict, Corrupt, CovectorError, NotFound, Unavailable
from covector.types import Space
from covector_server.ingest.batch import WriterSpec
from covector_server.ingest.committer import Committer
from covector_server.ingest.deleting import delete_rows
from covector_server.jobs.compact_offline import compact_offline
from covector_server.jobs.compaction import Compaction, Rules
from covector_server.jobs.operations import Cancelled, Progress
from covector_server.limits import Limits
from covector_server.metadata.catalog import Catalog, Writer
from covector_server.storage.collection import StoredCollection
from covector_server.storage.key_hash import hash_keys
from covector_server.storage.store import Sizes, Store
from covector_server.testing.batches import batch_of
from covector_server.testing.faulty_disk import Fault, FaultyDisk

DIM = 16
SIZES = Sizes(chunk_bytes=2 * DIM * 4, shard_bytes=2 * DIM * 8, log_file_bytes=700, recent_keys=16)
RNG = np.random.default_rng(7)
GRADIENTS = RNG.standard_normal((400, DIM)).astype(np.float32)
ERASE, MOVE = Rules(0.0, 5.0), Rules(0.01, 5.0)


class StepDisk(FaultyDisk):
    """Remembers the steps, and calls ``at_step`` at each."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[str] = []
        self.at_step: Callable[[str], None] = lambda name: None
        self.can_link = True

    def link(self, source: Path, target: Path) -> None:
        if not self.can_link:
            raise OSError(errno.EOPNOTSUPP, "no links here")
        super().link(source, target)

    def step(self, name: str) -> None:
        self.steps.append(name)
        self.at_step(name)
        super().step(name)


class DoubtfulCatalog:
    """A catalog whose ``nth`` write fails, after it was committed or without."""

    def __init__(self, inner: Catalog, nth: int, is_committed: bool) -> None:
        self.inner = inner
        self.left = nth
        self.is_committed = is_committed

    @contextlib.contextmanager
    def write(self) -> Iterator[Writer]:
        self.left -= 1
        fails = self.left < 0
        with self.inner.write() as writer:
            yield writer
            if fails and not self.is_committed:
                raise Unavailable("a fault on purpose")
        if fails:
            raise Unavailable("a fault on purpose")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Rig:
    """A store of one collection, and a dict of what it ought to hold: (checkpoint, key) -> number of a gradient."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.disk = StepDisk()
        self.twin: dict[tuple[str, int], int] = {}
        self.texts: dict[int, str] = {}
        self.sequence = 0
        self.open()
        self.committer.call(lambda: self.store.create_collection("c", Space(dim=DIM), True)).result()

    @property
    def collection(self) -> StoredCollection:
        return self.store.collection("c")

    def open(self) -> None:
        self.store = Store(self.data, SIZES, self.disk)
        self.committer = Committer(self.store, Limits())

    def close(self) -> None:
        self.committer.stop()
        self.store.close()

    def restart(self) -> None:
        self.close()
        self.open()

    def add(self, checkpoint: str, rows: dict[int, int], with_text: bool = True) -> None:
        """Stores, or replaces, rows: key -> number of a gradient."""
        self.maintain_keys()
        self.sequence += 1
        texts = [f"text of {key}" if with_text else None for key in rows]
        spec = WriterSpec("c", "writer", checkpoint, on_conflict="replace")
        batch = batch_of(self.sequence, list(rows), GRADIENTS[list(rows.values())], texts, None)
        self.committer.submit(spec, batch).result()
        for key, number in rows.items():
            self.twin[checkpoint, key] = number
            if with_text:
                self.texts[key] = f"text of {key}"

    def delete(self, keys: list[int]) -> None:
        with self.collection.reading() as view:
            row_ids = view.row_ids_of([encode_key(key) for key in keys])
        assert self.committer.call(lambda: delete_rows(self.store, self.collection, row_ids)).result() == len(keys)
        self.twin = {place: number for place, number in self.twin.items() if place[1] not in keys}
        self.texts = {key: text for key, text in self.texts.items() if key not in keys}

    def maintain_keys(self) -> None:
        """What the maintenance thread does; here it would meet the faults that are meant for others."""
        keys = self.collection.keys
        with keys.maintaining:
            while (change := keys.flush(self.collection.counters.next_row_id) or keys.merge()) is not None:
                self.exclusive(partial(self.store.register_keys, self.collection, change))

    def exclusive(self, work: Callable[[], Any]) -> Any:
        return self.committer.call(work).result()

    def compact(self, rules: Rules, progress: Progress | None = None) -> dict[str, Any]:
        progress = progress or Progress(lambda done, total: None)
        return Compaction(self.store, self.collection, self.exclusive, rules).run(progress)

    def fill(self) -> None:
        """Two checkpoints of several shards and a tail; rows deleted and replaced in most of them."""
        for start in range(0, 42, 6):
            self.add("one", {key: key for key in range(start, start + 6)}, with_text=start % 4 == 0)
        self.add("two", {key: key + 50 for key in range(0, 30, 2)})  # brings texts for rows without
        self.add("one", {5: 105, 40: 140})
        self.delete([0, 1, 9, 20, 33, 41])


def seen(collection: StoredCollection) -> tuple[dict[tuple[str, int], bytes], dict[int, str]]:
    """Gradients and texts, as a reader finds them."""
    gradients, texts = {}, {}
    with collection.reading() as view:
        for name, checkpoint in view.checkpoints.items():
            for tile in checkpoint.tiles(5):
                for row_id, row, scale in zip(tile.row_ids, tile.rows, tile.scales, strict=True):
                    (details,) = view.details_of(np.array([row_id]))
                    key = int.from_bytes(details.key[1:], "big") - (1 << 63)
                    assert view.row_ids_of([details.key]).tolist() == [row_id]
                    gradients[name, key] = row.tobytes() + scale.tobytes()
                    if details.text is not None:
                        texts[key] = details.text
    return gradients, texts


def assert_same(rig: Rig, collection: StoredCollection) -> None:
    gradients, texts = seen(collection)
    rows, scales = scale_rows(GRADIENTS)
    expected = {place: rows[number].tobytes() + scales[number].tobytes() for place, number in rig.twin.items()}
    assert gradients == expected
    assert texts == rig.texts


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "store")
    yield made
    made.disk.fault = None
    made.close()


@pytest.mark.parametrize("rules", [ERASE, MOVE], ids=["erase", "move"])
def test_rows_stay_and_deleted_ones_go(rig: Rig, rules: Rules) -> None:
    rig.fill()
    result = rig.compact(rules)
    assert_same(rig, rig.collection)
    assert_erased(rig.store, rig.collection)
    assert result["rows_erased"] == 6
    assert result["unverified"] == result["snapshots"] == []
    assert {one["action"] for one in result["checkpoints"].values()} == {"erased" if rules is ERASE else "compacted"}
    rig.add("one", {key: key + 7 for key in range(0, 60, 2)})
    assert_same(rig, rig.collection)
    rig.restart()
    assert_same(rig, rig.collection)
    assert rig.collection.erased_row_count == 6
    assert rig.compact(rules)["rows_erased"] == 0


def test_erasure_links_what_holds_nothing_dead(rig: Rig) -> None:
    rig.add("one", {key: key for key in range(44)})
    rig.delete([9, 42])
    before = rig.collection.checkpoints["one"].directory
    inodes = [(before / "gradients/c" / str(shard) / "0").stat().st_ino for shard in range(6)]
    assert rig.compact(ERASE)["checkpoints"]["one"]["shards_rewritten"] == 2  # the tail is one
    after = rig.collection.checkpoints["one"].directory
    assert after != before
    assert not before.exists()
    kept = [(after / "gradients/c" / str(shard) / "0").stat().st_ino == inodes[shard] for shard in range(6)]
    assert kept == [True, False, True, True, True, False]


def test_erasure_copies_where_files_cannot_be_linked(rig: Rig) -> None:
    rig.fill()
    rig.disk.can_link = False
    rig.compact(ERASE)
    assert_same(rig, rig.collection)
    assert_erased(rig.store, rig.collection)
    checkpoint = rig.collection.checkpoints["one"]
    assert all(path.stat().st_nlink == 1 for path in checkpoint.directory.rglob("*") if path.is_file())


@pytest.mark.parametrize(("nth", "is_committed"), [(0, True), (1, False), (2, True), (3, True), (4, False)])
def test_a_transaction_of_which_nobody_knows_whether_it_holds(rig: Rig, nth: int, is_committed: bool) -> None:
    rig.fill()
    catalog = rig.store.catalog = DoubtfulCatalog(rig.store.catalog, nth, is_committed)
    with pytest.raises(Unavailable):
        rig.compact(MOVE)
    assert_same(rig, rig.collection)
    rig.store.catalog = catalog.inner
    rig.restart()
    assert_same(rig, rig.collection)
    assert_no_orphans(rig.store)
    rig.compact(MOVE)
    assert_same(rig, rig.collection)
    assert_erased(rig.store, rig.collection)


def test_a_store_compacted_to_nothing_takes_rows_again(rig: Rig) -> None:
    rig.fill()
    rig.delete(sorted({key for _, key in rig.twin}))
    rig.compact(MOVE)
    assert_same(rig, rig.collection)
    assert_erased(rig.store, rig.collection)
    rig.add("one", {3: 3, 4: 4})
    rig.restart()
    assert_same(rig, rig.collection)


@pytest.mark.parametrize("rules", [ERASE, MOVE], ids=["erase", "move"])
def test_no_byte_of_an_erased_row_is_left_in_any_file(rig: Rig, rules: Rules) -> None:
    rig.fill()
    rows, _ = scale_rows(GRADIENTS)
    secret_key = "the secret key"
    sequence = iter(range(1, 9))
    spec = WriterSpec("c", "secret", "one", on_conflict="replace")

    def add(number: int, text: str | None) -> None:  # alone in its batch, so that nothing of it is compressed
        metadata = [{"place": f"secret {number}"}] if text else None
        batch = batch_of(next(sequence), [secret_key], GRADIENTS[[number]], [text], metadata)
        rig.committer.submit(spec, batch).result()

    add(300, None)
    add(301, "the secret text")  # a supplement, and another gradient
    rig.add("one", {key: key for key in range(50, 80)})  # so that shards are sealed and keys become runs
    hashed = hash_keys(key_column([secret_key])).tobytes()
    markers = [secret_key.encode(), b"the secret text", b"secret 301", rows[300].tobytes(), rows[301].tobytes(), hashed]
    rig.restart()
    assert all(files_with(rig.data, marker) for marker in markers)
    with rig.collection.reading() as view:
        row_ids = view.row_ids_of([encode_key(secret_key)])
    rig.committer.call(lambda: delete_rows(rig.store, rig.collection, row_ids)).result()
    rig.compact(rules)
    assert [files_with(rig.data, marker) for marker in markers] == [[]] * len(markers)
    assert not any(catalog_has(rig.store, marker) for marker in markers)
    rig.restart()
    assert [files_with(rig.data, marker) for marker in markers] == [[]] * len(markers)


@pytest.mark.parametrize("rules", [ERASE, MOVE], ids=["erase", "move"])
def test_a_kill_at_any_step_leaves_a_store_that_opens_and_goes_on(rig: Rig, rules: Rules, tmp_path: Path) -> None:
    rig.fill()
    images: list[tuple[str, Path]] = []

    def keep(name: str) -> None:
        if name.startswith(("compact.", "keys.")) and [one for one, _ in images].count(name) < 2:
            images.append((name, tmp_path / f"image {len(images)}"))
            shutil.copytree(rig.data, images[-1][1])

    rig.disk.at_step = keep
    rig.compact(rules)
    rig.disk.at_step = lambda name: None
    assert {name for name, _ in images} >= {
        "compact.created",
        "compact.copied",
        "compact.caught_up",
        "compact.switched",
        "compact.log_begun",
        "compact.log_written",
        "compact.log_committed",
        "compact.marked",
        "compact.catalog_copied",
        "compact.catalog_swapped",
        "keys.written",
        "keys.committed",
    }
    for name, image in images:
        store = Store(image, SIZES)
        try:
            assert_same(rig, store.collection("c"))
            assert_no_orphans(store)
        except AssertionError as error:
            raise AssertionError(f"after a kill at {name}") from error
        finally:
            store.close()
        compact_offline(image, "c", rules.share, Progress(lambda done, total: None))
        store = Store(image, SIZES)
        assert_same(rig, store.collection("c"))
        assert_erased(store, store.collection("c"))
        store.close()


STEPS = ["created", "copied", "caught_up", "switched", "log_begun", "log_written", "log_committed", "marked"]


@pytest.mark.parametrize("step", [*STEPS, "catalog_copied", "catalog_swapped"])
@pytest.mark.parametrize("rules", [ERASE, MOVE], ids=["erase", "move"])
def test_a_step_that_fails_loses_nothing(rig: Rig, rules: Rules, step: str) -> None:
    rig.fill()
    rig.disk.fault = Fault(f"compact.{step}")
    with pytest.raises(CovectorError):
        rig.compact(rules)
    assert rig.disk.fault is None
    if rig.collection.fault is None:
        assert_same(rig, rig.collection)
    rig.restart()
    assert_same(rig, rig.collection)
    assert_no_orphans(rig.store)
    rig.compact(rules)
    assert_same(rig, rig.collection)
    assert_erased(rig.store, rig.collection)


@pytest.mark.parametrize("after", [0, 3, 11, 20, 37, 50])
@pytest.mark.parametrize(
    ("operation", "number", "rules"),
    [("write", errno.ENOSPC, ERASE), ("write", errno.ENOSPC, MOVE), ("sync", errno.EIO, ERASE)],
)
def test_a_full_or_failing_disk_leaves_the_old_generation_serving(
    rig: Rig, rules: Rules, operation: str, number: int, after: int
) -> None:
    rig.fill()
    rig.disk.fault = Fault(operation, after, number)
    with contextlib.suppress(Unavailable):
        rig.compact(rules)
    rig.disk.fault = None
    assert_same(rig, rig.collection)
    if operation == "write":
        rig.add("one", {key: key + 9 for key in range(0, 50, 7)})
        assert_same(rig, rig.collection)
    rig.restart()
    assert_same(rig, rig.collection)
    assert_no_orphans(rig.store)
    rig.compact(rules)
    assert_same(rig, rig.collection)
    assert_erased(rig.store, rig.collection)


@pytest.mark.parametrize("rules", [ERASE, MOVE], ids=["erase", "move"])
def test_a_cancelled_compaction_leaves_nothing_behind(rig: Rig, rules: Rules) -> None:
    rig.fill()
    cancelled_count, report_count = 0, 0
    while True:
        progress = Progress(lambda done, total: None)
        left = report_count

        def count(done: int, total: int, progress: Progress = progress) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                progress.cancel()

        progress._update = count
        try:
            rig.compact(rules, progress)
            break
        except Cancelled:
            cancelled_count += 1
            report_count += 1
            assert_same(rig, rig.collection)
            parents = [checkpoint.directory.parent for checkpoint in rig.collection.checkpoints.values()]
            assert all(len(list(parent.iterdir())) == 1 for parent in parents)
    assert cancelled_count > 8
    assert_same(rig, rig.collection)
    assert_erased(rig.store, rig.collection)


@pytest.mark.parametrize("rules", [ERASE, MOVE], ids=["erase", "move"])
def test_a_chunk_that_cannot_be_verified_is_reported_and_stays_bad(rig: Rig, rules: Rules) -> None:
    rig.add("one", {key: key for key in range(44)})
    rig.delete([1, 9, 42])
    rig.committer.call(lambda: None).result()
    path = rig.collection.checkpoints["one"].directory / "gradients/c/1/0"
    data = bytearray(path.read_bytes())
    data[70] ^= 8
    path.write_bytes(data)
    result = rig.compact(rules)
    assert result["checkpoints"]["one"]["action"] == "erased"
    (found,) = result["unverified"]
    assert str(path) in found
    checkpoint = rig.collection.checkpoints["one"]
    with rig.collection.reading() as view, pytest.raises(Corrupt):
        list(view.checkpoints["one"].tiles(8))
    assert not checkpoint.arrays["gradients"].read(1, 2, 44).any()
    assert rig.compact(rules)["unverified"] != []


def test_a_damaged_block_of_the_row_log_moves_as_it_is(rig: Rig) -> None:
    rig.fill()
    first, second = (record for _, record in list(blocks(rig.collection))[:2])
    path = rig.collection.log.path(first.file)
    data = bytearray(path.read_bytes())
    data[first.offset_bytes + first.size_bytes - 3] ^= 16
    path.write_bytes(data)
    rig.restart()
    assert second.file == first.file  # which is emptied: it holds a deleted row too
    result = rig.compact(ERASE)
    (found,) = result["unverified"]
    assert f"rows {first.first} to {first.last}" in found
    assert not path.exists()
    moved = next(record for _, record in blocks(rig.collection) if record.first == first.first)
    assert moved.file != first.file
    assert rig.collection.log.read_bytes(moved) == data[first.offset_bytes : first.offset_bytes + first.size_bytes]
    gone = [row_id for row_id in rig.collection.deleted.tolist() if row_id > first.last]
    assert result["rows_erased"] == rig.collection.erased_row_count == len(gone)
    with rig.collection.reading() as view:
        assert view.keys_of(np.array(gone)) == [b""] * len(gone)
    assert rig.compact(ERASE)["unverified"] != []


def test_zarr_reads_the_new_generation(rig: Rig) -> None:
    rig.fill()
    rig.committer.call(lambda: rig.store.publish(rig.collection)).result()
    for rules in (ERASE, MOVE):
        rig.compact(rules)  # what was published stays so
        for name, checkpoint in rig.collection.checkpoints.items():
            arrays = {
                array: np.asarray(zarr.open_array(checkpoint.directory / array, mode="r")[...])
                for array in ("gradients", "scales", "row_ids")
            }
            live = np.setdiff1d(np.arange(len(arrays["row_ids"])), checkpoint.dead)
            with rig.collection.reading() as view:
                keys = view.keys_of(arrays["row_ids"][live].astype(np.int64))
            found = {int.from_bytes(key[1:], "big") - (1 << 63): place for key, place in zip(keys, live, strict=True)}
            assert found.keys() == {key for where, key in rig.twin if where == name}
            for key, place in found.items():
                expected = GRADIENTS[rig.twin[name, key]]
                row = arrays["gradients"][place].astype(np.float32) * arrays["scales"][place]
                np.testing.assert_allclose(row, expected, rtol=2e-3, atol=2e-3)
            assert not arrays["gradients"][checkpoint.dead].any()


def test_ingest_deletes_and_readers_go_on_meanwhile(rig: Rig) -> None:
    """One thread writes and deletes, one compacts again and again; views from before go on to show what they showed."""
    rig.fill()
    stop, failures = threading.Event(), []

    def compact() -> None:
        rules = [ERASE, MOVE]
        while not stop.is_set():
            try:
                rig.compact(rules[0])
            except Exception as error:  # noqa: BLE001 - the test's own thread raises it
                failures.append(error)
                return
            rules.reverse()

    compacting = threading.Thread(target=compact)
    compacting.start()
    rng = np.random.default_rng(3)
    for turn in range(24):
        with rig.collection.reading() as view:
            before = list(view.checkpoints["one"].tiles(100))
            keys = view.keys_of(np.concatenate([tile.row_ids for tile in before]))
            rig.add("one", {int(key): int(rng.integers(400)) for key in rng.choice(100, size=6, replace=False)})
            known = sorted({key for _, key in rig.twin})
            rig.delete([int(key) for key in rng.choice(known, size=2, replace=False)])
            after = list(view.checkpoints["one"].tiles(100))
            assert [tile.rows.tobytes() for tile in after] == [tile.rows.tobytes() for tile in before]
            assert view.keys_of(np.concatenate([tile.row_ids for tile in after])) == keys
        if turn % 8 == 0:
            assert_same(rig, rig.collection)
    stop.set()
    compacting.join()
    assert failures == []
    assert_same(rig, rig.collection)
    rig.compact(ERASE)
    assert_erased(rig.store, rig.collection)
    rig.restart()
    assert_same(rig, rig.collection)


def test_a_collection_deleted_meanwhile_ends_its_compaction(rig: Rig) -> None:
    rig.fill()

    def delete(name: str) -> None:
        if name == "compact.copied":
            rig.disk.at_step = lambda name: None
            rig.committer.call(lambda: rig.store.delete_collection("c")).result()

    rig.disk.at_step = delete
    with pytest.raises((Conflict, Unavailable)):
        rig.compact(ERASE)
    with pytest.raises(NotFound):
        rig.store.collection("c")
    assert list((rig.data / "collections").iterdir()) == []


def test_offline_beside_a_live_store_names_the_server(rig: Rig) -> None:
    with pytest.raises(Conflict, match="--to HOST:PORT"):
        compact_offline(rig.data, "c", 0.2, Progress(lambda done, total: None))
