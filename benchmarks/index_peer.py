"""faiss's HNSW on the rows of indexes.py, for comparison. Runs in an environment of its own (make bench-peers).

    OMP_NUM_THREADS=1 .venv-bench/bin/python benchmarks/index_peer.py --gradients rows.npy --queries queries.npy

Inner product over float16 rows (its scalar quantiser), 32 links a node, efConstruction 100, and efSearch doubled until
recall@10 is 0.95 or all is tried. One thread. Times are given beside the time in which one thread reads the bytes of
the float16 rows, as in indexes.py; a query is one for each end.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from index_report import add_arguments, report
from one_thread import read_rate, timed

LINKS, EF_CONSTRUCTION, EF_SEARCHES = 32, 100, (64, 128, 256, 512, 1024, 2048)
PIECE_ROWS = 8192


def main() -> None:
    parser = argparse.ArgumentParser(description="Figures of faiss's HNSW.")
    parser.add_argument("--gradients", type=Path, required=True)
    parser.add_argument("--queries", type=Path, help="the last 200 rows without")
    parser.add_argument("--scorer", nargs="+", default=["dot", "cosine"])
    add_arguments(parser)
    given = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        sys.exit("set OMP_NUM_THREADS=1: these are figures of one thread")
    rows = np.load(given.gradients, mmap_mode="r")
    if given.queries is None:
        rows, queries = rows[:-200], np.array(rows[-200:], dtype=np.float32)
    else:
        queries = np.load(given.queries).astype(np.float32)
    report([figures(rows, queries, scorer) for scorer in given.scorer], given)


def figures(rows: np.ndarray, queries: np.ndarray, scorer: str) -> dict[str, Any]:
    dim = rows.shape[1]
    index = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_fp16, LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = EF_CONSTRUCTION
    exact = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    largest = 1.0 if scorer == "cosine" else float(max(np.linalg.norm(row) for row in rows)) / np.sqrt(dim)
    build_s = 0.0
    for start in range(0, len(rows), PIECE_ROWS):
        piece = np.array(rows[start : start + PIECE_ROWS], dtype=np.float32)
        piece /= np.linalg.norm(piece, axis=1, keepdims=True) if scorer == "cosine" else largest
        exact.add(piece)
        began_s = time.perf_counter()
        index.add(piece)
        build_s += time.perf_counter() - began_s
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    true = [exact.search(sign * unit, 100)[1] for sign in (1, -1)]
    for ef in EF_SEARCHES:
        index.hnsw.efSearch = ef
        found = [index.search(sign * unit, 100)[1] for sign in (1, -1)]
        recall_10 = share(found[0], true[0], 10)
        if recall_10 >= 0.95:
            break
    row_bytes = 2 * dim * len(rows)
    read_s = row_bytes / (read_rate() * 1e9)
    both_s = timed(lambda: (index.search(unit[:1], 10), index.search(-unit[:1], 10)))
    named: dict[str, Any] = {
        "kind": "faiss HNSW", "scorer": scorer, "rows": len(rows), "dim": dim, "efSearch": ef,
        "recall@10": recall_10, "recall@100": share(found[0], true[0], 100), "bottom-10": share(found[1], true[1], 10),
        "disk / rows": saved_bytes(index) / row_bytes, "build_s": build_s,
        "time, k = 10, / reading the rows": both_s / read_s, "ms, k = 10": 1e3 * both_s,
    }  # fmt: skip
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in named.items()}


def share(found: np.ndarray, true: np.ndarray, k: int) -> float:
    return float(np.mean([len(set(one[:k]) & set(other[:k])) / k for one, other in zip(found, true, strict=True)]))


def saved_bytes(index: Any) -> int:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "index"
        faiss.write_index(index, str(path))
        return path.stat().st_size


if __name__ == "__main__":
    main()
