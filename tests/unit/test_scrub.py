"""The scrubber finds what is damaged in an open store, at its rate, and is not fooled by what changes meanwhile."""

import shutil
from pathlib import Path

import lmdb
import numpy as np
import pytest
from tests.faults.store_images import DIM, SIZES, make

from covector.types import Space
from covector_server.ingest.batch import WriterSpec
from covector_server.ingest.committer import Committer
from covector_server.jobs.scrub import STEP_BYTES, Scrubber
from covector_server.jobs.scrub_pieces import Reading
from covector_server.limits import Limits
from covector_server.storage.damage import DamageLog
from covector_server.storage.store import Store
from covector_server.testing.batches import batch_of


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("scrub"))[0]


class Scrubbed:
    """A store that is open, its scrubber, and a clock that tests move."""

    def __init__(self, data: Path, bytes_per_s: int = 1 << 40) -> None:
        self.data = data
        self.store = Store(data, SIZES)
        self.log = DamageLog(100)
        self.now_s = 0.0
        self.scrubber = Scrubber(self.store.catalog, data, self.log, bytes_per_s, lambda: self.now_s)

    def round(self) -> int:
        """Runs to the end of the round and returns the bytes it read."""
        rounds = self.scrubber.progress.round_count
        while self.scrubber.progress.round_count == rounds:
            self.now_s += 1
            self.scrubber.step()
        return self.scrubber.progress.checked_bytes


@pytest.fixture
def scrubbed(image: Path, tmp_path: Path):
    made = Scrubbed(shutil.copytree(image, tmp_path / "store"))
    yield made
    made.store.close()


def spoil(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 16]))


def test_a_sound_store_is_read_whole_and_clean(scrubbed: Scrubbed) -> None:
    first = scrubbed.round()
    assert scrubbed.round() == first
    assert first > (54 + 2 + 54 + 3) * (DIM * 2 + 4 + 8 + 4)
    assert scrubbed.log.found() == []
    assert scrubbed.scrubber.progress.round_count == 2
    assert scrubbed.scrubber.progress.total_bytes == first


@pytest.mark.parametrize(
    ("path", "offset", "checkpoint", "row_count"),
    [
        ("collections/1/1/0/gradients/c/0/0", 70, "one", 4),
        ("collections/1/1/0/gradients/c/3/0", 3, "one", 4),
        ("collections/1/2/0/gradients/c/3/0", 68 + 20, "two", 2),  # the tail
        ("collections/1/1/0/scales/c/1", 9, "one", 16),
        ("collections/1/1/0/row_ids/c/3", 9, "one", 8),
        ("collections/1/1/0/trak_q/c/0", 64, "one", 16),  # the checksum itself
        ("collections/1/2/0/gradients/c/1/0", 4 * 68 + 5, "two", 0),  # the index
        ("collections/1/rows/00000000.blocks", 30, "", 9),
        ("collections/2/rows/00000000.blocks", 100, "", 3),
    ],
)
def test_damage_is_remembered_once(scrubbed: Scrubbed, path: str, offset: int, checkpoint: str, row_count: int) -> None:
    spoil(scrubbed.data / path, offset)
    scrubbed.round()
    scrubbed.round()
    ((collection, damage),) = scrubbed.log.found()
    assert (damage.path, damage.checkpoint, damage.row_count) == (path, checkpoint, row_count)
    assert collection == {"1": "many", "2": "few"}[path.split("/")[1]]


def test_a_missing_file_is_damage(scrubbed: Scrubbed) -> None:
    (scrubbed.data / "collections/1/1/0/scales/c/0").unlink()
    scrubbed.round()
    ((_, damage),) = scrubbed.log.found()
    assert "No such file" in damage.message
    assert damage.row_count == 16


