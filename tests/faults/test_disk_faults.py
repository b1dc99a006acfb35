"""A disk that fails, fills up or runs out of descriptors: refused before the acknowledgement, and nothing else harmed.

In this process on a faulty disk where the moment matters, with a real server and real limits where it does not.
"""

import errno
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import grpc
import numpy as np
import pytest
from tests.faults.judging import ServerReader
from tests.faults.made_rows import DIM, Key, gradients_of, keys_of, metadata_of, stored_gradients_of, text_of
from tests.faults.nursery import Life, Nursery
from tests.faults.test_fuzzed_streams import Stub, valid_stream

import covector
from covector.blocks import decode_key
from covector.errors import CovectorError, Unavailable
from covector.testing import ServerProcess
from covector.types import Space
from covector_server.ingest.batch import Batch, WriterSpec
from covector_server.ingest.committer import Committer
from covector_server.limits import Limits
from covector_server.storage.disk import Disk
from covector_server.storage.store import Sizes, Store
from covector_server.testing.batches import batch_of
from covector_server.testing.faulty_disk import Fault, FaultyDisk

SIZES = Sizes(chunk_bytes=512, shard_bytes=2048)  # 4 rows and 16
PATIENCE_S = 30.0


class Rig:
    """A store with a collection, on a disk of one's own."""

    def __init__(self, data: Path, disk: Disk | None = None) -> None:
        self.store = Store(data, SIZES, disk)
        self.committer = Committer(self.store, Limits())
        self.committer.call(lambda: self.store.create_collection("c", Space(dim=DIM), True)).result(PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.committer.stop()
        self.store.close()

    def stored_keys(self) -> list[Key]:
        """All keys, after a look at every row."""
        with self.store.collection("c").reading() as view:
            if "one" not in view.checkpoints:
                return []
            tiles = list(view.checkpoints["one"].tiles(1000))
            keys = [decode_key(key) for tile in tiles for key in view.keys_of(tile.row_ids)]
            rows = np.concatenate([tile.rows.astype(np.float32) * tile.scales[:, None] for tile in tiles])
            np.testing.assert_array_equal(rows, stored_gradients_of(keys, "one"))
            return keys


def spec(writer: str) -> WriterSpec:
    return WriterSpec("c", writer, "one")


def batch(writer: str, sequence: int, row_count: int = 10) -> Batch:
    sent = keys(writer, sequence, row_count)
    texts, metadata = [text_of(key) for key in sent], [metadata_of(key) for key in sent]
    return batch_of(sequence, sent, gradients_of(sent, "one"), texts, metadata)


def keys(writer: str, sequence: int, row_count: int = 10) -> list[Key]:
    return keys_of(writer, range(sequence * 1000, sequence * 1000 + row_count))


@pytest.mark.parametrize("after", range(5))
def test_a_sync_that_fails_takes_the_group_in_flight_with_it(tmp_path: Path, after: int) -> None:
    disk = FaultyDisk()
    with Rig(tmp_path, disk) as rig:
        for writer in ("a", "b"):
            rig.committer.submit(spec(writer), batch(writer, 1)).result(PATIENCE_S)
        rig.committer.call(lambda: None).result(PATIENCE_S)  # a shard is sealed after the acknowledgement
        disk.fault = Fault("sync", after, await_write_s=0.5)
        first = rig.committer.submit(spec("a"), batch("a", 2))
        assert disk.failing.wait(PATIENCE_S)
        second = rig.committer.submit(spec("b"), batch("b", 2))
        for answer in (first, second):
            with pytest.raises(Unavailable, match="read-only"):
                answer.result(PATIENCE_S)
        with pytest.raises(Unavailable, match="restart the server"):
            rig.committer.submit(spec("c"), batch("c", 1)).result(PATIENCE_S)
        assert sorted(map(str, rig.stored_keys())) == sorted(map(str, keys("a", 1) + keys("b", 1)))
    assert disk.retried == []
    with Rig(tmp_path) as rig:
        assert sorted(map(str, rig.stored_keys())) == sorted(map(str, keys("a", 1) + keys("b", 1)))
        for writer in ("a", "b"):
            rig.committer.submit(spec(writer), batch(writer, 2)).result(PATIENCE_S)
        assert len(rig.stored_keys()) == 40


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("operation", ["write", "open"])
def test_ingest_resumes_when_the_disk_does(tmp_path: Path, operation: str, number: int) -> None:
    """Every write or open is refused for a while: no group is acknowledged, reads go on, and then all is well."""
    disk = FaultyDisk()
    with Rig(tmp_path, disk) as rig:
        rig.committer.submit(spec("a"), batch("a", 1)).result(PATIENCE_S)
        disk.fault = Fault(operation, number=number, lasting=True)
        for _ in range(3):
            with pytest.raises(Unavailable, match="free space or look at the disk, then send again"):
                rig.committer.submit(spec("a"), batch("a", 2, 30)).result(PATIENCE_S)
            assert rig.stored_keys() == keys("a", 1)
        disk.fault = None
        rig.committer.submit(spec("a"), batch("a", 2, 30)).result(PATIENCE_S)
        assert rig.stored_keys() == keys("a", 1) + keys("a", 2, 30)
    with Rig(tmp_path) as rig:
        assert rig.stored_keys() == keys("a", 1) + keys("a", 2, 30)


class Famine(Disk):
    """Memory runs out in every write, while ``is_on``."""

    is_on = False

    def write(self, descriptor: int, data: bytes | memoryview, offset_bytes: int) -> None:
        if self.is_on:
            raise MemoryError
        super().write(descriptor, data, offset_bytes)


def test_a_group_for_which_there_is_no_memory_is_refused_and_no_other(tmp_path: Path) -> None:
    disk = Famine()
    with Rig(tmp_path, disk) as rig:
        rig.committer.submit(spec("a"), batch("a", 1)).result(PATIENCE_S)
        disk.is_on = True
        with pytest.raises(Unavailable, match="out of memory"):
            rig.committer.submit(spec("a"), batch("a", 2)).result(PATIENCE_S)
        assert rig.stored_keys() == keys("a", 1)
        disk.is_on = False
        rig.committer.submit(spec("a"), batch("a", 2)).result(PATIENCE_S)
        assert rig.stored_keys() == keys("a", 1) + keys("a", 2)


def test_a_batch_for_which_there_is_no_memory_is_refused_and_sent_again(tmp_path: Path) -> None:
    servers = Nursery("covector_server.testing.killable:main", tmp_path / "server.log")
    hungry = ["--disk", "tests.faults.wrong_disks:HungryDisk"]
    try:
        server = servers.begin([*hungry, "--", "--data", str(tmp_path / "store"), "--listen", "127.0.0.1:0"])
        with covector.connect(address := address_of(server)) as client:
            collection = client.create_collection("c", Space(dim=DIM))
            stub = Stub(address)
            code, details = stub.status_of(valid_stream(1) + valid_stream(1)[1:2])  # memory runs out at the fifth batch
            stub.channel.close()
            assert (code, "out of memory" in details) == (grpc.StatusCode.UNAVAILABLE, True)
            stored = keys_of("a", range(600))
            with collection.writer("one") as writer:  # it sends again by itself
                for start in range(0, len(stored), 50):
                    add(writer, stored[start : start + 50])
                    writer.flush()
            judge(collection, stored)
    finally:
        servers.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(path)]
    mounted = subprocess.run(mount, check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.mark.parametrize("low_water_mib", [0, 1])
def test_a_full_disk_refuses_and_ingest_resumes_when_space_returns(small_disk: Path, low_water_mib: int) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(21 << 20))
    arguments = ["--shard-mib", "1", "--disk-low-water-mib", str(low_water_mib)]
    with ServerProcess(small_disk / "store", arguments=arguments) as server:
        with covector.connect(server.address) as client:
            collection = client.create_collection("c", Space(dim=DIM))
            stored, error = ingest_until_refused(collection, "a")
            assert "space" in str(error)
            judge(collection, stored)
            _, error = ingest_until_refused(collection, "b", retry_s=0.5)  # and still
            assert isinstance(error, Unavailable)
            judge(collection, stored)
            filler.unlink()
            more = keys_of("a", range(len(stored) + 2000))
            put(collection, more)
            judge(collection, more)
        server.kill()
        server.start()
        with covector.connect(server.address) as client:
            judge(client.collection("c"), more)


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_server_out_of_descriptors_refuses_and_loses_nothing(tmp_path: Path, goes_on: bool) -> None:
    servers = Nursery("covector_server.testing.killable:main", tmp_path / "server.log")
    listen = ["--", "--data", str(tmp_path / "store"), "--listen", "127.0.0.1:0"]
    stored = keys_of("a", range(50))
    try:
        server = servers.begin(["--open-files", "80", "--chunk-kib", "2", "--shard-kib", "8", *listen])
        with covector.connect(address_of(server)) as client:
            collection = client.create_collection("c", Space(dim=DIM))
            put(collection, stored)
            _, error = ingest_until_refused(collection, "b", retry_s=1.0, step=5000)  # of 64-row shards
            assert "open files" in str(error)
            if goes_on:
                judge(collection, stored)
                stored += keys_of("c", range(50))
                put(collection, stored[50:])
        server.kill()
        with covector.connect(address_of(servers.begin(listen))) as client:
            judge(client.collection("c"), stored)
            put(client.collection("c"), keys_of("b", range(5000)))
    finally:
        servers.close()


