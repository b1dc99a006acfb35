"""Figures of approximate indexes: recall on unseen queries, time beside an exact scan, disk, and speed of the build.

    OMP_NUM_THREADS=1 python benchmarks/indexes.py --gradients DIR/gradients.npy --queries DIR/queries.npy
    OMP_NUM_THREADS=1 python benchmarks/indexes.py --rows 60000 --dim 4096
    OMP_NUM_THREADS=1 python benchmarks/indexes.py --gradients ... --queries ... --scorer trak --repeat 12

Without files the rows are made, as gradient_rows.py says. Queries are rows of the same kind that are not stored. All
runs in one process on one thread, without a wire. The time of a query is given beside an exact scan by this version,
and beside the time in which one thread reads the bytes of the rows from memory, which no exact scan on one thread can
beat. index_peer.py has the same of faiss's HNSW.

A scorer that learns is fitted first, with its defaults; TRAK's Q is made, uniform from 0.05 to 1. A query then begins
with a product with A, whichever way it is answered: ``stages`` leaves it out of both times. ``--repeat n``: the rows
that are given are too few for a time to mean much, so they are stored n times, but for the first time with noise: to
each row four others are added, with random signs and 0.3 of its norm each. That is no other data, but it has about the
spectrum of what was given; the fit and the index are of all of it. ``--checkpoints n``: the same noise makes the rows
and queries of further checkpoints, of eta 1/2, 1/3 ...; each has an index, and queries sum all of them.

With ``--results DIR --what "5,200 LoRA gradients"`` the figures go into indexes.json and indexes.md there.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gradient_rows import BATCH_ROWS, made_rows
from index_report import add_arguments, report
from one_thread import read_rate, timed

from covector.types import Space
from covector_server.fit.cache import FitCache
from covector_server.fit.spec import FitSpec
from covector_server.index.cache import IndexCache
from covector_server.index.contract import Spec
from covector_server.index.kinds import kinds
from covector_server.ingest.batch import WriterSpec
from covector_server.ingest.committer import Committer
from covector_server.jobs.fitting import Fitter
from covector_server.jobs.index_building import Place, build_index
from covector_server.jobs.index_rules import rule_of
from covector_server.jobs.operations import Operations
from covector_server.limits import Limits
from covector_server.query import choosing
from covector_server.query.cancellation import never
from covector_server.query.engine import top_k
from covector_server.query.fitted import needs_fit, with_fit
from covector_server.query.question import CheckpointChoice, Question, TopKAnswer
from covector_server.storage.index_files import list_index
from covector_server.storage.store import Store
from covector_server.testing.batches import batch_of

STAGES_TIMES = 20
NOISE_ROWS, NOISE_SHARE = 4, 0.3
CHECKPOINTS = ("one", "two", "three", "four")
FIT_BYTES = 4 << 30
FIT_WAIT_S = 3600.0

Ask = Callable[[slice, int, bool], TopKAnswer]  # some of the queries, k, whether exactly


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
        fill(store, pieces, queries.shape[1], given.checkpoints)
        for scorer in given.scorer:
            fit(store, scorer)
        figures = [measure(store, queries, kind, scorer, given) for kind in given.kind for scorer in given.scorer]
        store.close()
    report(figures, given)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Figures of approximate indexes.")
    parser.add_argument("--gradients", type=Path, help="float[rows, dim], .npy; made where it is not given")
    parser.add_argument("--queries", type=Path, help="float[queries, dim], .npy; the last of the rows without")
    parser.add_argument("--take", type=int, help="use so many of the rows alone")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="store the rows N times, with noise")
    parser.add_argument("--checkpoints", type=int, default=1, metavar="N", help="sum over so many")
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--kind", nargs="+", default=kinds())
    parser.add_argument("--scorer", nargs="+", default=["dot", "cosine"])
    parser.add_argument("--recall", type=float)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--save", type=Path, metavar="DIR", help="write made rows there, for index_peer.py, and stop")
    parser.add_argument("--tmp", type=Path, help="where the store is made")
    add_arguments(parser)
    return parser.parse_args()


def rows_and_queries(given: argparse.Namespace) -> tuple[Iterator[np.ndarray], np.ndarray]:
    """The rows in batches, and float32[200, dim]."""
    if given.gradients is None:
        return made_rows(given.rows, given.dim, 0), next(made_rows(200, given.dim, 1))
    rows = repeated(np.load(given.gradients, mmap_mode="r")[: given.take], given)
    if given.queries is None:
        rows, queries = rows[:-200], np.array(rows[-200:])
    else:
        queries = np.load(given.queries)
    starts = range(0, len(rows), BATCH_ROWS)
    return (np.array(rows[start : start + BATCH_ROWS]) for start in starts), queries.astype(np.float32)


def repeated(rows: np.ndarray, given: argparse.Namespace) -> np.ndarray:
    """The rows, and after them the same with noise: float16, as often as is asked for."""
    if given.repeat == 1:
        return rows
    if given.queries is None:
        sys.exit("--repeat needs --queries: a repeated row is no unseen query")
    rng, wide = np.random.default_rng(5), np.array(rows, dtype=np.float32)
    whole = np.empty((given.repeat * len(wide), wide.shape[1]), dtype=np.float16)
    whole[: len(wide)] = wide
    for start in range(len(wide), len(whole), len(wide)):
        whole[start : start + len(wide)] = with_noise(wide, rng)
    return whole


def with_noise(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float32[n, dim]: to each row others are added."""
    noisy = rows.astype(np.float32)
    norms = np.linalg.norm(noisy, axis=1, keepdims=True)
    unit = noisy / norms
    for _ in range(NOISE_ROWS):
        signs = rng.choice(np.array([-1, 1], dtype=np.float32), (len(rows), 1))
        noisy += NOISE_SHARE * signs * norms * unit[rng.permutation(len(rows))]
    return noisy


