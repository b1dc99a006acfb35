"""The figures of exact search. Both sides of a ratio are measured in turn, within the same rounds."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ingest_client import COLLECTION
from ingest_processes import HERE, ServerProcess
from ingest_report import Figure, ratio
from search_store import (
    Data,
    MemoryFloor,
    drop_from_memory,
    opened,
    read_through,
    sgemm_per_s,
    shard_files,
)

import covector
from covector_server.query.engine import top_k
from covector_server.query.question import Question

K = 10
MANY = 64
PEERS = {"faiss": "faiss IndexScalarQuantizer fp16", "lancedb": "lancedb exact", "qdrant": "qdrant-edge exact"}


@dataclass(frozen=True, slots=True)
class Run:
    """What is measured, and how often."""

    directory: Path
    data: Data
    peer_python: Path
    rounds: int = 7
    queries: int = 9  # whose median is a round's latency
    peer_queries: int = 3  # of another database, which may take a second for each
    client_queries: int = 6  # of each concurrent client in a round
    clients: int = 16


def seconds(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


class Local:
    """Questions to the store in this process."""

    def __init__(self, run: Run, view: object, workers: object) -> None:
        self._run, self._view, self._workers, self._seed = run, view, workers, 0

    def ask(self, count: int = 1, *, scorer: str = "dot") -> float:
        """The seconds of one question of ``count`` vectors."""
        self._seed += 1
        vectors = self._run.data.vectors(self._seed, count)[None]
        question = Question(vectors=vectors, scorer=scorer)
        return seconds(lambda: top_k(self._view, question, K, workers=self._workers))  # type: ignore[arg-type]

    def scan_p50(self, where: dict[str, object] | None) -> float:
        """The median seconds of the scan and what follows it, without finding the rows that pass the filter."""
        return statistics.median(self._scan(where) for _ in range(self._run.queries))

    def _scan(self, where: dict[str, object] | None) -> float:
        self._seed += 1
        question = Question(vectors=self._run.data.vectors(self._seed, 1)[None], where=where)
        answer = top_k(self._view, question, K, workers=self._workers)  # type: ignore[arg-type]
        return sum(stage.seconds for stage in answer.stages if stage.name != "filter")

    def p50(self, **options: object) -> float:
        return statistics.median(self.ask(**options) for _ in range(self._run.queries))  # type: ignore[arg-type]


@contextmanager
def local(run: Run) -> Iterator[Local]:
    """Warm: its chunks are verified, its pages mapped."""
    with opened(run.data) as (view, workers):
        asking = Local(run, view, workers)
        for _ in range(2):
            asking.ask()
        yield asking


@contextmanager
def served(run: Run) -> Iterator[str]:
    """A warm server, as it is started by default; its address."""
    command = ["-m", "covector_server", "--data", str(run.data.served), "--listen", "127.0.0.1:0"]
    with ServerProcess(command) as server:
        with covector.connect(server.address, timeout_s=300) as client:
            for seed in range(2):
                client.collection(COLLECTION).query(run.data.vectors(seed, 1)[0], k=K)
        yield server.address


def bandwidth_figures(run: Run) -> Iterator[Figure]:
    """One query in process against reading memory."""
    floor = MemoryFloor(run.directory, run.data.size_bytes)
    sides: dict[str, list[float]] = {"floor": [], "dot": [], "cosine": []}
    with local(run) as asking:
        for _ in range(run.rounds):
            sides["floor"].append(floor.bytes_per_s())
            for scorer in ("dot", "cosine"):
                sides[scorer].append(run.data.size_bytes / asking.p50(scorer=scorer))
    shown = {name: statistics.median(values) / 1e9 for name, values in sides.items()}
    detail = "GB/s: " + ", ".join(f"{name} {value:.1f}" for name, value in shown.items())
    yield ratio("exact, 1 query, warm / memory bandwidth", sides["dot"], sides["floor"], at_least=0.75, detail=detail)
    yield ratio("exact, 1 query by cosine, warm / memory bandwidth", sides["cosine"], sides["floor"])


def wire_figures(run: Run) -> Iterator[Figure]:
    """The latency over gRPC against that in process."""
    over, within = [], []
    with local(run) as asking, served(run) as address, covector.connect(address, timeout_s=300) as client:
        collection, random = client.collection(COLLECTION), np.random.default_rng(3)
        for _ in range(run.rounds):
            within.append(asking.p50())
            vectors = random.standard_normal((run.queries, run.data.dim), dtype=np.float32)
            over.append(statistics.median(seconds(lambda v=v: collection.query(v, k=K)) for v in vectors))  # type: ignore[misc]
    detail = f"p50 ms: over gRPC {1e3 * statistics.median(over):.1f}, in process {1e3 * statistics.median(within):.1f}"
    yield ratio("exact, 1 query: p50 over gRPC / in process", over, within, at_most=1.2, detail=detail)


def many_figures(run: Run) -> Iterator[Figure]:
    """Many queries at once against numpy's product of rows that are float32 already."""
    rows = np.random.default_rng(0).standard_normal((4096, run.data.dim), dtype=np.float32)
    for count, target in ((MANY, 0.8), (16, None), (4, None)):
        vectors = run.data.vectors(0, count)
        rates, floors = [], []
        with local(run) as asking:
            for _ in range(run.rounds):
                floors.append(max(sgemm_per_s(vectors, rows) for _ in range(3)))
                rates.append(2 * count * run.data.dim * run.data.row_count / asking.ask(count))
        detail = f"GFLOP/s: scan {statistics.median(rates) / 1e9:.0f}, sgemm {statistics.median(floors) / 1e9:.0f}"
        yield ratio(f"exact, {count} queries / sgemm rate", rates, floors, at_least=target, detail=detail)


