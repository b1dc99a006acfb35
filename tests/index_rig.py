"""What the tests of indexes share: rows as gradients are, a store in process, and exact search as the judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covector.blocks import decode_key, encode_key, scale_rows
from covector.types import Space
from covector_server.fit.cache import FitCache
from covector_server.index.cache import IndexCache
from covector_server.index.contract import Spec
from covector_server.ingest.batch import WriterSpec
from covector_server.ingest.committer import Committer
from covector_server.ingest.deleting import delete_rows
from covector_server.jobs.compaction import Compaction, Rules
from covector_server.jobs.indexing import Indexer
from covector_server.jobs.operations import Operations, Progress
from covector_server.limits import Limits
from covector_server.metadata.records import IndexRecord, OperationRecord
from covector_server.query.engine import top_k
from covector_server.query.question import Ends, Question, TopKAnswer
from covector_server.storage.collection import StoredCollection
from covector_server.storage.disk import Disk
from covector_server.storage.store import Sizes, Store
from covector_server.storage.view import Columns, Tile
from covector_server.testing.batches import batch_of

WAIT_S = 60.0
LIMITS = Limits()
COLUMNS = ("scales", "row_ids", "trak_q")


def decaying(row_count: int, dim: int, seed: int = 0, *, decay: float = 0.8) -> np.ndarray:
    """Rows whose deviation along the i-th of fixed directions falls as 1 / i**decay, and whose norms spread over two
    decades: float32[rows, dim]."""
    directions = np.linalg.qr(np.random.default_rng(77).standard_normal((dim, dim)))[0].astype(np.float32)
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((row_count, dim), dtype=np.float32) * np.arange(1, dim + 1, dtype=np.float32) ** -decay
    return (rows @ directions) * np.exp(rng.standard_normal((row_count, 1))).astype(np.float32)


class ArrayCheckpoint:
    """``view.PositionedCheckpoint`` on arrays: float16[rows, dim] at unit RMS, in chunks of 100 rows."""

    id, generation, name = 1, 0, "one"

    def __init__(self, rows: np.ndarray, scales: np.ndarray, dead: Sequence[int] = ()) -> None:
        self.rows, self.scales = rows, scales
        self.position_count = len(rows)
        self.dead = np.array(sorted(dead), dtype=np.int64)
        self.row_ids = np.arange(len(rows))
        self.trak_q = np.full(len(rows), np.nan, dtype=np.float32)

    @staticmethod
    def of(gradients: np.ndarray, dead: Sequence[int] = ()) -> ArrayCheckpoint:
        return ArrayCheckpoint(*scale_rows(gradients), dead)

    @property
    def row_count(self) -> int:
        return self.position_count - len(self.dead)

    def spans(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        while start < stop:
            end = min(start - start % 100 + 100, stop)
            yield start, end
            start = end

    def span(self, start: int, stop: int) -> Tile:
        return Tile(self.rows[start:stop], *(getattr(self.columns(start, stop), name) for name in COLUMNS))

    def columns(self, start: int, stop: int) -> Columns:
        return Columns(self.scales[start:stop], self.row_ids[start:stop], self.trak_q[start:stop])


class IndexRig:
    """A store of one collection, ``c``, its operations and indexes."""

    def __init__(self, data: Path, dim: int, *, disk: Disk | None = None, sizes: Sizes | None = None) -> None:
        self.data = data
        self.dim = dim
        self.disk = disk
        self.sizes = sizes or Sizes(chunk_bytes=16 << 10, shard_bytes=64 << 10)
        self.sequence = 0
        self.open()
        self.committer.call(lambda: self.store.create_collection("c", Space(dim=dim), True)).result()

    @property
    def collection(self) -> StoredCollection:
        return self.store.collection("c")

    def open(self) -> None:
        self.store = Store(self.data, self.sizes, self.disk)
        self.committer = Committer(self.store, LIMITS)
        self.operations = Operations(self.store, self.committer)
        self.cache = IndexCache(LIMITS.index_cache_bytes)
        self.fit_cache = FitCache(LIMITS.fit_cache_bytes)
        self.indexer = Indexer(
            self.store, self.committer, self.operations, LIMITS, fits=self.fit_cache, forget=self.cache.forget
        )

    def close(self) -> None:
        self.operations.stop()
        self.committer.stop()
        self.store.close()

    def restart(self) -> None:
        self.close()
        self.open()

    def add(
        self,
        first: int,
        gradients: np.ndarray,
        *,
        checkpoint: str = "one",
        metadata: Sequence[dict[str, Any]] | None = None,
    ) -> None:
        """Stores rows with the keys first, first + 1, ...; those that stand are replaced."""
        self.sequence += 1
        keys = list(range(first, first + len(gradients)))
        spec = WriterSpec("c", "writer", checkpoint, on_conflict="replace")
        self.committer.submit(spec, batch_of(self.sequence, keys, gradients, None, metadata)).result()

    def delete(self, keys: Sequence[int]) -> None:
        with self.collection.reading() as view:
            row_ids = view.row_ids_of([encode_key(key) for key in keys])
        self.committer.call(lambda: delete_rows(self.store, self.collection, row_ids)).result()

    def build(self, checkpoint: str = "one", **given: Any) -> OperationRecord:
        """The operation of a build that has ended."""
        record = self.indexer.start("c", checkpoint, Spec(**{"kind": "subspace", **given}))
        return self.operations.wait(record.id, WAIT_S)

    def compact(self, rules: Rules, **given: Any) -> dict[str, Any]:
        exclusive: Any = lambda work: self.committer.call(work).result()  # noqa: E731
        compaction = Compaction(self.store, self.collection, exclusive, rules, (), self.cache.forget)
        return compaction.run(given.get("progress") or Progress(lambda done, total: None))

    def records(self) -> list[IndexRecord]:
        return [status.record for status in self.indexer.indexes("c")]

    def directories(self) -> list[str]:
        root = self.collection.directory / "indexes"
        return sorted(path.name for path in root.iterdir()) if root.is_dir() else []

    def ask(self, queries: np.ndarray, k: int = 10, **given: Any) -> TopKAnswer:
        with self.collection.reading() as view:
            question = Question(vectors=np.asarray(queries, dtype=np.float32)[None], **given)
            return top_k(view, question, k, indexes=self.cache)


def keys_of(ends: Ends) -> tuple[list[Any], list[Any]]:
    """The keys of both ends, best first."""
    return [decode_key(key) for key in ends.proponents.keys], [decode_key(key) for key in ends.opponents.keys]


def recall(rig: IndexRig, queries: np.ndarray, k: int = 10, **given: Any) -> float:
    """The smaller of the shares of exact proponents and opponents that an answer by index has. Asserts that an index
    answered, and that the scores of what it found are the exact ones."""
    exact = rig.ask(queries, k, exact=True, **given)
    found = rig.ask(queries, k, **given)
    assert found.index, found.reason
    assert not exact.index
    return share_of(found, exact)


def share_of(found: TopKAnswer, exact: TopKAnswer) -> float:
    """The smaller of the shares of both ends of the exact answer that another has. Asserts that each row comes once, as
    many as there are, and that the scores of those in both are the same."""
    shares: list[list[float]] = [[], []]
    for one, other in zip(found.results, exact.results, strict=True):
        for place, (end, true) in enumerate(((one.proponents, other.proponents), (one.opponents, other.opponents))):
            scores = dict(zip(true.keys, true.scores.tolist(), strict=True))
            shares[place].append(len(scores.keys() & set(end.keys)) / max(len(scores), 1))
            assert len(end.keys) == len(true.keys) == len(set(end.keys))
            for key, score in zip(end.keys, end.scores.tolist(), strict=True):
                assert scores.get(key, score) == score
    return min(float(np.mean(share)) for share in shares)