def test_a_catalog_value_is_damage(image: Path, tmp_path: Path) -> None:
    data = shutil.copytree(image, tmp_path / "store")
    with lmdb.open(str(data / "catalog.lmdb"), subdir=False, max_dbs=32, map_size=1 << 40) as environment:
        table = environment.open_db(b"writers")
        with environment.begin(write=True, db=table) as transaction:
            key, value = next(iter(transaction.cursor()))
            transaction.put(key, value[:-1] + b"?")
    scrubbed = Scrubbed(data)
    scrubbed.round()
    ((_, damage),) = scrubbed.log.found()
    assert damage.path == "catalog.lmdb"
    assert "writers" in damage.message
    scrubbed.store.close()


def test_rows_that_come_meanwhile_are_no_damage(scrubbed: Scrubbed) -> None:
    """Between any two reads the store grows: the tail's chunk fills, shards are sealed."""
    committer = Committer(scrubbed.store, Limits())
    rng = np.random.default_rng(1)
    spec = WriterSpec("many", "during", "one", 0.5)
    sequence = 0
    scrubbed.scrubber._bytes_per_s = 1  # a read a step
    while scrubbed.scrubber.progress.round_count == 0:
        scrubbed.now_s += 600
        scrubbed.scrubber.step()
        sequence += 1
        keys = [f"new {sequence} {row}" for row in range(3)]
        committer.submit(spec, batch_of(sequence, keys, rng.standard_normal((3, DIM)))).result()
    assert sequence >= 10
    assert scrubbed.log.found() == []
    committer.stop()


def test_a_collection_that_goes_is_no_damage(scrubbed: Scrubbed) -> None:
    scrubbed.scrubber._bytes_per_s = 1
    for _ in range(12):
        scrubbed.now_s += 300
        scrubbed.scrubber.step()
    scrubbed.store.delete_collection("many")
    scrubbed.store.create_collection("other", Space(dim=DIM), False)
    scrubbed.scrubber._bytes_per_s = 1 << 40
    scrubbed.round()
    assert scrubbed.log.found() == []


def test_the_rate_holds(image: Path, tmp_path: Path) -> None:
    scrubbed = Scrubbed(shutil.copytree(image, tmp_path / "store"), bytes_per_s=500)
    assert not scrubbed.scrubber.step()
    read = []
    for _ in range(10):
        scrubbed.now_s += 1
        before = scrubbed.scrubber.progress.checked_bytes
        scrubbed.scrubber.step()
        read.append(scrubbed.scrubber.progress.checked_bytes - before)
    largest = max(path.stat().st_size for path in scrubbed.data.rglob("*.blocks"))
    assert 0 < sum(read) <= 10 * 500 + largest
    scrubbed.now_s += 1e9  # a long sleep does not earn more than a step
    scrubbed.scrubber.step()
    assert scrubbed.scrubber._allowance_bytes <= STEP_BYTES
    scrubbed.store.close()


def test_no_rate_is_off(image: Path, tmp_path: Path) -> None:
    scrubbed = Scrubbed(shutil.copytree(image, tmp_path / "store"), bytes_per_s=0)
    scrubbed.now_s += 1e6
    assert not scrubbed.scrubber.step()
    scrubbed.store.close()


def test_an_empty_store(tmp_path: Path) -> None:
    scrubbed = Scrubbed(tmp_path / "store")
    scrubbed.round()
    assert scrubbed.log.found() == []
    scrubbed.store.close()


def test_reading_returns_what_is_there(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(100_000)
    (tmp_path / "file").write_bytes(data)
    reading = Reading(tmp_path)
    for offset, size in [(0, 10), (4090, 9000), (99_990, 50), (200_000, 5)]:
        assert reading.read("file", offset, size) == data[offset : offset + size]
    reading.close()


def test_a_small_store_is_not_read_all_the_time(scrubbed: Scrubbed) -> None:
    scrubber = Scrubber(
        scrubbed.store.catalog, scrubbed.store.data, scrubbed.log, 32 << 20, lambda: scrubbed.now_s, round_s_min=60
    )
    rounds = []
    for _ in range(200):
        scrubbed.now_s += 1
        scrubber.step()
        rounds.append(scrubber.progress.round_count)
    assert rounds[10] == 1
    assert 3 <= rounds[-1] <= 4
