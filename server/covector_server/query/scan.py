"""The exact scan: every row's approximate scores, in blocks of bounded size, each with the bound of its error.

One checkpoint gives its strips in order of arrival. Several are summed over ranges of row ids, since rows stand in
another order in each: a range is as wide as a fixed budget of memory allows, whatever the number of rows. A filter that
few rows pass is answered by reading those alone, one that many pass by leaving rows out of the strips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from covector.attribution.scoring import Float64
from covector_server.kernels.topk import Scored, accumulate
from covector_server.query.cancellation import Cancelled, check_cancelled
from covector_server.query.checkpoints import whole_sums
from covector_server.query.planner import Plan, Term
from covector_server.query.reading import each_strip
from covector_server.query.workers import Workers
from covector_server.storage.damage import OnDamage
from covector_server.storage.view import RowIds, Strip

STRIP_BYTES: Final = 64 << 20  # of float16 rows in a strip, at most
STRIP_BYTES_MIN: Final = 4 << 20
STRIPS_A_THREAD: Final = 4  # at the least, so that none has much more to do than another
STRIP_ROWS_BYTES: Final = 64 << 20  # of what is made of rows beside scores, at 64 bytes a row
SCORE_BYTES: Final = 8 << 20  # of the float64 scores of a strip
RANGE_BYTES = 64 << 20  # of the float64 scores and errors of a range of row ids
RANGE_ROWS_MIN = 1024
FEW: Final = 1 / 16  # share of the rows below which those that pass a filter are looked up
EXACT_ELEMENTS: Final = 4 << 20  # of float16 rows scored exactly at once

Mask = npt.NDArray[np.bool_]
Take = Callable[[Scored], None]


def strip_row_count(dim: int, group_count: int, row_count: int, thread_count: int) -> int:
    """How many rows of ``row_count`` to ask for at once."""
    share_bytes = 2 * dim * row_count // (STRIPS_A_THREAD * thread_count)
    size_bytes = min(STRIP_BYTES, max(STRIP_BYTES_MIN, share_bytes))
    return max(1, min(STRIP_ROWS_BYTES // 64, size_bytes // (2 * dim), SCORE_BYTES // (8 * group_count)))


@dataclass(frozen=True, slots=True)
class Scan:
    """What to scan: the rows in ``mask`` (bool[row_id_count], None for all). Without ``on_damage``, reading the blocks
    raises Corrupt for a damaged chunk; with it, its rows are left out. Without ``workers``, the caller's thread
    scans."""

    plan: Plan
    mask: Mask | None
    row_id_count: int
    cancelled: Cancelled
    on_damage: OnDamage | None = None
    workers: Workers | None = None


def scan_each(scan: Scan, take: Take) -> None:
    """Gives ``take`` the scores by group, in no order that means anything, from any thread and several at a time."""
    if len(scan.plan.terms) > 1:
        for block in blocks_by_row_id(scan):
            take(block)
        return
    (term,) = scan.plan.terms
    _each_strip_of(scan, term, _few(scan), partial(_approximated, term, take))


def scan_strips(scan: Scan, use: Callable[[Strip], None], finish: Callable[[], None]) -> None:
    """Gives ``use`` the strips of a plan of one checkpoint, as ``scan_each`` its scores; then every thread calls
    ``finish``, while others may still use theirs."""
    (term,) = scan.plan.terms
    _each_strip_of(scan, term, _few(scan), use, finish)


def blocks_by_row_id(scan: Scan) -> Iterator[Scored]:
    """Scores by group, in order of row id."""
    few = _few(scan)
    count = scan.row_id_count if few is None else len(few)
    width = max(RANGE_ROWS_MIN, RANGE_BYTES // (16 * scan.plan.group_count))
    for low in range(0, count, width):
        high = min(low + width, count)
        block = _block_of(scan, range(low, high) if few is None else few[low:high])
        if len(block.row_ids):
            yield block


def exact_scores(scan: Scan, wanted: Sequence[tuple[slice, RowIds]]) -> list[Float64]:
    """For each (groups, n row ids, none twice): scores float64[groups, n] from float64 products of the stored rows, NaN
    for a row that has become damaged since it was scanned. Rows that several ask for are read once."""
    ordered = [np.argsort(row_ids, kind="stable") for _, row_ids in wanted]
    sorted_ids = [row_ids[order] for (_, row_ids), order in zip(wanted, ordered, strict=True)]
    found = [np.zeros((groups.stop - groups.start, len(row_ids))) for groups, row_ids in wanted]
    union = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *sorted_ids]))
    step = max(1, EXACT_ELEMENTS // scan.plan.dim)
    for start in range(0, len(union), step):
        check_cancelled(scan.cancelled)
        piece = union[start : start + step]
        lost = np.zeros(len(piece), dtype=bool)
        for term in scan.plan.terms:
            for strip in _read_rows(scan, term, piece, lost):
                for (groups, _), row_ids, scores in zip(wanted, sorted_ids, found, strict=True):
                    _add_exact(term, strip, groups, row_ids, scores)
        for row_ids, scores in zip(sorted_ids, found, strict=True):
            scores[:, np.isin(row_ids, piece[lost])] = np.nan
    return [scores[:, np.argsort(order)] for scores, order in zip(found, ordered, strict=True)]


def _read_rows(scan: Scan, term: Term, row_ids: RowIds, lost: Mask) -> list[Strip]:
    """Those of the rows (ids ascending) that a checkpoint has, where they lie, ids ascending in each strip. Marks those
    that are damaged as lost."""
    strips = []
    missing = ~lost
    for source in term.view.strips_of(row_ids[missing], len(row_ids), scan.on_damage):
        strip = source.load(scan.on_damage)
        strips.append(strip.pick(np.argsort(strip.row_ids)))
        missing[np.searchsorted(row_ids, strip.row_ids)] = False
    if missing.any():
        missing[missing] = term.view.has(row_ids[missing], scan.on_damage)
        lost |= missing
    return strips


def _add_exact(term: Term, strip: Strip, groups: slice, row_ids: RowIds, scores: Float64) -> None:
    """Adds the scores of those of the rows (ids ascending) that the strip (ids ascending) has."""
    if not len(strip.row_ids):
        return
    low, high = np.searchsorted(row_ids, [strip.row_ids[0], strip.row_ids[-1] + 1])
    if low == high:
        return
    places = np.searchsorted(strip.row_ids, row_ids[low:high])
    same = strip.row_ids[places] == row_ids[low:high]
    scores[:, low + np.flatnonzero(same)] += term.exact(strip.pick(places[same]), groups)


def _few(scan: Scan) -> RowIds | None:
    """The rows that pass the filter, if they are few; None if they are many, or all."""
    if scan.mask is None or np.count_nonzero(scan.mask) > FEW * scan.row_id_count:
        return None
    return np.flatnonzero(scan.mask)


def _each_strip_of(
    scan: Scan,
    term: Term,
    within: range | RowIds | None,
    use: Callable[[Strip], None],
    finish: Callable[[], None] | None = None,
) -> None:
    """The strips of a checkpoint's rows; ``within``: a range of row ids, or the only row ids that count."""
    thread_count = 1 if scan.workers is None else scan.workers.count
    row_count = len(within) if isinstance(within, np.ndarray) else term.view.row_count
    rows_max = strip_row_count(scan.plan.dim, scan.plan.group_count, row_count, thread_count)
    if isinstance(within, np.ndarray):
        sources, mask = term.view.strips_of(within, rows_max, scan.on_damage), None
    else:
        row_id_range = None if within is None or len(within) == scan.row_id_count else (within.start, within.stop)
        sources, mask = term.view.strips(rows_max, row_id_range), scan.mask

    def pick(strip: Strip) -> None:
        if mask is not None:
            chosen = mask[strip.row_ids]
            strip = strip if chosen.all() else strip.pick(np.flatnonzero(chosen))
        if len(strip.row_ids):
            use(strip)

    each_strip(scan, sources, pick, finish)


def _approximated(term: Term, take: Take, strip: Strip) -> None:
    take(term.approximate(strip))


def _block_of(scan: Scan, within: range | RowIds) -> Scored:
    """The sums over checkpoints of a range of row ids, or of some rows, ids ascending."""
    plan = scan.plan
    total = np.zeros((plan.group_count, len(within)))
    error = np.zeros_like(total)
    seen = np.zeros(len(within), dtype=np.int32)

    def add(scored: Scored) -> None:
        """No two strips of a checkpoint have a row in common, so threads never meet."""
        row_ids = scored.row_ids
        places = row_ids - within.start if isinstance(within, range) else np.searchsorted(within, row_ids)
        accumulate(scored, places, total, error)
        seen[places] += 1

    for term in plan.terms:
        _each_strip_of(scan, term, within, partial(_approximated, term, add))
    every = np.arange(within.start, within.stop) if isinstance(within, range) else within
    kept = whole_sums([term.view for term in plan.terms], plan.missing, seen, every, scan.on_damage)
    if len(kept) == len(every):
        return Scored.plain(total, error, every)
    return Scored.plain(total[:, kept], error[:, kept], every[kept])
