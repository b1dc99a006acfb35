"""A store to make snapshots of: small shards, small files of the row log, writers that know what was acknowledged."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt

from covector.blocks import decode_key, scale_rows
from covector.types import Space
from covector_server.ingest.batch import WriterSpec
from covector_server.ingest.committer import Committer
from covector_server.jobs.maintenance import Maintenance
from covector_server.limits import Limits
from covector_server.storage.disk import Disk
from covector_server.storage.restore import restore
from covector_server.storage.snapshot import Snapshots
from covector_server.storage.store import Sizes, Store
from covector_server.testing.batches import batch_of

DIM = 4
SIZES = Sizes(chunk_bytes=64, shard_bytes=256, log_file_bytes=800, recent_keys=20)  # chunks of 8 rows, shards of 32
Content = dict[tuple[str, str], tuple[str | None, bytes]]  # (checkpoint, key) -> text, gradient


def gradient_of(checkpoint: str, key: str) -> npt.NDArray[np.float32]:
    """The only gradient that a row ever has."""
    seed = int.from_bytes(sha256(f"{checkpoint} {key}".encode()).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)


def expected_of(checkpoint: str, key: str) -> tuple[str, bytes]:
    rows, scales = scale_rows(gradient_of(checkpoint, key)[None])
    return f"text of {key}", rows.tobytes() + scales.tobytes()


@dataclass
class TestWriter:
    """Writes rows in batches of seeded sizes; ``batches`` grows with each answer."""

    __test__ = False
    name: str
    collection: str = "c"
    checkpoint: str = "one"
    sequence: int = 0
    row_count: int = 0
    batches: list[list[str]] = field(default_factory=list)  # keys of each acknowledged batch
    acknowledged: threading.Condition = field(default_factory=threading.Condition)

    def write(self, committer: Committer, row_count: int) -> None:
        keys = [f"{self.name}-{self.row_count + row}" for row in range(row_count)]
        gradients = np.stack([gradient_of(self.checkpoint, key) for key in keys])
        spec = WriterSpec(self.collection, self.name, self.checkpoint)
        batch = batch_of(self.sequence + 1, keys, gradients, [f"text of {key}" for key in keys])
        committer.submit(spec, batch).result()
        self.sequence, self.row_count = self.sequence + 1, self.row_count + row_count
        with self.acknowledged:
            self.batches.append(keys)
            self.acknowledged.notify_all()

    def wait_for_more(self, batches: int) -> None:
        """Returns when so many more batches are acknowledged."""
        with self.acknowledged:
            enough = len(self.batches) + batches
            assert self.acknowledged.wait_for(lambda: len(self.batches) >= enough, 60)


class Rig:
    """An open store with its committer and its snapshots."""

    def __init__(self, data: Path, disk: Disk | None = None, names: tuple[str, ...] = ("c",)) -> None:
        self.open(data, disk)
        for name in names:
            self.create_collection(name)

    def open(self, data: Path, disk: Disk | None = None) -> None:
        self.store = Store(data, SIZES, disk)
        self.maintenance = Maintenance(self.store)
        self.committer = Committer(self.store, Limits())
        self.maintenance.start(self.committer)
        self.snapshots = Snapshots(self.store)

    def create_collection(self, name: str) -> None:
        self.committer.call(lambda: self.store.create_collection(name, Space(dim=DIM), True)).result()

    def delete_collection(self, name: str) -> None:
        self.committer.call(lambda: self.store.delete_collection(name)).result()

    def settle(self) -> None:
        """Returns when what follows an acknowledgement, such as sealing, is done."""
        self.committer.call(lambda: None).result()

    def close(self) -> None:
        self.maintenance.stop()
        self.committer.stop()
        self.store.close()


@contextmanager
def opened(data: Path, disk: Disk | None = None) -> Iterator[Rig]:
    """A rig that is closed at the end."""
    rig = Rig(data, disk)
    try:
        yield rig
    finally:
        rig.close()


@contextmanager
def writing(rig: Rig, writers: list[TestWriter], seed: int) -> Iterator[None]:
    """While the block runs, each writer writes batch after batch in a thread of its own."""
    stop = threading.Event()

    def run(number: int, writer: TestWriter) -> None:
        rng = np.random.default_rng([seed, number])
        while not stop.is_set():
            writer.write(rig.committer, int(rng.integers(1, 12)))

    threads = [threading.Thread(target=run, args=each) for each in enumerate(writers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def content_of(store: Store, collection: str = "c") -> Content:
    """Every row of a collection as a reader sees it, each gradient's chunk checked."""
    found: Content = {}
    with store.collection(collection).reading() as view:
        for name, checkpoint in view.checkpoints.items():
            for tile in checkpoint.tiles(rows_max=100):
                details = view.details_of(tile.row_ids)
                for row, scale, detail in zip(tile.rows, tile.scales, details, strict=True):
                    key = str(decode_key(detail.key))
                    assert (name, key) not in found, "a row is there twice"
                    found[name, key] = (detail.text, row.tobytes() + scale.tobytes())
    return found


def assert_right(content: Content) -> None:
    """Each row has its own gradient and its own text."""
    for (checkpoint, key), value in content.items():
        assert value == expected_of(checkpoint, key), key


def files_of(directory: Path) -> dict[str, bytes]:
    """What every file below a directory holds."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def restored(rig: Rig, name: str, target: Path) -> Path:
    """A snapshot restored to ``target``."""
    restore(rig.snapshots.path(name), target, lambda done, total: None)
    return target
