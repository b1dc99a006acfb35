"""Erased rows are in no file of filter postings; what is left is indexed again."""

from pathlib import Path

import numpy as np

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
from covector_server.storage.store import Store
from covector_server.testing.batches import batch_of

SECRET = "a secret value"


def test_postings_of_erased_rows_go(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    committer = Committer(store, Limits())
    exclusive = lambda work: committer.call(work).result()  # noqa: E731
    indexer = PostingsIndexer(store, committer, Limits())
    exclusive(lambda: store.create_collection("c", Space(dim=4), False))
    collection = store.collection("c")
    metadata = [{"source": SECRET if row == 7 else f"source {row % 3}"} for row in range(600)]
    committer.submit(WriterSpec("c", "w", None), batch_of(1, list(range(600)), None, None, metadata)).result()
    for _ in range(4):
        indexer.step()
    files = list((collection.directory / "postings").iterdir())
    assert any(SECRET.encode() in path.read_bytes() for path in files)
    exclusive(lambda: delete_rows(store, collection, np.array([7])))
    erasers = [postings_eraser(store, exclusive)]
    Compaction(store, collection, exclusive, Rules(), erasers).run(Progress(lambda done, total: None))
    for turn in range(2):
        found = [path for path in store.data.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
        assert found == []
        with collection.reading() as view:
            assert count_rows(view, {"source": SECRET}, limits=Limits()) == 0
            assert count_rows(view, {"source": "source 1"}, limits=Limits()) == 199
        for _ in range(4 * (1 - turn)):
            indexer.step()
    assert list((collection.directory / "postings").iterdir())
    committer.stop()
    store.close()
