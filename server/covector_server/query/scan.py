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
from covector_server.storage.damage import OnDamage
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
    # Positions in the block, groups -> float64[groups', positions]; NaN for a row that went bad since it was scanned.
    exact: Callable[[Positions, slice], Float64]


def tile_row_count(dim: int, group_count: int) -> int:
    """How many rows to ask for at once."""
    by_width = WIDE_BYTES // (4 * min(dim, BLOCK_DIM))
    return max(1, min(by_width, TILE_BYTES // (2 * dim), SCORE_BYTES // (8 * group_count)))


@dataclass(frozen=True, slots=True)
class Scan:
    """What to scan: the rows in ``mask`` (bool[row_id_count], None for all). Without ``on_damage``, reading the blocks
    raises Corrupt for a damaged chunk; with it, its rows are left out."""

    plan: Plan
    mask: Mask | None
    row_id_count: int
    cancelled: Cancelled
    on_damage: OnDamage | None = None


def blocks_by_arrival(scan: Scan) -> Iterator[Block]:
    """Blocks in no order that means anything."""
    if len(scan.plan.terms) > 1:
        yield from blocks_by_row_id(scan)
        return
    (term,) = scan.plan.terms
    for tile in _tiles(scan, term, None):
        yield _block_of_tile(term, tile)


def blocks_by_row_id(scan: Scan) -> Iterator[Block]:
    """Blocks in order of row id."""
    width = max(RANGE_ROWS_MIN, RANGE_BYTES // (16 * scan.plan.group_count))
    for low in range(0, scan.row_id_count, width):
        block = _block_of_range(scan, (low, min(low + width, scan.row_id_count)))
        if len(block.row_ids):
            yield block


def _tiles(scan: Scan, term: Term, row_id_range: tuple[int, int] | None) -> Iterator[Tile]:
    rows_max = tile_row_count(scan.plan.dim, scan.plan.group_count)
    for tile in term.view.tiles(rows_max, row_id_range, scan.on_damage):
        check_cancelled(scan.cancelled)
        chosen = None if scan.mask is None else scan.mask[tile.row_ids]
        if chosen is None or chosen.all():
            yield tile
        elif chosen.any():
            yield _pick(tile, chosen)


def _block_of_tile(term: Term, tile: Tile) -> Block:
    approximate, row_reaches = term.approximate(tile)

    def exact(positions: Positions, groups: slice) -> Float64:
        return term.exact(_pick(tile, positions), groups)

    return Block(tile.row_ids, approximate, np.outer(term.reaches, row_reaches), exact)


def _block_of_range(scan: Scan, row_id_range: tuple[int, int]) -> Block:
    plan, (low, high) = scan.plan, row_id_range
    asked = None if row_id_range == (0, scan.row_id_count) else row_id_range
    total = np.zeros((plan.group_count, high - low))
    error = np.zeros_like(total)
    seen = np.zeros(high - low, dtype=np.int32)
    for term in plan.terms:
        for tile in _tiles(scan, term, asked):
            places = tile.row_ids - low
            approximate, row_reaches = term.approximate(tile)
            total[:, places] += approximate
            error[:, places] += np.outer(term.reaches, row_reaches)
            seen[places] += 1
    kept = _complete(scan, seen, low)
    row_ids = kept + low
    lost = np.zeros(len(row_ids), dtype=bool)  # found damaged since the tiles were read

    def exact(positions: Positions, groups: slice) -> Float64:
        return _exact_sum(scan, row_ids, positions, groups, lost)

    return Block(row_ids, total[:, kept], error[:, kept], exact)


def _complete(scan: Scan, seen: npt.NDArray[np.int32], low: int) -> Positions:
    """Places in a range from ``low`` on of the rows whose sum lacks nothing, given at how many checkpoints each was
    seen. With damage, a row that was not seen may be there all the same, and then its sum is not known."""
    term_count = len(scan.plan.terms)
    if scan.plan.missing == "omit":
        return np.flatnonzero(seen >= term_count)
    places = np.flatnonzero(seen)
    if scan.on_damage is None:
        return places
    partial = places[seen[places] < term_count]
    has = (term.view.has(partial + low, scan.on_damage).astype(np.int32) for term in scan.plan.terms)
    stored = sum(has, start=np.int32(0))
    return np.setdiff1d(places, partial[seen[partial] < stored])


def _exact_sum(
    scan: Scan, row_ids: RowIds, positions: Positions, groups: slice, lost: npt.NDArray[np.bool_]
) -> Float64:
    """Sums of the rows at some positions, NaN for a row that is damaged, which ``lost`` remembers."""
    asked = row_ids[positions]
    total = np.zeros((groups.stop - groups.start, len(asked)))
    for term in scan.plan.terms:
        here = np.flatnonzero(term.view.has(asked, scan.on_damage) & ~lost[positions])
        if not len(here):
            continue
        tile = term.view.gather(asked[here], scan.on_damage)
        if len(tile.row_ids) < len(here):
            found = np.isin(asked[here], tile.row_ids)
            lost[positions[here[~found]]] = True
            here = here[found]
        total[:, here] += term.exact(tile, groups)
    total[:, lost[positions]] = np.nan
    return total


def _pick(tile: Tile, rows: Mask | Positions) -> Tile:
    return Tile(tile.rows[rows], tile.scales[rows], tile.row_ids[rows], tile.trak_q[rows])
