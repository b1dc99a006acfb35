"""Arrays with one row a position, after positions were left out or blanked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from covector_server.index.contract import Changes, Check
from covector_server.storage.view import Positions

COPY_ROWS = 1 << 16


def changed(array: npt.NDArray[Any], changes: Changes, check: Check) -> Iterator[npt.NDArray[Any]]:
    """The values after some changes, in pieces."""
    left_count = changes.row_count
    for start in range(0, len(array), COPY_ROWS):
        check()
        stop = min(start + COPY_ROWS, len(array))
        piece = array[start:stop].copy()
        piece[inside(changes.blank, start, stop) - start] = 0
        kept = np.delete(piece, inside(changes.dropped, start, stop) - start, axis=0)[:left_count]
        left_count -= len(kept)
        yield kept


def inside(positions: Positions, start: int, stop: int) -> Positions:
    """Those of some sorted positions that are in [start, stop)."""
    low, high = np.searchsorted(positions, (start, stop))
    return positions[low:high]
