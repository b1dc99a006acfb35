"""What an erased store must look like, by decoding everything that it holds: slow, and plain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from covector_server.metadata.catalog import TABLES, number
from covector_server.metadata.records import BlockRecord
from covector_server.storage.collection import StoredCollection
from covector_server.storage.key_runs import KeyRun
from covector_server.storage.store import Store

BLANKS = {"gradients": 0, "scales": 0, "trak_q": np.nan}


def assert_erased(store: Store, collection: StoredCollection) -> None:
    """No deleted row has a key, text, metadata or run entry, no dead position a value, and no file is left over."""
    _assert_rows_erased(collection)
    _assert_keys_erased(collection)
    for checkpoint in collection.checkpoints.values():
        for name, blank in BLANKS.items():
            for position in checkpoint.dead.tolist():
                found = checkpoint.arrays[name].read(position, position + 1, checkpoint.counters.row_count)
                np.testing.assert_array_equal(found, np.full_like(found, blank))
    with store.catalog.read() as reader:
        assert not list(reader.scan("retired_logs", number(collection.record.id)))
    assert_no_orphans(store)


def assert_no_orphans(store: Store) -> None:
    """Every file of the store is one that a committed state names."""
    for collection in store.collections():
        for checkpoint in collection.checkpoints.values():
            parent = checkpoint.directory.parent
            assert [path.name for path in parent.iterdir()] == [str(checkpoint.record.generation)]
        logs = {file for _, record in blocks(collection) for file in [record.file]} | {collection.counters.log_file}
        assert {int(path.stem) for path in (collection.directory / "rows").iterdir()} <= logs
        assert set((collection.directory / "keys").glob("*")) == set(collection.keys.run_paths)
    assert {path.name for path in store.data.iterdir()} <= {"catalog.lmdb", "catalog.lmdb-lock", "collections", "lock"}


def blocks(collection: StoredCollection) -> Iterator[tuple[int, BlockRecord]]:
    """All blocks that the catalog names, with their kinds."""
    with collection.catalog.read() as reader:
        for kind in (0, 1):
            for _, value in reader.scan("row_blocks", number(collection.record.id, kind)):
                yield kind, BlockRecord.decode(value)


def files_with(data: Path, marker: bytes) -> list[str]:
    """The files below a directory in which some bytes stand."""
    return [str(path) for path in sorted(data.rglob("*")) if path.is_file() and marker in path.read_bytes()]


def catalog_has(store: Store, marker: bytes) -> bool:
    """Whether some bytes stand in a value or key of the catalog."""
    with store.catalog.read() as reader:
        return any(marker in key or marker in value for table in TABLES for key, value in reader.scan(table))


def _assert_rows_erased(collection: StoredCollection) -> None:
    deleted = set(collection.deleted.tolist())
    for _, record in blocks(collection):
        block = collection.log.read(record)
        block.check()
        for place, row_id in enumerate(block.row_ids.tolist()):
            values = [column.value(place) for column in (block.keys, block.texts, block.metadata) if column is not None]
            assert row_id not in deleted or not any(values)


def _assert_keys_erased(collection: StoredCollection) -> None:
    deleted = set(collection.deleted.tolist())
    for path in collection.keys.run_paths:
        run = KeyRun(path)
        assert not deleted & set(run.entries_between(0, 1, 1)[1].tolist())
    in_memory = [*collection.keys._frozen, collection.keys._recent]
    assert not deleted & {row_id for table in in_memory for row_id in table.entries()[1].tolist()}
