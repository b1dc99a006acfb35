"""Figures of ingest that are bytes and growth: written, at rest, in memory; opening a large store, and adding to it."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ingest_client import COLLECTION, Plan, Task
from ingest_processes import (
    Client,
    MemoryWatch,
    ServerProcess,
    allocated_bytes,
    anonymous_bytes,
    clients,
    covector_server,
    fresh_directory,
    malloc,
    other_malloc,
    together,
    touch_memory,
)
from ingest_report import Figure, ratio, spread
from ingest_speed import DIM, Run, fresh_store, rate

import covector

SMALL_DIM = 64


def bytes_figures(run: Run) -> Iterator[Figure]:
    """Bytes that the server's process gave to the disk, from its start to its graceful end / bytes of gradients,
    scales, keys and texts that it was sent; and, after that end, blocks that the store occupies / raw float16."""
    for dim in (DIM, SMALL_DIM):
        for with_text in (True, False):
            written, at_rest = _bytes(run, Plan(dim, size_bytes=run.written_mib << 20, with_text=with_text))
            judged, text = dim == DIM, "with" if with_text else "without"
            yield Figure(
                f"bytes written / bytes ingested, {dim} dims, {text} text",
                written,
                at_most=1.05 if judged and with_text else None,
            )
            if not with_text:
                yield Figure(
                    f"bytes at rest / raw fp16, {dim} dims, without text", at_rest, at_most=1.02 if judged else None
                )


def _bytes(run: Run, plan: Plan) -> tuple[float, float]:
    with malloc(run.malloc), fresh_directory(run.directory) as directory, clients([None]) as senders:
        with covector_server(directory, dim=plan.dim) as server:
            sent = together(senders, [Task("generate", server.address, plan)])
            usage = server.stop()
        return usage.written_bytes / sent.size_bytes, allocated_bytes(directory) / (sent.row_count * 2 * plan.dim)


def memory_figures(run: Run) -> Iterator[Figure]:
    """RssAnon of the server, every 50 ms, while three clients make and send rows of 4096 dims as fast as they can.
    Judged under the same setting of malloc as the rates are; reported under the other."""
    yield _memory(run, run.malloc, at_most=512)
    if not run.quick:
        yield _memory(run, other_malloc(run.malloc))


def _memory(run: Run, setting: str, at_most: float | None = None) -> Figure:
    plans = [Plan(DIM, size_bytes=(run.memory_mib << 20) // 3, seed=seed) for seed in range(3)]
    with (
        malloc(setting),
        fresh_store(run) as server,
        clients([None] * 3) as senders,
        MemoryWatch(server.pid) as watch,
    ):
        idle_bytes = anonymous_bytes(server.pid)
        touch_memory(run.memory_mib + 512)
        sent = together(senders, [Task("generate", server.address, plan) for plan in plans])
    suffix = "" if setting == run.malloc else f", malloc {setting}"
    return Figure(
        f"server peak anonymous memory while ingesting {run.memory_mib / 1024:.3g} GiB, MiB{suffix}",
        watch.peak_bytes / (1 << 20),
        at_most=at_most,
        detail=f"idle {idle_bytes >> 20} MiB; at {rate(sent):.0f} MB/s",
    )


def open_figures(run: Run) -> Iterator[Figure]:
    """CPU of the server's process until it has listened, counted the rows, and answered a query of a checkpoint with
    one row in a collection of ``open_rows`` rows, minus the same where that one row is all there is."""
    with malloc(run.malloc), fresh_directory(run.directory) as directory:
        _fill(directory / "large", run.open_rows)
        _fill(directory / "empty", 0)
        large, empty = [], []
        for _ in range(run.rounds):
            large.append(_open_cpu_s(directory / "large"))
            empty.append(_open_cpu_s(directory / "empty"))
    yield spread(
        f"CPU to open {run.open_rows:,} rows and plan a query, beyond an empty store, s",
        [full - none for full, none in zip(large, empty, strict=True)],
        at_most=0.1,
        detail=f"CPU seconds: {statistics.median(large):.2f}, {statistics.median(empty):.2f}",
    )


def _fill(data: Path, row_count: int) -> None:
    data.mkdir()
    with covector_server(data, dim=SMALL_DIM) as server, clients([None]) as senders:
        if row_count:
            together(senders, [Task("generate", server.address, Plan(SMALL_DIM, row_count=row_count))])
        single = Plan(SMALL_DIM, row_count=1, seed=2)
        together(senders, [Task("generate", server.address, single, checkpoint="single")])


def _open_cpu_s(data: Path) -> float:
    with covector_server(data, dim=SMALL_DIM) as server, covector.connect(server.address) as client:
        collection = client.collection(COLLECTION)
        collection.count()
        collection.query(np.ones(SMALL_DIM, dtype=np.float32), 1, checkpoints="single")
        return server.cpu_s()


def growth_figures(run: Run) -> Iterator[Figure]:
    """Rows/s of ``window_rows`` prepared rows, sent straight after the store was filled to the mark, so that merges
    under way are paid for. Then rounds: a new store at the first mark, and the large one at the last, in turn."""
    seeds = itertools.count(1)
    first, last = run.curve_rows[0], run.curve_rows[-1]
    with malloc(run.malloc), fresh_store(run, SMALL_DIM) as large:
        stored_rows = 0
        for mark_rows in run.curve_rows:
            found = _window_rate(run, large, mark_rows - stored_rows, seeds)
            stored_rows = max(stored_rows, mark_rows) + run.window_rows
            yield Figure(f"rows/s at {mark_rows:,} stored rows, 64 dims", found)
        small_rates, large_rates = [], []
        for _ in range(run.rounds):
            with fresh_store(run, SMALL_DIM) as small:
                small_rates.append(_window_rate(run, small, first, seeds))
            large_rates.append(_window_rate(run, large, 0, seeds))
    yield ratio(
        f"rows/s at {last:,} stored rows / at {first:,}, 64 dims",
        large_rates,
        small_rates,
        at_least=0.9,
        detail=f"rows/s: {statistics.median(large_rates):,.0f}, {statistics.median(small_rates):,.0f}",
    )


def _window_rate(run: Run, server: ServerProcess, fill_rows: int, seeds: Iterator[int]) -> float:
    """Fills the store with ``fill_rows``, then sends the window that another client has prepared meanwhile."""
    window = Plan(SMALL_DIM, row_count=run.window_rows, seed=next(seeds))
    with clients([window, None]) as (measured, filler):
        measured.prepared()
        if fill_rows > 0:
            _send_rows(filler, server, Plan(SMALL_DIM, row_count=fill_rows, seed=next(seeds)))
        sent = together([measured], [Task("replay", server.address)])
    return sent.row_count / (sent.end_s - sent.begin_s)


def _send_rows(filler: Client, server: ServerProcess, plan: Plan) -> None:
    together([filler], [Task("generate", server.address, plan)])
