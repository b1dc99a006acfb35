"""Makes the golden store of the present format: ``python tests/golden/make.py tests/golden/format-2``.

What it holds is a function of ``ROWS`` and of the seeds below, so that the test can say what must be found in it. A
store of a format that was released is never made again: a new format gets a directory of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.blocks import encode_key
from covector.types import GradientKind, Key, Space
from covector_server.ingest.batch import Batch, WriterSpec
from covector_server.ingest.committer import Committer
from covector_server.ingest.deleting import delete_rows
from covector_server.jobs.compaction import Compaction, Rules
from covector_server.jobs.erase_postings import postings_eraser
from covector_server.jobs.operations import Progress
from covector_server.jobs.postings import PostingsIndexer
from covector_server.limits import Limits
from covector_server.storage.store import Sizes, Store
from covector_server.testing.batches import batch_of

DIM = 12
ROWS = 100
SPACE = Space(dim=DIM)
KIND = GradientKind("loss", "token_mean", "none")


def key_of(row: int) -> Key:
    """Strings and integers, in turns."""
    return row if row % 3 else f"row {row} é"


def text_of(row: int) -> str | None:
    """Some rows have none."""
    return None if row % 5 == 0 else f"the text of row {row}"


def metadata_of(row: int) -> dict[str, str | int | bool | None]:
    """A field of each type."""
    return {"source": "even" if row % 2 == 0 else "odd", "number": row, "third": row % 3 == 0}


def gradients_of(checkpoint: int) -> npt.NDArray[np.float32]:
    """float32[ROWS, DIM], norms over sixteen orders of magnitude, row 7 all zero."""
    rng = np.random.default_rng(checkpoint)
    drawn = rng.standard_normal((ROWS, DIM)) * 10.0 ** rng.integers(-8, 8, (ROWS, 1))
    drawn[7] = 0
    return drawn.astype(np.float32)


def order_of(checkpoint: int) -> list[int]:
    """The rows' order of arrival at a checkpoint."""
    return [int(row) for row in np.random.default_rng(100 + checkpoint).permutation(ROWS)]


def make(data: Path) -> None:
    """Makes the store: two checkpoints in different orders, row 3 replaced, a row without gradients, a late text."""
    store = Store(data, Sizes(chunk_bytes=2 * DIM * 4, shard_bytes=2 * DIM * 32))
    committer = Committer(store, Limits())
    committer.call(lambda: store.create_collection("golden", SPACE, False)).result()
    for checkpoint in (1, 2):
        spec = WriterSpec("golden", f"writer {checkpoint}", f"epoch-{checkpoint}", checkpoint / 4, "ab" * 32, KIND)
        order, gradients = order_of(checkpoint), gradients_of(checkpoint)
        for sequence, start in enumerate(range(0, ROWS, 13), 1):
            rows = order[start : start + 13]
            batch = batch_of(
                sequence,
                [key_of(row) for row in rows],
                gradients[rows],
                [text_of(row) for row in rows],
                [metadata_of(row) for row in rows],
            )
            committer.submit(spec, batch).result()
    spec = WriterSpec("golden", "replacer", "epoch-2", 0.5, on_conflict="replace")
    committer.submit(spec, batch_of(1, [key_of(3)], np.full((1, DIM), 2.5))).result()
    spec = WriterSpec("golden", "texts", None)
    late = batch_of(1, [key_of(5), "no gradient"], None, ["a late text", "text alone"])
    committer.submit(spec, late).result()
    committer.stop()
    store.close()
    make_grown(data)


GROWN = 400
"""Rows of the collection ``grown``, which is in the stores of format 2 and later."""


def erased_of(row: int) -> bool:
    """Deleted, and compacted away."""
    return row % 7 == 2


def deleted_of(row: int) -> bool:
    """Deleted since."""
    return row % 11 == 5


def grown_gradients() -> npt.NDArray[np.float32]:
    """float32[GROWN, DIM]."""
    return np.random.default_rng(9).standard_normal((GROWN, DIM)).astype(np.float32)


def make_grown(data: Path) -> None:
    """Adds a collection with runs of the key table, postings, deleted rows, some of them erased, and keys that were
    written again after a delete."""
    sizes = Sizes(chunk_bytes=2 * DIM * 16, shard_bytes=2 * DIM * 64, log_file_bytes=4000, recent_keys=60)
    store = Store(data, sizes)
    committer = Committer(store, Limits())
    run = lambda work: committer.call(work).result()  # noqa: E731
    run(lambda: store.create_collection("grown", SPACE, False))
    collection = store.collection("grown")
    spec = WriterSpec("grown", "grower", "only", kind=KIND)
    for sequence, start in enumerate(range(0, GROWN, 50), 1):
        committer.submit(spec, _grown_batch(sequence, list(range(start, start + 50)))).result()
        maintain(store, committer, "grown")
    _delete(store, run, [row for row in range(GROWN) if erased_of(row)])
    exclusive: Any = run
    erasers = [postings_eraser(store, exclusive)]
    Compaction(store, collection, exclusive, Rules(0.2), erasers).run(Progress(lambda done, total: None))
    _delete(store, run, [row for row in range(GROWN) if deleted_of(row)])
    again = [row for row in range(20) if erased_of(row) or deleted_of(row)]
    committer.submit(spec, _grown_batch(9, again)).result()
    maintain(store, committer, "grown")
    committer.stop()
    store.close()


def maintain(store: Store, committer: Committer, name: str) -> None:
    """What the maintenance thread of a server does to keys and postings."""
    collection = store.collection(name)
    while (change := collection.keys.flush(collection.counters.next_row_id) or collection.keys.merge()) is not None:
        committer.call(partial(store.register_keys, collection, change)).result()
    indexer = PostingsIndexer(store, committer, Limits())
    while indexer.step():
        pass


def _grown_batch(sequence: int, rows: list[int]) -> Batch:
    return batch_of(
        sequence,
        [key_of(row) for row in rows],
        grown_gradients()[rows],
        [text_of(row) for row in rows],
        [metadata_of(row) for row in rows],
    )


def _delete(store: Store, run: Callable[[Callable[[], int]], int], rows: list[int]) -> None:
    collection = store.collection("grown")
    with collection.reading() as view:
        row_ids = view.row_ids_of([encode_key(key_of(row)) for row in rows])
    assert run(lambda: delete_rows(store, collection, row_ids)) == len(np.unique(row_ids[row_ids >= 0]))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
