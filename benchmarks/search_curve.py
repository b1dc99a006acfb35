"""How the latency of a query grows with the rows: exact, and as planned where there is an index; a table and a plot.

    python benchmarks/search_curve.py                # on an idle machine, half an hour
    python benchmarks/search_curve.py --dim 64       # one curve, which replaces that of the results
    python benchmarks/search_curve.py --quick        # small sizes, under a minute: does the script run?

For each dim one store grows behind one server. At each size a ``subspace`` index is built, then queries that are not
stored, of the same kind as the rows, are asked over gRPC one by one: with ``exact=True``, and as they are, where the
planner chooses. Rounds take turns with reading as many bytes from memory as the rows have, with all cores, which no
exact search can beat. What a query costs without rows is its latency at FEW_ROWS rows, by an index that at the smallest
size where it is chosen; exponents are fitted over the sizes whose latency is some times that (search_curve_report.py).
Stores are made and removed below --dir; 4 GB of disk are enough. Written are benchmarks/results/search_curve.json, .md
and .png.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gradient_rows import made_rows
from ingest_client import COLLECTION
from ingest_processes import HERE, ServerProcess, anonymous_bytes, covector_server, fresh_directory
from ingest_rows import rows_per_batch
from search_curve_report import Curve, Size, line, write
from search_exact import K
from search_store import MemoryFloor

import covector
from covector.types import IndexInfo

SIZES: dict[int, tuple[int, ...]] = {
    64: (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000),
    1024: (10_000, 30_000, 100_000, 300_000, 1_000_000),
    4096: (10_000, 30_000, 100_000, 200_000),
}
QUICK_SIZES: dict[int, tuple[int, ...]] = {64: (1_000, 30_000, 60_000), 1024: (500, 2_000, 4_000)}
FEW_ROWS = 100
RECALL = 0.99  # asked of each index
ROUNDS, QUERIES = 5, 9
BATCH_BYTES = 4 << 20
QUERY_SEED = 1 << 20  # the seeds below are those of rows


def main() -> int:
    given = _parser().parse_args()
    sizes = QUICK_SIZES if given.quick else SIZES
    for dim in given.dim or sizes:
        with fresh_directory(given.dir) as directory:
            curve = measured(directory, dim, sizes[dim], 2 if given.quick else given.rounds)
            write(directory if given.quick else given.results, curve)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute; keeps no results")
    parser.add_argument("--dim", type=int, action="append", choices=SIZES, help="measure this alone; may be repeated")
    parser.add_argument("--dir", type=Path, default=Path(), help="stores are made and removed below it (default: here)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of {QUERIES} queries (default {ROUNDS})")
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="DIR", help="default: %(default)s")
    return parser


def measured(directory: Path, dim: int, sizes: Sequence[int], rounds: int) -> Curve:
    """The curve of a store that grows."""
    with (
        covector_server(directory / "store", dim=dim) as server,
        covector.connect(server.address, timeout_s=600) as client,
    ):
        growing = Growing(directory, server, client.collection(COLLECTION), rounds)
        growing.grow(FEW_ROWS)
        growing.warm()
        fixed_s = statistics.median(growing.asked(exact=True, seed=number).p50_s for number in range(rounds))
        found = []
        for row_count in sizes:
            found.append(growing.measure(row_count))
            print(line(found[-1]), flush=True)
    return Curve(dim, rounds, QUERIES, fixed_s, tuple(found))


class Asked:
    """Answers to queries that were asked one by one, and the seconds of each."""

    def __init__(self, collection: covector.Collection, vectors: npt.NDArray[np.float32], *, exact: bool) -> None:
        self.answers, self.seconds = [], []
        for vector in vectors:
            began_s = time.perf_counter()
            self.answers.append(collection.query(vector, k=K, exact=exact))
            self.seconds.append(time.perf_counter() - began_s)

    @property
    def p50_s(self) -> float:
        return statistics.median(self.seconds)

    def recall_of(self, other: Asked) -> float:
        """The share of these answers' proponents that the others have."""
        pairs = zip(self.answers, other.answers, strict=True)
        return statistics.mean(_shared(ours[0].proponents, theirs[0].proponents) for ours, theirs in pairs)


def _shared(exact: Sequence[covector.Hit], found: Sequence[covector.Hit]) -> float:
    return len({hit.key for hit in exact} & {hit.key for hit in found}) / len(exact)


class Growing:
    """A store that grows behind its server."""

    def __init__(self, directory: Path, server: ServerProcess, collection: covector.Collection, rounds: int) -> None:
        self._directory, self._server, self._collection, self._rounds = directory, server, collection, rounds
        self._dim, self._row_count = collection.space.dim, 0

    def grow(self, row_count: int) -> float:
        """Stores rows until there are so many; the seconds."""
        began_s, first = time.perf_counter(), self._row_count
        pieces = made_rows(row_count - first, self._dim, first, batch_rows=rows_per_batch(self._dim, BATCH_BYTES))
        with self._collection.writer(checkpoint="one") as writer:
            for piece in pieces:
                writer.add(range(first, first + len(piece)), piece)
                first += len(piece)
        self._row_count = row_count
        return time.perf_counter() - began_s

    def asked(self, *, exact: bool, seed: int) -> Asked:
        """The queries of a round."""
        return Asked(self._collection, next(made_rows(QUERIES, self._dim, QUERY_SEED + seed)), exact=exact)

    def warm(self) -> None:
        """Asks once before it counts: what is stored is verified and mapped then."""
        for exact in (True, False):
            self.asked(exact=exact, seed=self._rounds)

    def indexed(self) -> tuple[IndexInfo, float]:
        """The index of the rows that stand now, and the seconds of its build."""
        began_s = time.perf_counter()
        self._collection.build_index("subspace", recall=RECALL).wait()
        build_s = time.perf_counter() - began_s
        (index,) = self._collection.indexes()
        return index, build_s

    def measure(self, row_count: int) -> Size:
        """Grows the store, builds the index, asks."""
        ingest_s, (index, build_s) = self.grow(row_count), self.indexed()
        size_bytes = 2 * self._dim * row_count
        floor = MemoryFloor(self._directory, size_bytes)
        self.warm()
        reads_s, exact, planned = [], [], []
        for number in range(self._rounds):
            reads_s.append(size_bytes / floor.bytes_per_s())
            exact.append(self.asked(exact=True, seed=number))
            planned.append(self.asked(exact=False, seed=number))
        answer = planned[0].answers[0]
        return Size(
            dim=self._dim,
            row_count=row_count,
            read_s=statistics.median(reads_s),
            exact_s=statistics.median(asked.p50_s for asked in exact),
            planned_s=statistics.median(asked.p50_s for asked in planned),
            by_index=answer.index is not None,
            reason=answer.reason,
            recall=statistics.mean(one.recall_of(other) for one, other in zip(exact, planned, strict=True)),
            index_recall=index.recall["recall@10"],
            index_parameters=index.parameters | {"oversampling": index.oversampling},
            index_share=index.size_bytes / size_bytes,
            ingest_s=ingest_s,
            build_s=build_s,
            server_anonymous_bytes=anonymous_bytes(self._server.pid),
        )


if __name__ == "__main__":
    sys.exit(main())
