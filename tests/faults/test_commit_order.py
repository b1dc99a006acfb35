"""Nothing that was not committed is seen, nothing that was acknowledged is lost, whatever fails between the steps."""

import errno
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

from covector.errors import Conflict, CovectorError, InvalidInput, Unavailable
from covector.types import Space
from covector_server.ingest.batch import Batch, WriterSpec
from covector_server.ingest.committer import Committer
from covector_server.limits import Limits
from covector_server.storage.store import Sizes, Store
from covector_server.testing.batches import batch_of
from covector_server.testing.faulty_disk import Fault, FaultyDisk

DIM = 4
SPEC = WriterSpec("c", "writer", "one")
GRADIENTS = np.random.default_rng(0).standard_normal((200, DIM)).astype(np.float32)


class Rig:
    """A store on a faulty disk, and a step of the commit order at which to fail."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.disk = FaultyDisk()
        self.open()
        self.committer.call(lambda: self.store.create_collection("c", Space(dim=DIM), True)).result()

    def open(self) -> None:
        self.store = Store(self.data, Sizes(chunk_bytes=64, shard_bytes=256), self.disk)
        self.committer = Committer(self.store, Limits())

    def close(self) -> None:
        self.committer.stop()
        self.store.close()

    def restart(self) -> None:
        self.close()
        self.open()

    def store_rows(self, sequence: int, first: int, stop: int) -> None:
        self.committer.submit(SPEC, rows(sequence, first, stop)).result()

    def row_count(self) -> int:
        with self.store.collection("c").reading() as view:
            found = [tile for c in view.checkpoints.values() for tile in c.tiles(1000)]
            for tile in found:
                expected = GRADIENTS[[int(key[1:].decode()) for key in view.keys_of(tile.row_ids)]]
                np.testing.assert_allclose(tile.rows * tile.scales[:, None], expected, rtol=2e-3, atol=1e-3)
            return sum(len(tile.rows) for tile in found)


def rows(sequence: int, first: int, stop: int) -> Batch:
    return batch_of(sequence, [str(i) for i in range(first, stop)], GRADIENTS[first:stop])


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "store")
    yield made
    made.close()


@pytest.mark.parametrize("step", ["commit.written", "commit.synced"])
def test_a_group_that_fails_before_the_commit_leaves_no_trace(rig: Rig, step: str) -> None:
    rig.store_rows(1, 0, 30)
    rig.disk.fault = Fault(step)
    with pytest.raises(Unavailable, match="send again"):
        rig.store_rows(2, 30, 90)
    assert rig.row_count() == 30
    rig.store_rows(2, 30, 95)
    assert rig.row_count() == 95
    rig.restart()
    assert rig.row_count() == 95


@pytest.mark.parametrize("after", range(0, 40, 3))
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_write_that_fails_refuses_the_batch_and_nothing_else(rig: Rig, after: int, number: int) -> None:
    rig.store_rows(1, 0, 30)
    rig.disk.fault = Fault("write", after, number)
    try:
        rig.store_rows(2, 30, 90)
        stored = 90
    except CovectorError:
        stored = 30
    rig.disk.fault = None
    if rig.store.collection("c").read_only is None:
        assert rig.row_count() == stored
        rig.store_rows(2, 30, 90)
    rig.restart()
    assert rig.row_count() in (stored, 90)
    rig.store_rows(3 if stored == 90 or rig.row_count() == 90 else 2, 90, 100)


@pytest.mark.parametrize("after", range(5))
def test_a_sync_that_fails_makes_the_collection_read_only_until_a_restart(rig: Rig, after: int) -> None:
    rig.store_rows(1, 0, 30)
    rig.disk.fault = Fault("sync", after)
    with pytest.raises(Unavailable, match="read-only"):
        rig.store_rows(2, 30, 40)
    rig.disk.fault = None
    with pytest.raises(Unavailable, match="restart the server"):
        rig.store_rows(2, 30, 40)
    assert rig.row_count() == 30
    rig.restart()
    assert rig.row_count() == 30
    rig.store_rows(2, 30, 40)
    assert rig.row_count() == 40


def test_a_seal_that_failed_is_finished_by_a_restart(rig: Rig) -> None:
    rig.store_rows(1, 0, 30)
    rig.disk.fault = Fault("sync", after=5 + 8)  # the group's own files come first
    rig.store_rows(2, 30, 34)
    rig.disk.fault = None
    rig.restart()
    assert rig.row_count() == 34
    rig.store_rows(3, 34, 100)
    rig.committer.call(lambda: None).result()  # sealing follows the acknowledgement
    checkpoint = rig.store.collection("c").checkpoints["one"]
    assert checkpoint.counters.sealed_shard_count == checkpoint.full_shard_count() == 3


@pytest.mark.parametrize("after", range(5))
def test_a_publish_that_failed_half_way_leaves_a_store_that_zarr_reads(rig: Rig, after: int) -> None:
    rig.store_rows(1, 0, 21)
    publish = lambda: rig.store.publish(rig.store.collection("c"))  # noqa: E731
    rig.disk.fault = Fault("sync", after)
    failed = rig.committer.call(publish).exception()
    rig.disk.fault = None
    if after < 4:  # a sync for each array's index
        assert isinstance(failed, Unavailable)
        with pytest.raises(Unavailable, match="read-only"):
            rig.store_rows(2, 21, 30)
    rig.restart()
    rig.store_rows(2, 21, 30)
    directory = rig.store.collection("c").checkpoints["one"].directory
    for name in ("gradients", "scales", "row_ids", "trak_q"):
        assert zarr.open_array(directory / name, mode="r")[...].shape[0] == 0  # type: ignore[union-attr]
    rig.committer.call(publish).result()
    assert np.asarray(zarr.open_array(directory / "row_ids", mode="r")[...]).tolist() == list(range(30))


def test_a_refused_batch_takes_no_other_with_it(rig: Rig) -> None:
    other = WriterSpec("c", "other", "one")
    answers = [
        rig.committer.submit(SPEC, rows(1, 0, 10)),
        rig.committer.submit(other, batch_of(1, ["3", "x"], GRADIENTS[100:102])),
        rig.committer.submit(SPEC, rows(2, 10, 20)),
    ]
    assert answers[0].result().stored_row_count == 10
    with pytest.raises(Conflict, match="key '3' has another gradient"):
        answers[1].result()
    assert answers[2].result().stored_row_count == 10
    assert rig.row_count() == 20


def test_sequences_are_checked(rig: Rig) -> None:
    rig.store_rows(1, 0, 10)
    with pytest.raises(InvalidInput, match="next is 2"):
        rig.store_rows(3, 10, 20)
    with pytest.raises(Conflict, match="other content"):
        rig.store_rows(1, 10, 20)
    rig.store_rows(1, 0, 10)
    rig.store_rows(2, 10, 20)
    assert rig.committer.submit(SPEC, rows(1, 0, 10)).result().duplicate_row_count == 10
    assert rig.row_count() == 20


def test_two_stores_never_open_one_directory(rig: Rig) -> None:
    with pytest.raises(Unavailable, match="another covector process"):
        Store(rig.data)
