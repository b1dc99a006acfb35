"""Figures of ingest that are rates and times: against a stream that only acknowledges, LanceDB, and one row a message.

A round runs each side once, one after the other; a store is new in each round, so that prepared batches are new to it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bare_streams import GRPC_STYLES
from ingest_client import Plan, Sent, Task
from ingest_processes import (
    HERE,
    Client,
    ServerProcess,
    acknowledging_server,
    bare_server,
    clients,
    covector_server,
    fresh_directory,
    malloc,
    other_malloc,
    together,
    touch_memory,
)
from ingest_report import Figure, ratio, spread
from sync_floor import group_times_s, write_rate

DIM = 4096


@dataclass(frozen=True, slots=True)
class Run:
    """Where and how much. Sizes are per round."""

    directory: Path
    peer_python: Path
    rounds: int = 5
    malloc: str = "kept"
    acknowledging_style: str = "beside"
    stream_mib: int = 768
    peer_mib: int = 256
    message_rows: int = 4096
    latency_batches: int = 300
    written_mib: int = 1024
    memory_mib: int = 4096
    open_rows: int = 1_000_000
    curve_rows: tuple[int, ...] = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
    window_rows: int = 200_000
    quick: bool = False  # leave out what only repeats under another setting


def rate(sent: Sent) -> float:
    """MB/s of rows."""
    return sent.size_bytes / 1e6 / (sent.end_s - sent.begin_s)


@contextmanager
def fresh_store(run: Run, dim: int = DIM) -> Iterator[ServerProcess]:
    """A covector server on an empty directory, removed afterwards."""
    with fresh_directory(run.directory) as directory, covector_server(directory, dim=dim) as server:
        yield server


def stream_figures(run: Run) -> Iterator[Figure]:
    """Durable ingest / the acknowledging stream, with one client and three; that stream / bare gRPC.

    Reported beside it: the same with one client under malloc's other setting.
    """
    for client_count, at_least in ((1, 0.85), (3, 0.8)):
        rates = _stream_rates(run, client_count, run.rounds, run.malloc)
        yield ratio(
            f"durable ingest / a stream that only acknowledges, {client_count} client{'s' * (client_count > 1)}",
            rates["durable"],
            rates["acknowledging"],
            at_least=at_least,
            detail=_rates_text(rates, ("durable", "acknowledging", "disk")),
        )
        if client_count == 1:
            yield from _bare_figures(rates, at_least=0.8)
    if run.quick:
        return
    other = other_malloc(run.malloc)
    rates = _stream_rates(run, 1, min(run.rounds, 2), other)
    yield ratio(
        f"durable ingest / a stream that only acknowledges, 1 client, malloc {other}",
        rates["durable"],
        rates["acknowledging"],
        detail=_rates_text(rates, ("durable", "acknowledging", "disk")),
    )
    yield from _bare_figures(rates, suffix=f", malloc {other}")


def _bare_figures(rates: dict[str, list[float]], at_least: float | None = None, suffix: str = "") -> Iterator[Figure]:
    best = max(GRPC_STYLES, key=lambda style: statistics.median(rates[style]))
    yield ratio(
        f"a stream that only acknowledges / the best bare gRPC stream{suffix}",
        rates["acknowledging"],
        rates[best],
        at_least=at_least,
        detail=f"best: {best}; " + _rates_text(rates, ("acknowledging", *GRPC_STYLES, "tcp")),
    )


def _rates_text(rates: dict[str, list[float]], names: Sequence[str]) -> str:
    return "MB/s: " + ", ".join(f"{name} {statistics.median(rates[name]):.0f}" for name in names)


def _stream_rates(run: Run, client_count: int, rounds: int, setting: str) -> dict[str, list[float]]:
    """MB/s of each side, a number a round; the bare sides with one client only. ``disk``: a file written and synced in
    groups of 16 MiB, for reference."""
    plans = [Plan(DIM, size_bytes=(run.stream_mib << 20) // client_count, seed=seed) for seed in range(client_count)]
    bare = (*GRPC_STYLES, "tcp") if client_count == 1 else ()
    rates: dict[str, list[float]] = {name: [] for name in ("durable", "acknowledging", "disk", *bare)}
    with malloc(setting), clients(plans) as senders:
        for _ in range(rounds):
            with fresh_store(run) as server:
                touch_memory(_touched_mib(run.stream_mib))
                rates["durable"].append(_replay(senders, server.address))
            touch_memory(_touched_mib(run.stream_mib))
            rates["disk"].append(write_rate(run.directory, run.stream_mib))
            with acknowledging_server(run.acknowledging_style) as server:
                touch_memory(_touched_mib(run.stream_mib))
                rates["acknowledging"].append(_replay(senders, server.address))
            for style in bare:
                with bare_server(style) as server:
                    touch_memory(_touched_mib(run.stream_mib))
                    kind = "tcp" if style == "tcp" else "bare"
                    rates[style].append(rate(together(senders, [Task(kind, server.address, style=style)])))
    return rates


def _touched_mib(size_mib: int) -> int:
    """What a round of so many rows needs: the rows in the page cache, and in flight."""
    return 2 * size_mib + 512


def _replay(senders: list[Client], address: str) -> float:
    return rate(together(senders, [Task("replay", address)] * len(senders)))


def peer_figures(run: Run) -> Iterator[Figure]:
    """Durable ingest through gRPC / LanceDB's add of the same rows in its own process, which does not sync."""
    name = "durable ingest in MB/s / lancedb's add of the same rows"
    if not run.peer_python.exists():
        yield Figure(name, None, at_least=2.5, detail=f"{run.peer_python} is not there; make bench-peers makes it")
        return
    ours, theirs, larger = [], [], []
    plan = Plan(DIM, size_bytes=run.peer_mib << 20)
    with malloc(run.malloc), clients([plan]) as senders:
        for _ in range(run.rounds):
            with fresh_store(run) as server:
                touch_memory(_touched_mib(run.peer_mib))
                ours.append(_replay(senders, server.address))
            theirs.append(_lancedb_rate(run, batch_mib=1))
            if not run.quick:
                larger.append(_lancedb_rate(run, batch_mib=8))
    detail = f"MB/s: covector {statistics.median(ours):.0f}, lancedb {statistics.median(theirs):.0f}"
    yield ratio(name, ours, theirs, at_least=2.5, detail=detail)
    if larger:
        yield ratio(f"{name} in batches of 8 MiB (covector: 1 MiB)", ours, larger)


