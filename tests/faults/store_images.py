"""A small store with something of everything, and what its bytes mean, worked out apart from the code that checks them.

Three collections: ``many`` has two checkpoints with sealed shards, a tail, a replaced row, texts, metadata, supplements
and rows without gradients; ``few`` one checkpoint with less than a chunk; ``none`` nothing. ``crashed`` is the store's
directory as a kill leaves it, tails unpublished; ``closed`` as a graceful stop does.
"""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from covector.types import Space
from covector_server.ingest.batch import WriterSpec
from covector_server.ingest.committer import Committer
from covector_server.limits import Limits
from covector_server.storage.layout import checkpoint_layouts
from covector_server.storage.store import Sizes, Store
from covector_server.testing.batches import batch_of

DIM = 8
SIZES = Sizes(chunk_bytes=2 * DIM * 4, shard_bytes=2 * DIM * 16)
CHUNK_ROWS, SHARD_ROWS, ROWS = 4, 16, 54
ARRAYS = ("gradients", "scales", "row_ids", "trak_q")


def make(directory: Path) -> tuple[Path, Path]:
    """(crashed, closed)."""
    data = directory / "store"
    store = Store(data, SIZES)
    committer = Committer(store, Limits())
    rng = np.random.default_rng(0)
    for name in ("many", "few", "none"):
        committer.call(functools.partial(store.create_collection, name, Space(dim=DIM), False)).result()
    for checkpoint in ("one", "two"):
        gradients = rng.standard_normal((ROWS, DIM)).astype(np.float32)
        spec = WriterSpec("many", f"writer {checkpoint}", checkpoint, 0.5)
        for sequence, start in enumerate(range(0, ROWS, 9), 1):
            rows = range(start, start + 9)
            batch = batch_of(
                sequence,
                [f"key {row}" if row % 2 else row for row in rows],
                gradients[start : start + 9],
                [None if row % 5 == 0 else f"text of {row} " * 9 for row in rows],
                [{"number": row, "odd": bool(row % 2)} for row in rows],
            )
            committer.submit(spec, batch).result()
    replacing = WriterSpec("many", "replacer", "one", 0.5, on_conflict="replace")
    committer.submit(replacing, batch_of(1, ["key 3", 10], np.ones((2, DIM)))).result()
    late = batch_of(1, ["key 5", "no gradient"], None, ["late " * 30, "alone"])
    committer.submit(WriterSpec("many", "texts", None), late).result()
    few = batch_of(1, ["a", "b", "c"], rng.standard_normal((3, DIM)))
    committer.submit(WriterSpec("few", "writer", "one", 1.0), few).result()
    committer.call(lambda: None).result()  # sealing follows the acknowledgement
    shutil.copytree(data, directory / "crashed")
    committer.stop()
    store.close()
    return directory / "crashed", data


def contents(data: Path) -> dict[str, Any]:
    """All that a reader sees of a store. It is opened, and so changed: give it a copy."""
    store = Store(data, SIZES)
    try:
        return {collection.record.name: _contents_of(collection) for collection in store.collections()}
    finally:
        store.close()


def _contents_of(collection: Any) -> dict[str, Any]:
    with collection.reading() as view:
        ids = np.arange(view.row_id_count)
        found: dict[str, Any] = {"details": view.details_of(ids), "fields": dict(view.fields)}
        for name, checkpoint in view.checkpoints.items():
            here = ids[checkpoint.has(ids)]
            tile = checkpoint.gather(here)
            columns = (here, tile.rows, tile.scales, tile.row_ids, tile.trak_q)
            found[name] = [column.tobytes() for column in columns]
        return found


def row_counts(data: Path) -> dict[tuple[str, str], int]:
    """Committed rows by (collection id, checkpoint id), from a copy of the catalog that LMDB itself reads."""
    from covector_server.metadata.catalog import numbers
    from covector_server.metadata.lmdb_catalog import LmdbCatalog

    copy = data.with_name(data.name + " catalog")
    shutil.copy(data / "catalog.lmdb", copy)
    catalog = LmdbCatalog(copy)
    with catalog.read() as reader:
        found = {
            tuple(map(str, numbers(key))): json.loads(value)["row_count"]
            for key, value in reader.scan("checkpoint_counters")
        }
    catalog.close()
    return found  # type: ignore[return-value]


def is_live(path: str, offset: int, counts: dict[tuple[str, str], int], *, published: bool) -> bool:
    """Whether a byte of a file other than the catalog means anything."""
    parts = path.split("/")
    if parts[0] != "collections":
        return False
    if "zarr.json" in parts or parts[2] == "rows":
        return True  # a log's files end with their last block
    layouts = {layout.name: layout for layout in checkpoint_layouts(DIM, CHUNK_ROWS, SHARD_ROWS)}
    layout, shard = layouts[parts[4]], int(parts[6])
    rows = min(counts[parts[1], parts[2]] - shard * layout.shard_rows, layout.shard_rows)
    if rows == layout.shard_rows:
        return True
    chunk, rest = divmod(rows, layout.chunk_rows)
    if published:
        chunks = chunk + (rest > 0)
        return offset < chunks * layout.stride_bytes or offset >= layout.index_offset_bytes
    return offset < chunk * layout.stride_bytes + rest * layout.row_bytes
