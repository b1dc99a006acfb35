"""kill -9 in the middle of ingest: every acknowledged row is there, once and whole, and the writer goes on by itself.

Fault model: the server's process is killed at moments drawn from a seed, between two adds of a client that has batches
in flight, and started again on the same port and data. Only the process is killed: what the kernel has, it keeps.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import zarr

import covector
from covector.testing import ServerProcess

DIM = 4096
ROWS = 3000
STEP = 60


@pytest.mark.parametrize("seed", [0, 1])
def test_acknowledged_rows_survive_kills(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    gradients = rng.standard_normal((ROWS, DIM)).astype(np.float32)
    keys = [f"key {row}" for row in range(ROWS)]
    kill_before = set(rng.choice(np.arange(STEP, ROWS, STEP), size=6, replace=False).tolist())
    with ServerProcess(tmp_path / "store", arguments=["--shard-mib", "4"]) as server:
        server.listen = server.address
        path = tmp_path / "store" / ingest_through_kills(server, keys, gradients, kill_before)
    row_ids = zarr.open_array(path / "row_ids", mode="r")[...]
    assert sorted(np.asarray(row_ids).tolist()) == list(range(ROWS))


def ingest_through_kills(
    server: ServerProcess, keys: list[str], gradients: npt.NDArray[np.float32], kill_before: set[int]
) -> str:
    """Returns where the checkpoint lies."""
    with covector.connect(server.address) as client:
        collection = client.create_collection("c", covector.Space(dim=DIM))
        with collection.writer("one") as writer:
            for start in range(0, ROWS, STEP):
                if start in kill_before:
                    acknowledged = writer.acknowledged
                    server.kill()
                    server.start()
                    assert collection.count() >= acknowledged
                rows = slice(start, start + STEP)
                writer.add(keys[rows], gradients[rows], texts=[f"text of {key}" for key in keys[rows]])
        assert writer.acknowledged == ROWS
        assert collection.count() == ROWS
        assert collection.checkpoints()[0].row_count == ROWS
        for row, stored in enumerate(collection.get(keys, gradients=True, checkpoint="one")):
            assert stored.text == f"text of {keys[row]}"
            assert stored.gradient is not None
            np.testing.assert_allclose(stored.gradient, gradients[row], rtol=1e-3, atol=2e-3)
        return collection.checkpoints()[0].path