def _lancedb_rate(run: Run, *, batch_mib: int) -> float:
    command = [str(run.peer_python), str(HERE / "lancedb_ingest.py"), "--dir", str(run.directory)]
    command += ["--mib", str(run.peer_mib), "--dim", str(DIM), "--batch-mib", str(batch_mib)]
    touch_memory(_touched_mib(run.peer_mib))
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["mb_s"])


def batching_figures(run: Run) -> Iterator[Figure]:
    """Rows/s through ``Collection.writer`` / one row a message, each acknowledged, many in flight, by the same Sender.

    Judged: 64 rows an ``add``, as a training step brings them. Reported: one row an ``add``, and rows of 64 dims.
    """
    for dim in (DIM,) if run.quick else (DIM, 64):
        calls = {rows_a_call: _writer_plan(run, dim, rows_a_call) for rows_a_call in (64, 1)}
        rates: dict[int, list[float]] = {64: [], 1: [], 0: []}
        with malloc(run.malloc), clients([Plan(dim, row_count=run.message_rows, rows_a_batch=1)]) as senders:
            for _ in range(run.rounds):
                with fresh_store(run, dim) as server:
                    rates[0].append(_row_rate(senders, Task("replay", server.address)))
                for rows_a_call, plan in calls.items():
                    with fresh_store(run, dim) as server:
                        rates[rows_a_call].append(_row_rate(senders, Task("writer", server.address, plan)))
        for rows_a_call in (64, 1):
            judged = dim == DIM and rows_a_call == 64
            yield ratio(
                f"auto-batched rows/s / one row a message, {dim} dims, rows an add: {rows_a_call}",
                rates[rows_a_call],
                rates[0],
                at_least=20 if judged else None,
                detail=f"rows/s: {statistics.median(rates[rows_a_call]):,.0f}, {statistics.median(rates[0]):,.0f}",
            )


def _writer_plan(run: Run, dim: int, rows_a_call: int) -> Plan:
    """Enough for some tenths of a second, and whole calls."""
    row_count = run.message_rows * (4 if dim == DIM else 40) * (1 if rows_a_call > 1 else 0.25)
    return Plan(dim, row_count=int(row_count) // 64 * 64, rows_a_batch=rows_a_call, seed=2)


def _row_rate(senders: list[Client], task: Task) -> float:
    sent = together(senders, [task])
    return sent.row_count / (sent.end_s - sent.begin_s)


def acknowledgement_figures(run: Run) -> Iterator[Figure]:
    """Batches of 1 MiB with two in flight, from ``Sender.put`` to the acknowledgement in the client, 99th percentile /
    the median of what writing and syncing such a group costs with no database around it (sync_floor.py)."""
    p99s, floors, medians = [], [], []
    plan = Plan(DIM, size_bytes=run.latency_batches << 20)
    with malloc(run.malloc), clients([plan]) as senders:
        for _ in range(run.rounds):
            with fresh_store(run) as server:
                touch_memory(_touched_mib(run.latency_batches))
                latencies = together(senders, [Task("replay", server.address, window=2)]).latencies_s
            touch_memory(_touched_mib(run.latency_batches))
            with fresh_directory(run.directory) as directory:
                floors.append(statistics.median(group_times_s(directory / "floor", run.latency_batches)))
            p99s.append(float(np.percentile(latencies, 99)))
            medians.append(statistics.median(latencies))
    yield ratio(
        "acknowledgement p99 / group fsync p50, 1 MiB batches, 2 in flight",
        p99s,
        floors,
        at_most=10,
        detail=f"ms: p99 {statistics.median(p99s) * 1e3:.1f}, floor p50 {statistics.median(floors) * 1e3:.1f}",
    )
    yield spread("acknowledgement p50, 1 MiB batches, 2 in flight, ms", [1e3 * median for median in medians])
