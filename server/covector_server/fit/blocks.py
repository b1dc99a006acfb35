"""The rows that a fit learns from: positions of a checkpoint in order, without those that were dead when it began."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from covector_server.kernels.pages import Losses
from covector_server.storage.strips import live_mask
from covector_server.storage.view import PositionedCheckpoint, Positions, Tile


def live_blocks(view: PositionedCheckpoint, start: int, stop: int, dead: Positions) -> Iterator[tuple[int, Tile]]:
    """The rows at positions [start, stop) without the ``dead`` (sorted positions), as (position after them, tile):
    views of mapped files. Raises Corrupt; Unavailable if some of the rows handed out could not be read after all."""
    losses = Losses()
    for low, high in view.spans(start, stop):
        tile = view.span(low, high)
        live = live_mask(dead, low, high)
        if not live.all():
            tile = Tile(tile.rows[live], tile.scales[live], tile.row_ids[live], tile.trak_q[live])
        yield high, tile
        losses.check()


def live_count(row_count: int, dead: Positions) -> int:
    """Live rows among the first ``row_count`` positions."""
    return row_count - int(np.searchsorted(dead, row_count))
