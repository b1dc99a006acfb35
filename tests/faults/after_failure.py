"""Opens what a failure of the power left, in a process of its own: a torn catalog can end whoever reads it.

``main`` takes the store's directory, the journals as they were at the failure, and a file for the findings. The store
must open, take new rows, and open again with everything in it; where the power failed before there was a store, one
must come to be.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.faults.journal import CollectionRows, Expected, History, Operation
from tests.faults.judging import judge_store
from tests.faults.made_rows import DIM, gradients_of, metadata_of, text_of

from covector.errors import CovectorError
from covector.types import Space
from covector_server.ingest.batch import WriterSpec
from covector_server.ingest.committer import Committer
from covector_server.limits import Limits
from covector_server.storage.store import Sizes, Store
from covector_server.testing.batches import batch_of

SIZES = Sizes(chunk_bytes=4 << 10, shard_bytes=64 << 10)
_AFTER = Operation("put", "c0", "one", "after", 0, 30)
_PATIENCE_S = 60.0


def main(arguments: Sequence[str]) -> int:
    """Writes the findings as a JSON list."""
    data, journals, findings = map(Path, arguments)
    expected = Expected(journals)
    expected.update()
    findings.write_text(json.dumps(judge(data, expected)))
    return 0


def judge(data: Path, expected: Expected) -> list[str]:
    """Stores rows, opens again, and compares."""
    try:
        _store_rows(data, _AFTER)
        store = Store(data, SIZES)
    except (CovectorError, OSError, TimeoutError) as error:
        return [f"the store does not open, or takes no rows: {type(error).__name__}: {error}"]
    rows = expected.collections.setdefault(_AFTER.collection, CollectionRows())
    rows.gradients |= {(_AFTER.checkpoint, key): History([0]) for key in _AFTER.keys}
    try:
        return judge_store(expected, store)
    except CovectorError as error:
        return [f"a collection cannot be read: {type(error).__name__}: {error}"]
    finally:
        store.close()


def _store_rows(data: Path, rows: Operation) -> None:
    """Opens a store, and stores rows in it in two batches."""
    store = Store(data, SIZES)
    committer = Committer(store, Limits())
    try:
        committer.call(lambda: store.create_collection(rows.collection, Space(dim=DIM), True)).result(_PATIENCE_S)
        spec = WriterSpec(rows.collection, "after", rows.checkpoint)
        for sequence, start in enumerate(range(rows.start, rows.stop, 15), 1):
            keys = replace(rows, start=start, stop=start + 15).keys
            texts, metadata = [text_of(key) for key in keys], [metadata_of(key) for key in keys]
            batch = batch_of(sequence, keys, gradients_of(keys, rows.checkpoint), texts, metadata)
            committer.submit(spec, batch).result(_PATIENCE_S)
    finally:
        committer.stop()
        store.close()
