"""The exact scan: every row's approximate scores, in blocks of bounded size, each with the bound of its error.

One checkpoint streams its tiles in order of arrival. Several are summed over ranges of row ids, since rows stand in
another order in each: a range is as wide as a fixed budget of memory allows, whatever the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from covector.attribution.scoring import Float64
from covector_server.query.cancellation import Cancelled, check_cancelled
from covector_server.query.kernel import BLOCK_DIM, WIDE_BYTES
from covector_server.query.planner import Plan, Term
from covector_server.storage.view import Positions, RowIds, Tile

TILE_BYTES = 32 << 20  # of float16 rows in a tile
SCORE_BYTES = 8 << 20  # of the float64 scores of a tile
RANGE_BYTES = 64 << 20  # of the float64 scores and errors of a range of row ids
RANGE_ROWS_MIN = 1024

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Block:
    """Approximate scores of some rows: ``|approximate - exact| <= error``, both float64[groups, n]."""

    row_ids: RowIds  # [n]
    approximate: Float64
    error: Float64
    exact: Callable[[Positions, slice], Float64]  # positions in the block, groups -> float64[groups', positions]


def tile_row_count(dim: int, group_count: int) -> int:
    """How many rows to ask for at once."""
    by_width = WIDE_BYTES // (4 * min(dim, BLOCK_DIM))
    return max(1, min(by_width, TILE_BYTES // (2 * dim), SCORE_BYTES // (8 * group_count)))


def blocks_by_arrival(plan: Plan, mask: Mask | None, row_id_count: int, cancelled: Cancelled) -> Iterator[Block]:
    """Blocks of the rows in ``mask`` (bool[row_id_count], None for all), in no order that means anything."""
    if len(plan.terms) > 1:
        yield from blocks_by_row_id(plan, mask, row_id_count, cancelled)
        return
    (term,) = plan.terms
    for tile in _tiles(plan, term, mask, None, cancelled):
        yield _block_of_tile(term, tile)


def blocks_by_row_id(plan: Plan, mask: Mask | None, row_id_count: int, cancelled: Cancelled) -> Iterator[Block]:
    """Blocks of the rows in ``mask``, in order of row id."""
    width = max(RANGE_ROWS_MIN, RANGE_BYTES // (16 * plan.group_count))
    for low in range(0, row_id_count, width):
        block = _block_of_range(plan, mask, (low, min(low + width, row_id_count)), row_id_count, cancelled)
        if len(block.row_ids):
            yield block


def _tiles(
    plan: Plan, term: Term, mask: Mask | None, row_id_range: tuple[int, int] | None, cancelled: Cancelled
) -> Iterator[Tile]:
    for tile in term.view.tiles(tile_row_count(plan.dim, plan.group_count), row_id_range):
        check_cancelled(cancelled)
        chosen = None if mask is None else mask[tile.row_ids]
        if chosen is None or chosen.all():
            yield tile
        elif chosen.any():
            yield _pick(tile, chosen)


def _block_of_tile(term: Term, tile: Tile) -> Block:
    approximate, row_reaches = term.approximate(tile)

    def exact(positions: Positions, groups: slice) -> Float64:
        return term.exact(_pick(tile, positions), groups)

    return Block(tile.row_ids, approximate, np.outer(term.reaches, row_reaches), exact)


def _block_of_range(
    plan: Plan, mask: Mask | None, row_id_range: tuple[int, int], row_id_count: int, cancelled: Cancelled
) -> Block:
    low, high = row_id_range
    asked = None if (low, high) == (0, row_id_count) else row_id_range
    total = np.zeros((plan.group_count, high - low))
    error = np.zeros_like(total)
    seen = np.zeros(high - low, dtype=np.int32)
    for term in plan.terms:
        for tile in _tiles(plan, term, mask, asked, cancelled):
            places = tile.row_ids - low
            approximate, row_reaches = term.approximate(tile)
            total[:, places] += approximate
            error[:, places] += np.outer(term.reaches, row_reaches)
            seen[places] += 1
    kept = np.flatnonzero(seen >= (1 if plan.missing == "zero" else len(plan.terms)))
    row_ids = kept + low

    def exact(positions: Positions, groups: slice) -> Float64:
        return _exact_sum(plan, row_ids[positions], groups)

    return Block(row_ids, total[:, kept], error[:, kept], exact)


def _exact_sum(plan: Plan, row_ids: RowIds, groups: slice) -> Float64:
    total = np.zeros((groups.stop - groups.start, len(row_ids)))
    for term in plan.terms:
        here = np.flatnonzero(term.view.has(row_ids))
        if len(here):
            total[:, here] += term.exact(term.view.gather(row_ids[here]), groups)
    return total


def _pick(tile: Tile, rows: Mask | Positions) -> Tile:
    return Tile(tile.rows[rows], tile.scales[rows], tile.row_ids[rows], tile.trak_q[rows])
