"""Erased rows are in no file of filter postings; what is left is indexed again."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covector.types import Space
from covector_server.ingest.batch import WriterSpec
from covector_server.ingest.committer import Committer
from covector_server.ingest.deleting import delete_rows
from covector_server.jobs.compaction import Compaction, Rules
from covector_server.jobs.erase_postings import postings_eraser
from covector_server.jobs.operations import Progress
from covector_server.jobs.postings import PostingsIndexer
from covector_server.limits import Limits
from covector_server.query.engine import count_rows
from covector_server.storage.collection import StoredCollection
from covector_server.storage.store import Store
from covector_server.testing.batches import batch_of

SECRET = "a secret value"


@dataclass
class Rig:
    """600 rows with metadata, indexed; row 7 has the secret, and is deleted."""

    store: Store
    committer: Committer
    collection: StoredCollection
    indexer: PostingsIndexer

    def exclusive(self, work: Callable[[], Any]) -> Any:
        return self.committer.call(work).result()

    def compact(self, report: Callable[[int, int], None] = lambda done, total: None) -> None:
        erasers = [postings_eraser(self.store, self.exclusive)]
        Compaction(self.store, self.collection, self.exclusive, Rules(), erasers).run(Progress(report))

    def index(self) -> None:
        for _ in range(4):
            self.indexer.step()

    def files(self) -> list[Path]:
        return sorted((self.collection.directory / "postings").iterdir())


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    store = Store(tmp_path / "store")
    committer = Committer(store, Limits())
    committer.call(lambda: store.create_collection("c", Space(dim=4), False)).result()
    collection = store.collection("c")
    made = Rig(store, committer, collection, PostingsIndexer(store, committer, Limits()))
    metadata = [{"source": SECRET if row == 7 else f"source {row % 3}"} for row in range(600)]
    committer.submit(WriterSpec("c", "w", None), batch_of(1, list(range(600)), None, None, metadata)).result()
    made.index()
    assert any(SECRET.encode() in path.read_bytes() for path in made.files())
    made.exclusive(lambda: delete_rows(store, collection, np.array([7])))
    yield made
    committer.stop()
    store.close()


def test_postings_of_erased_rows_go(rig: Rig) -> None:
    rig.compact()
    for turn in range(2):
        found = [path for path in rig.store.data.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
        assert found == []
        with rig.collection.reading() as view:
            assert count_rows(view, {"source": SECRET}, limits=Limits()) == 0
            assert count_rows(view, {"source": "source 1"}, limits=Limits()) == 199
        if turn == 0:
            rig.index()
    assert rig.files()


def test_files_that_a_snapshot_names_stay_until_it_is_done(rig: Rig) -> None:
    before, finish, reached = rig.files(), threading.Event(), threading.Event()

    def snapshot() -> None:
        with rig.store.pins.pinned():
            reached.set()
            assert finish.wait(30)
            assert rig.files() == before

    with ThreadPoolExecutor(2) as running:
        copying = running.submit(snapshot)
        assert reached.wait(30)
        erase = postings_eraser(rig.store, rig.exclusive)
        erasing = running.submit(erase, rig.collection, np.array([7]), lambda: None)
        threading.Event().wait(0.3)
        assert not erasing.done()
        finish.set()
        copying.result(30)
        erasing.result(30)
    assert rig.files() == []


def test_a_file_that_waits_to_be_removed_lends_nobody_its_number(rig: Rig) -> None:
    (old,) = rig.collection.postings.files
    with rig.store.pins.pinned():
        rig.store.pins.when_unpinned(lambda: rig.collection.postings.remove([old.number]))
        with rig.collection.changing:
            rig.collection.postings.forget([old.number])
        assert rig.collection.postings.next_number() > old.number
