"""Makes the golden store of the present format: ``python tests/golden/make.py tests/golden/format-1``.

What it holds is a function of ``ROWS`` and of the seeds below, so that the test can say what must be found in it. A
store of a format that was released is never made again: a new format gets a directory of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from covector.types import GradientKind, Key, Space
from covector_server.ingest.batch import WriterSpec
from covector_server.ingest.committer import Committer
from covector_server.limits import Limits
from covector_server.storage.store import Sizes, Store
from covector_server.testing.batches import batch_of

DIM = 12
ROWS = 100
SPACE = Space(dim=DIM)
KIND = GradientKind("loss", "token_mean", "none")


def key_of(row: int) -> Key:
    """Strings and integers, in turns."""
    return row if row % 3 else f"row {row} é"


def text_of(row: int) -> str | None:
    """Some rows have none."""
    return None if row % 5 == 0 else f"the text of row {row}"


def metadata_of(row: int) -> dict[str, str | int | bool | None]:
    """A field of each type."""
    return {"source": "even" if row % 2 == 0 else "odd", "number": row, "third": row % 3 == 0}


def gradients_of(checkpoint: int) -> npt.NDArray[np.float32]:
    """float32[ROWS, DIM], norms over sixteen orders of magnitude, row 7 all zero."""
    rng = np.random.default_rng(checkpoint)
    drawn = rng.standard_normal((ROWS, DIM)) * 10.0 ** rng.integers(-8, 8, (ROWS, 1))
    drawn[7] = 0
    return drawn.astype(np.float32)


def order_of(checkpoint: int) -> list[int]:
    """The rows' order of arrival at a checkpoint."""
    return [int(row) for row in np.random.default_rng(100 + checkpoint).permutation(ROWS)]


def make(data: Path) -> None:
    """Makes the store: two checkpoints in different orders, row 3 replaced, a row without gradients, a late text."""
    store = Store(data, Sizes(chunk_bytes=2 * DIM * 4, shard_bytes=2 * DIM * 32))
    committer = Committer(store, Limits())
    committer.call(lambda: store.create_collection("golden", SPACE, False)).result()
    for checkpoint in (1, 2):
        spec = WriterSpec("golden", f"writer {checkpoint}", f"epoch-{checkpoint}", checkpoint / 4, "ab" * 32, KIND)
        order, gradients = order_of(checkpoint), gradients_of(checkpoint)
        for sequence, start in enumerate(range(0, ROWS, 13), 1):
            rows = order[start : start + 13]
            batch = batch_of(
                sequence,
                [key_of(row) for row in rows],
                gradients[rows],
                [text_of(row) for row in rows],
                [metadata_of(row) for row in rows],
            )
            committer.submit(spec, batch).result()
    spec = WriterSpec("golden", "replacer", "epoch-2", 0.5, on_conflict="replace")
    committer.submit(spec, batch_of(1, [key_of(3)], np.full((1, DIM), 2.5))).result()
    spec = WriterSpec("golden", "texts", None)
    late = batch_of(1, [key_of(5), "no gradient"], None, ["a late text", "text alone"])
    committer.submit(spec, late).result()
    committer.stop()
    store.close()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
