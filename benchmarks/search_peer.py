"""Another database searches the same rows exactly, for the comparison in search.py. Runs in an environment of its own
(make bench-peers).

    .venv-bench/bin/python benchmarks/search_peer.py faiss --rows rows.npy --dir DIR

Says "ready" when the rows are in, then answers each line of standard input, a count, with the seconds of so many single
queries for the 10 best by inner product, as a JSON list; memory is warm. Rows are stored as float16 where the database
knows it: faiss's scalar quantiser, LanceDB's FixedSizeList<float16>, qdrant's float16 datatype.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

K = 10
Search = Callable[[np.ndarray], object]


def faiss_search(rows: np.ndarray, _directory: Path) -> Search:
    """One index a core, each searched by a thread: one query does not use more than one by itself."""
    import faiss

    cores = len(os.sched_getaffinity(0))
    faiss.omp_set_num_threads(1)
    sharded = faiss.IndexShards(rows.shape[1], True, True)
    parts = []
    for part in np.array_split(np.arange(len(rows)), cores):
        index = faiss.IndexScalarQuantizer(rows.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        for start in range(part[0], part[-1] + 1, 8192):
            index.add(rows[start : min(start + 8192, part[-1] + 1)].astype(np.float32))
        parts.append(index)
        sharded.add_shard(index)
    return lambda query: (sharded.search(query[None], K), parts)


def lancedb_search(rows: np.ndarray, directory: Path) -> Search:
    os.environ["LANCE_LOG"] = "error"  # it would warn of a change to come with each query
    import lancedb
    import pyarrow as pa

    dim, table = rows.shape[1], None
    database = lancedb.connect(directory / "lancedb")
    for start in range(0, len(rows), 8192):
        piece = np.ascontiguousarray(rows[start : start + 8192])
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(piece.reshape(-1)), dim)
        batch = pa.table({"key": pa.array(range(start, start + len(piece))), "vector": vectors})
        if table is None:
            table = database.create_table("rows", batch)
        else:
            table.add(batch)
    assert table is not None
    found: Any = table
    return lambda query: found.search(query.astype(np.float16)).distance_type("dot").select(["key"]).limit(K).to_arrow()


def qdrant_search(rows: np.ndarray, directory: Path) -> Search:
    import qdrant_edge as qdrant

    params = qdrant.EdgeVectorParams(
        size=rows.shape[1],
        distance=qdrant.Distance.Dot,
        datatype=qdrant.VectorStorageDatatype.Float16,
    )
    place = directory / "qdrant"
    place.mkdir()
    shard = qdrant.EdgeShard.create(str(place), qdrant.EdgeConfig(vectors=params))
    for start in range(0, len(rows), 1024):
        piece = rows[start : start + 1024].astype(np.float32).tolist()
        points = [qdrant.Point(start + place, vector, {}) for place, vector in enumerate(piece)]
        shard.update(qdrant.UpdateOperation.upsert_points(points))
    exact = qdrant.SearchParams(exact=True)
    return lambda query: shard.search(
        qdrant.SearchRequest(query=qdrant.Query.Nearest(query.tolist()), limit=K, params=exact)
    )


SEARCHES = {"faiss": faiss_search, "lancedb": lancedb_search, "qdrant": qdrant_search}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("database", choices=SEARCHES)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--dir", type=Path, required=True)
    given = parser.parse_args()
    rows = np.load(given.rows, mmap_mode="r")
    search = SEARCHES[given.database](rows, given.dir)
    random = np.random.default_rng(7)
    search(random.standard_normal(rows.shape[1], dtype=np.float32))
    print("ready", flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            query = random.standard_normal(rows.shape[1], dtype=np.float32)
            started_s = time.perf_counter()
            search(query)
            seconds.append(time.perf_counter() - started_s)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
