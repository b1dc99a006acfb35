"""Rows with a spectrum like that of gradients: deviations along fixed directions fall as a power, norms spread over two
decades. The same seed makes the same rows; other seeds make other rows of the same kind, such as queries.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

BATCH_ROWS = 2048
DIRECTIONS_MAX = 1500


def made_rows(
    row_count: int, dim: int, seed: int, *, batch_rows: int = BATCH_ROWS
) -> Iterator[npt.NDArray[np.float32]]:
    """float32[at most batch_rows, dim] at a time."""
    count = min(DIRECTIONS_MAX, dim)
    directions = np.random.default_rng(99).standard_normal((count, dim), dtype=np.float32)
    directions *= (np.arange(1, count + 1, dtype=np.float32) ** -0.7)[:, None]
    rng = np.random.default_rng(seed)
    for start in range(0, row_count, batch_rows):
        size = min(batch_rows, row_count - start)
        rows = rng.standard_normal((size, count), dtype=np.float32) @ directions
        rows *= np.exp(rng.standard_normal((size, 1), dtype=np.float32))
        yield rows