def client_figures(run: Run) -> Iterator[Figure]:
    """Concurrent clients with a query each against the same queries in one call in process."""
    rates, together = [], []
    with local(run) as asking, served(run) as address:
        command = [str(HERE / "search_clients.py"), address, str(run.clients), str(run.client_queries)]
        with clients_process(command) as clients_per_s:
            for _ in range(run.rounds):
                together.append(run.clients / asking.ask(run.clients))
                rates.append(clients_per_s())
    detail = f"queries/s: clients {statistics.median(rates):.1f}, in one call {statistics.median(together):.1f}"
    name = f"{run.clients} clients, 1 query each, over gRPC / the same queries in one call in process"
    yield ratio(name, rates, together, at_least=0.8, detail=detail)


@contextmanager
def clients_process(command: list[str]) -> Iterator[Callable[[], float]]:
    """A process of clients; calling it runs a round and returns the queries a second."""
    process = subprocess.Popen([sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None

    def ask() -> float:
        print("go", file=process.stdin, flush=True)
        return float(process.stdout.readline())  # type: ignore[union-attr]

    try:
        assert process.stdout.readline() == "ready\n"
        yield ask
    finally:
        process.stdin.close()
        process.wait(timeout=60)


def cold_figures(run: Run) -> Iterator[Figure]:
    """A query of a store that is not in memory, checksums verified, against reading its files from end to end."""
    paths = shard_files(run.data.local)
    size_bytes = sum(path.stat().st_size for path in paths)
    scans, reads = [], []
    for _ in range(run.rounds):
        drop_from_memory(paths)
        reads.append(size_bytes / read_through(paths))
        drop_from_memory(paths)
        with opened(run.data) as (view, workers):
            scans.append(size_bytes / Local(run, view, workers).ask())
    detail = f"GB/s: query {statistics.median(scans) / 1e9:.2f}, read {statistics.median(reads) / 1e9:.2f}"
    yield ratio("exact, 1 query, cold store: rate / sequential read", scans, reads, at_least=0.9, detail=detail)


def filter_figures(run: Run) -> Iterator[Figure]:
    """Narrow and wide filters against no filter, once it is known which rows pass; filters.py measures that."""
    for share, where in (
        (0.001, {"thousandth": 7}),
        (0.01, {"thousandth": {"lt": 10}}),
        (0.5, {"thousandth": {"lt": 500}}),
    ):
        filtered, plain = [], []
        with local(run) as asking:
            asking.scan_p50(where)
            for _ in range(run.rounds):
                plain.append(asking.scan_p50(None))
                filtered.append(asking.scan_p50(where))
        detail = f"ms: {1e3 * statistics.median(filtered):.1f}, without {1e3 * statistics.median(plain):.1f}"
        yield ratio(
            f"exact, 1 query, {share:.1%} of the rows pass the filter: scan / no filter", filtered, plain, detail=detail
        )


def peer_figures(run: Run) -> Iterator[Figure]:
    """Latency of single queries against other databases, which find one end where covector finds both."""
    with local(run) as asking:
        for peer, name in PEERS.items():
            title = f"exact, 1 query: p50 in process / {name}"
            try:
                ours, theirs = _against(run, asking, peer)
            except (OSError, RuntimeError) as error:
                yield Figure(title, None, at_most=1.0, detail=f"{peer}: {error}; make bench-peers installs it")
                continue
            detail = (
                f"p50 ms: covector {1e3 * statistics.median(ours):.1f}, {peer} {1e3 * statistics.median(theirs):.1f}"
            )
            yield ratio(title, ours, theirs, at_most=1.0, detail=detail)


def _against(run: Run, asking: Local, peer: str) -> tuple[list[float], list[float]]:
    directory = run.directory / peer
    directory.mkdir()
    command = [str(run.peer_python), str(HERE / "search_peer.py"), peer]
    arguments = ["--rows", str(run.data.rows), "--dir", str(directory)]
    process = subprocess.Popen([*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("it did not get ready")
        ours, theirs = [], []
        for _ in range(run.rounds):
            ours.append(asking.p50())
            print(run.peer_queries, file=process.stdin, flush=True)
            theirs.append(statistics.median(json.loads(process.stdout.readline())))
        return ours, theirs
    finally:
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.wait(timeout=120)