def address_of(server: Life) -> str:
    """Where a server listens, once it does."""
    return server.said.get(timeout=PATIENCE_S).removeprefix("listening on ")


def ingest_until_refused(
    collection: covector.Collection, stem: str, *, retry_s: float = 2.0, step: int = 500
) -> tuple[list[Key], CovectorError]:
    """Adds rows, ``step`` a batch, until an error comes; returns the keys acknowledged before it, and the error."""
    writer = collection.writer("one", on_conflict="ignore", retry_s=retry_s)
    try:
        with writer:
            for start in range(0, 400 * step, step):
                add(writer, keys_of(stem, range(start, start + step)))
                writer.flush()
    except CovectorError as error:
        return keys_of(stem, range(writer.acknowledged)), error
    raise AssertionError(f"{400 * step} rows were stored, and no error came")


def put(collection: covector.Collection, added: list[Key]) -> None:
    with collection.writer("one", on_conflict="ignore") as writer:
        for start in range(0, len(added), 500):
            add(writer, added[start : start + 500])


def add(writer: covector.Writer, added: list[Key]) -> None:
    texts, metadata = [text_of(key) for key in added], [metadata_of(key) for key in added]
    writer.add(added, gradients_of(added, "one"), texts=texts, metadata=metadata)


def judge(collection: covector.Collection, stored: list[Key]) -> None:
    """The rows are there, whole, and a query is answered at once."""
    reader = ServerReader(collection)
    for start in range(0, len(stored), 5000):
        part = stored[start : start + 5000]
        np.testing.assert_array_equal(reader.rows("one", part).gradients, stored_gradients_of(part, "one"))
    began_s = time.monotonic()
    assert collection.query(np.ones(DIM, dtype=np.float32), k=1)[0].proponents
    assert time.monotonic() - began_s < PATIENCE_S
