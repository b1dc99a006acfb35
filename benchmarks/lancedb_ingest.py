"""LanceDB takes the same rows, for the comparison in ingest.py. Runs in an environment of its own (make bench-peers).

    .venv-bench/bin/python benchmarks/lancedb_ingest.py --dir DIR --mib 256 --dim 4096 --batch-mib 1

A table of key, scale, text and FixedSizeList<float16>[dim]; a ``table.add`` a batch, batches made before the clock
starts. LanceDB does not sync before ``add`` returns. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time

import lancedb
import numpy as np
import pyarrow as pa
from ingest_rows import RowMaker, Rows, rows_per_batch


def table_of(rows: Rows, dim: int) -> pa.Table:
    values = pa.array(rows.gradients.reshape(-1))
    return pa.table(
        {
            "key": pa.array([key.decode() for key in rows.keys]),
            "scale": pa.array(np.ones(len(rows.keys), dtype=np.float32)),
            "text": pa.array([text.decode() for text in rows.texts or []]),
            "vector": pa.FixedSizeListArray.from_arrays(values, dim),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", required=True)
    parser.add_argument("--mib", type=int, required=True)
    parser.add_argument("--dim", type=int, required=True)
    parser.add_argument("--batch-mib", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    maker, row_count = RowMaker(given.seed, given.dim), rows_per_batch(given.dim, given.batch_mib << 20)
    size_bytes, batches = 0, []
    while size_bytes < given.mib << 20:
        rows = maker.make(row_count)
        size_bytes += rows.size_bytes
        batches.append(table_of(rows, given.dim))
    with tempfile.TemporaryDirectory(dir=given.dir) as directory:
        table = lancedb.connect(directory).create_table("rows", schema=batches[0].schema)
        started_s = time.perf_counter()
        for batch in batches:
            table.add(batch)
        elapsed_s = time.perf_counter() - started_s
        assert table.count_rows() == sum(map(len, batches))
    print(json.dumps({"lancedb": lancedb.__version__, "mb_s": size_bytes / 1e6 / elapsed_s, "adds": len(batches)}))


if __name__ == "__main__":
    main()