def fill(store: Store, pieces: Iterator[np.ndarray], dim: int, checkpoint_count: int) -> None:
    committer, first = Committer(store, Limits()), 0
    committer.call(lambda: store.create_collection("c", Space(dim=dim), False)).result()
    rng = np.random.default_rng(6)
    for sequence, piece in enumerate(pieces, 1):
        keys = list(range(first, first + len(piece)))
        for number in range(checkpoint_count):
            trak_q = rng.uniform(0.05, 1.0, len(piece)).astype(np.float32)
            batch = batch_of(sequence, keys, with_noise(piece, rng) if number else piece, trak_q=trak_q)
            spec = WriterSpec("c", f"writer-{number}", CHECKPOINTS[number], eta=1 / (1 + number))
            committer.submit(spec, batch).result()
        first += len(piece)
    committer.stop()


def fit(store: Store, scorer: str) -> None:
    """Learns what a scorer needs, if it needs anything."""
    if not needs_fit(Question(vectors=np.empty((1, 1, 1), np.float32), scorer=scorer)):
        return
    committer = Committer(store, Limits())
    operations = Operations(store, committer)
    began_s = time.perf_counter()
    started = Fitter(store, committer, operations, Limits(), FIT_BYTES).start("c", FitSpec(method=scorer))
    ended = operations.wait(started.id, FIT_WAIT_S)
    print(f"{scorer}: {ended.state} {ended.error_message} in {time.perf_counter() - began_s:.0f} s", file=sys.stderr)
    operations.stop()
    committer.stop()


def measure(store: Store, queries: np.ndarray, kind: str, scorer: str, given: argparse.Namespace) -> dict[str, Any]:
    collection = store.collection("c")
    with collection.reading() as view:
        checkpoint = view.checkpoints["one"]
        names = CHECKPOINTS[: given.checkpoints]
        rng = np.random.default_rng(7)
        asked = np.stack([with_noise(queries, rng) if number else queries for number in range(len(names))])
        parameters = {} if given.rank is None else {"rank": given.rank}
        spec = Spec(kind=kind, scorer=scorer, recall=given.recall, parameters=parameters)

        def list_it(record: Any) -> None:
            with store.catalog.write() as writer:
                list_index(writer, collection.record.id, record, 64)

        place = Place(collection.directory, view.space.dim, store.disk)
        began_cpu_s, began_s = time.process_time(), time.perf_counter()
        memory, fits = Memory(), FitCache(1 << 40)
        records = [
            build_index(place, one, rule_of(view, one, spec, fits, lambda: None), memory.report, list_it)
            for one in (view.checkpoints[name] for name in names)
        ]
        record = records[0]
        build_cpu_s, build_s = time.process_time() - began_cpu_s, time.perf_counter() - began_s
        row_bytes = 2 * view.space.dim * checkpoint.row_count * len(names)
        cache = IndexCache(1 << 40)
        choosing.index_cost = lambda *asked: 0.0  # type: ignore[assignment]

        def ask(some: slice, k: int, exact: bool) -> TopKAnswer:
            choices = [CheckpointChoice(name) for name in names]
            question = Question(vectors=asked[:, some], scorer=scorer, exact=exact, checkpoints=choices)
            question = with_fit(view, question, fits, never) if needs_fit(question) else question
            return top_k(view, question, k, indexes=cache)

        figures = {
            "kind": kind,
            "scorer": scorer,
            "rows": checkpoint.row_count,
            "checkpoints": len(names),
            "dim": view.space.dim,
            "parameters": record.parameters,
            "oversampling": record.oversampling,
            "measured by the build": record.recall,
            "recall@10": recall(ask, 10, "proponents"),
            "recall@100": recall(ask, 100, "proponents"),
            "bottom-10": recall(ask, 10, "opponents"),
            "disk / rows": sum(record.size_bytes for record in records) / row_bytes,
            "MB of fp16 / CPU-second": row_bytes / build_cpu_s / 1e6,
            "build_s": build_s,
            "anonymous memory of the build, MB": memory.peak_bytes / 1e6,
        }
        read_s = row_bytes / (read_rate() * 1e9)
        exact_s = timed(partial(ask, slice(0, 1), 10, True))
        for k in (10, 100):
            index_s = timed(partial(ask, slice(0, 1), k, False))
            figures[f"time, k = {k}, / reading the rows"] = index_s / read_s
            figures[f"time, k = {k}, / exact scan"] = index_s / exact_s
            figures[f"stages, k = {k}, / exact scan"] = stages_s(ask, k, False) / stages_s(ask, k, True)
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


def recall(ask: Ask, k: int, end: str) -> float:
    found, exact = (ask(slice(None), k, is_exact) for is_exact in (False, True))
    assert found.index
    assert not exact.index
    shares = [
        len(set(getattr(one, end).keys) & set(getattr(other, end).keys)) / k
        for one, other in zip(found.results, exact.results, strict=True)
    ]
    return float(np.mean(shares))


def stages_s(ask: Ask, k: int, exact: bool) -> float:
    """The least time of the stages of a query, in seconds, after what it takes to prepare it."""
    answers = (ask(slice(place, place + 1), k, exact) for place in range(STAGES_TIMES))
    return min(sum(stage.seconds for stage in answer.stages) for answer in answers)


if __name__ == "__main__":
    main()
