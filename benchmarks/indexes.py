"""Figures of approximate indexes: recall on unseen queries, time beside an exact scan, disk, and speed of the build.

    OMP_NUM_THREADS=1 python benchmarks/indexes.py --gradients DIR/gradients.npy --queries DIR/queries.npy
    OMP_NUM_THREADS=1 python benchmarks/indexes.py --rows 60000 --dim 4096

Without files the rows are made, as gradient_rows.py says. Queries are rows of the same kind that are not stored. All
runs in one process on one thread, without a wire. The time of a query is given beside an exact scan by this version,
and beside the time in which one thread reads the bytes of the rows from memory, which no exact scan on one thread can
beat. index_peer.py has the same of faiss's HNSW.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gradient_rows import BATCH_ROWS, made_rows

from covector.types import Space
from covector_server.index.cache import IndexCache
from covector_server.index.contract import Spec
from covector_server.index.kinds import kinds
from covector_server.ingest.batch import WriterSpec
from covector_server.ingest.committer import Committer
from covector_server.jobs.index_building import Place, build_index
from covector_server.limits import Limits
from covector_server.query import choosing
from covector_server.query.engine import top_k
from covector_server.query.question import Question, TopKAnswer
from covector_server.storage.index_files import list_index
from covector_server.storage.store import Store
from covector_server.testing.batches import batch_of

TIMES = 5


def main() -> None:
    given = parse_arguments()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        sys.exit("set OMP_NUM_THREADS=1: these are figures of one thread")
    pieces, queries = rows_and_queries(given)
    if given.save is not None:
        np.save(given.save / "rows.npy", np.concatenate(list(pieces)))
        np.save(given.save / "queries.npy", queries)
        return
    with tempfile.TemporaryDirectory(dir=given.tmp) as directory:
        store = Store(Path(directory) / "store")
        fill(store, pieces, queries.shape[1])
        figures = [measure(store, queries, kind, scorer, given) for kind in given.kind for scorer in given.scorer]
        store.close()
    print(json.dumps(figures, indent=2))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Figures of approximate indexes.")
    parser.add_argument("--gradients", type=Path, help="float[rows, dim], .npy; made where it is not given")
    parser.add_argument("--queries", type=Path, help="float[queries, dim], .npy; the last of the rows without")
    parser.add_argument("--take", type=int, help="use so many of the rows alone")
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--kind", nargs="+", default=kinds())
    parser.add_argument("--scorer", nargs="+", default=["dot", "cosine"])
    parser.add_argument("--recall", type=float)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--save", type=Path, metavar="DIR", help="write made rows there, for index_peer.py, and stop")
    parser.add_argument("--tmp", type=Path, help="where the store is made")
    return parser.parse_args()


def rows_and_queries(given: argparse.Namespace) -> tuple[Iterator[np.ndarray], np.ndarray]:
    """The rows in batches, and float32[200, dim]."""
    if given.gradients is None:
        return made_rows(given.rows, given.dim, 0), next(made_rows(200, given.dim, 1))
    rows = np.load(given.gradients, mmap_mode="r")[: given.take]
    if given.queries is None:
        rows, queries = rows[:-200], np.array(rows[-200:])
    else:
        queries = np.load(given.queries)
    starts = range(0, len(rows), BATCH_ROWS)
    return (np.array(rows[start : start + BATCH_ROWS]) for start in starts), queries.astype(np.float32)


def fill(store: Store, pieces: Iterator[np.ndarray], dim: int) -> None:
    committer, first = Committer(store, Limits()), 0
    committer.call(lambda: store.create_collection("c", Space(dim=dim), False)).result()
    for sequence, piece in enumerate(pieces, 1):
        batch = batch_of(sequence, list(range(first, first + len(piece))), piece)
        committer.submit(WriterSpec("c", "writer", "one"), batch).result()
        first += len(piece)
    committer.stop()


def measure(store: Store, queries: np.ndarray, kind: str, scorer: str, given: argparse.Namespace) -> dict[str, Any]:
    collection = store.collection("c")
    with collection.reading() as view:
        checkpoint = view.checkpoints["one"]
        parameters = {} if given.rank is None else {"rank": given.rank}
        spec = Spec(kind=kind, scorer=scorer, recall=given.recall, parameters=parameters)

        def list_it(record: Any) -> None:
            with store.catalog.write() as writer:
                list_index(writer, collection.record.id, record, 64)

        place = Place(collection.directory, view.space.dim, store.disk)
        began_cpu_s, began_s = time.process_time(), time.perf_counter()
        memory = Memory()
        record = build_index(place, checkpoint, spec, memory.report, list_it)
        build_cpu_s, build_s = time.process_time() - began_cpu_s, time.perf_counter() - began_s
        row_bytes = 2 * view.space.dim * checkpoint.row_count
        cache = IndexCache(1 << 40)
        choosing.index_cost = lambda *asked: 0.0  # type: ignore[assignment]

        def ask(some: np.ndarray, k: int, exact: bool) -> TopKAnswer:
            return top_k(view, Question(vectors=some[None], scorer=scorer, exact=exact), k, indexes=cache)

        figures = {
            "kind": kind,
            "scorer": scorer,
            "rows": checkpoint.row_count,
            "dim": view.space.dim,
            "parameters": record.parameters,
            "oversampling": record.oversampling,
            "measured by the build": record.recall,
            "recall@10": recall(ask, queries, 10, "proponents"),
            "recall@100": recall(ask, queries, 100, "proponents"),
            "bottom-10": recall(ask, queries, 10, "opponents"),
            "disk / rows": record.size_bytes / row_bytes,
            "MB of fp16 / CPU-second": row_bytes / build_cpu_s / 1e6,
            "build_s": build_s,
            "anonymous memory of the build, MB": memory.peak_bytes / 1e6,
        }
        read_s = row_bytes / (read_rate() * 1e9)
        exact_s = timed(lambda: ask(queries[:1], 10, True))
        for k in (10, 100):
            index_s = timed(lambda k=k: ask(queries[:1], k, False))
            figures[f"time, k = {k}, / reading the rows"] = index_s / read_s
            figures[f"time, k = {k}, / exact scan"] = index_s / exact_s
            figures[f"ms, k = {k}"] = 1e3 * index_s
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}


class Memory:
    """The most anonymous memory that was seen, above what there was in the beginning."""

    def __init__(self) -> None:
        self._began_bytes = anonymous_bytes()
        self.peak_bytes = 0

    def report(self, done: int, total: int) -> None:
        """Looks."""
        self.peak_bytes = max(self.peak_bytes, anonymous_bytes() - self._began_bytes)


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def recall(ask: Callable[[np.ndarray, int, bool], TopKAnswer], queries: np.ndarray, k: int, end: str) -> float:
    found, exact = ask(queries, k, False), ask(queries, k, True)
    assert found.index
    assert not exact.index
    shares = [
        len(set(getattr(one, end).keys) & set(getattr(other, end).keys)) / k
        for one, other in zip(found.results, exact.results, strict=True)
    ]
    return float(np.mean(shares))


def timed(work: Callable[[], object]) -> float:
    """The best time of a few, in seconds; once before, so that everything is in memory."""
    times = []
    for _ in range(TIMES + 1):
        began_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - began_s)
    return min(times[1:])


def read_rate() -> float:
    """GB/s at which one thread reads memory."""
    data = np.ones(1 << 26, dtype=np.uint64)
    return data.nbytes / timed(data.max) / 1e9


if __name__ == "__main__":
    main()
