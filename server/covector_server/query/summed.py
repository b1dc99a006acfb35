"""The way of a question about several checkpoints through their indexes.

The best of a sum are not among the best of its parts, so candidates cannot be drawn from each checkpoint apart. But
what the codes of an index say of a row is a number, and these can be summed: each checkpoint's codes are scanned, the
estimates added up by row id, and candidates are the ends of the sums. Any eta, and any choice of checkpoints that have
indexes, is served so. What follows is as with one checkpoint (``candidates``): exact scores of the candidates, from the
stored bytes of all checkpoints, and rows that one of the indexes has not are scanned exactly and merged.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
import numpy.typing as npt

from covector.errors import Corrupt
from covector.types import Stage
from covector_server.index.contract import Candidates, Float32, Summable, candidate_count
from covector_server.index.source import CheckpointRows
from covector_server.kernels.extremes import Extremes
from covector_server.metadata.records import OVERSAMPLING_USUAL, IndexRecord
from covector_server.query.cancellation import Cancelled, check_cancelled
from covector_server.query.candidates import ExactSearch, hit_count, joined, merged_ends
from covector_server.query.planner import Plan, Term
from covector_server.query.question import Ends
from covector_server.query.rerank import ends_of, union_of
from covector_server.query.scan import Mask, Scan, exact_scores
from covector_server.storage.strips import live_mask
from covector_server.storage.view import CollectionView, PositionedCheckpoint, RowIds

SUM_BYTES: Final = 64 << 20  # of the estimates of all rows, for as many vectors as that allows, but one
STEP_ROWS: Final = 1 << 14

Counts = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class SummedSearch:
    """A question of several checkpoints to an open index of each, in the order of the plan's terms. ``mask``:
    bool[row ids], the rows asked about, None for all."""

    view: CollectionView
    plan: Plan
    k: int
    mask: Mask | None
    records: Sequence[IndexRecord]
    cancelled: Cancelled

    def run(self, indexes: Sequence[Summable], exact_search: ExactSearch) -> tuple[tuple[Ends, ...], tuple[Stage, ...]]:
        """The ends of each result and the stages. Raises Corrupt where a row or a key cannot be read."""
        started = time.perf_counter()
        newer = self._newer()
        found = self._candidates(indexes, self._eligible(newer))
        drawn_s = time.perf_counter()
        drawn = [union_of(top, bottom) for top, bottom in zip(found.top, found.bottom, strict=True)]
        known = self._ends(drawn)
        count = sum(map(len, drawn))
        candidates = Stage("candidates", found.seen_count, count, drawn_s - started)
        rescored = Stage("rescore", count, hit_count(known), time.perf_counter() - drawn_s)
        if self.mask is not None:
            newer &= self.mask
        if not newer.any():
            return known, (candidates, rescored)
        fresh, stages, all_named = exact_search(self.plan, newer)
        if not all_named:
            raise Corrupt("a key cannot be read")
        merged = merged_ends(known, fresh, self.k)
        return merged, (candidates, *stages, joined(rescored, merged))

    def _newer(self) -> Mask:
        """Which row ids have a live position that one of the indexes does not cover."""
        newer = np.zeros(self.view.row_id_count, dtype=bool)
        for term, record in zip(self.plan.terms, self.records, strict=True):
            checkpoint = _positioned(term)
            for row_ids in _live_ids(checkpoint, record.covered[0].row_count, checkpoint.position_count):
                newer[row_ids] = True
        return newer

    def _eligible(self, newer: Mask) -> Mask:
        """Which row ids may be candidates: live at all checkpoints, or at one where a missing one adds nothing."""
        seen: Counts = np.zeros(self.view.row_id_count, dtype=np.int16)
        for term, record in zip(self.plan.terms, self.records, strict=True):
            for row_ids in _live_ids(_positioned(term), 0, record.covered[0].row_count):
                check_cancelled(self.cancelled)
                seen[row_ids] += 1
        wanted_count = len(self.plan.terms) if self.plan.missing == "omit" else 1
        eligible = (seen >= wanted_count) & ~newer
        return eligible if self.mask is None else eligible & self.mask

    def _candidates(self, indexes: Sequence[Summable], eligible: Mask) -> Candidates:
        """Row ids of both ends of the sums, for each group."""
        most = max(record.oversampling for record in self.records)
        count = candidate_count(max(most, OVERSAMPLING_USUAL), self.k)  # nothing was measured for the sum
        top: list[RowIds] = []
        bottom: list[RowIds] = []
        step = max(1, SUM_BYTES // (4 * max(1, len(eligible))))
        for first in range(0, self.plan.group_count, step):
            groups = slice(first, min(first + step, self.plan.group_count))
            extremes = Extremes(groups.stop - groups.start, min(count, len(eligible)))
            sums = self._sums(indexes, groups)
            sums[:, ~eligible] = np.nan
            for start in range(0, len(eligible), STEP_ROWS):
                extremes.offer(start, sums[:, start : start + STEP_ROWS])
            top += extremes.top()
            bottom += extremes.bottom()
        return Candidates(top, bottom, int(np.count_nonzero(eligible)))

    def _sums(self, indexes: Sequence[Summable], groups: slice) -> Float32:
        """The sums of the estimates of some groups by row id, each group's up to a factor of its own."""
        sums = np.zeros((groups.stop - groups.start, self.view.row_id_count), dtype=np.float32)
        largest = np.max([np.abs(term.coefficients[groups]) for term in self.plan.terms], axis=0)
        for term, record, index in zip(self.plan.terms, self.records, indexes, strict=True):
            checkpoint = _positioned(term)
            rows = CheckpointRows(checkpoint, term.scorer, self.plan.dim)
            weighted = index.weighted(term.narrow[groups])
            shares = term.coefficients[groups] / np.where(largest > 0, largest, 1.0)
            for start, stop in _steps(0, record.covered[0].row_count):
                check_cancelled(self.cancelled)
                estimates = index.products(weighted, start, stop)
                estimates *= shares.astype(np.float32)[:, None]
                estimates *= rows.factors(start, stop).astype(np.float32)
                row_ids = checkpoint.columns(start, stop).row_ids
                _add(sums, estimates, row_ids, live_mask(checkpoint.dead, start, stop))
        return sums

    def _keys_of(self, row_ids: RowIds) -> list[bytes]:
        return self.view.keys_of(row_ids)

    def _ends(self, drawn: Sequence[RowIds]) -> tuple[Ends, ...]:
        """The best of the candidates of each group, by exact scores."""
        scan = Scan(self.plan, None, self.view.row_id_count, self.cancelled)
        wanted = [(slice(group, group + 1), row_ids) for group, row_ids in enumerate(drawn)]
        ends = []
        for row_ids, scores in zip(drawn, exact_scores(scan, wanted), strict=True):
            ends.append(ends_of(row_ids, scores[0], self.k, self._keys_of))
        return tuple(ends)


def _add(sums: Float32, estimates: Float32, row_ids: RowIds, live: Mask) -> None:
    """Adds estimates float32[m, n] at the row ids of live positions, each of which is there once."""
    if live.all() and len(row_ids) and bool((np.diff(row_ids) == 1).all()):  # in order of arrival, as most rows are
        sums[:, row_ids[0] : row_ids[0] + len(row_ids)] += estimates
        return
    placed = row_ids[live]
    for row, estimate in zip(sums, estimates[:, live], strict=True):
        row[placed] += estimate


def _live_ids(checkpoint: PositionedCheckpoint, start: int, stop: int) -> Iterator[RowIds]:
    for low, high in _steps(start, stop):
        yield checkpoint.columns(low, high).row_ids[live_mask(checkpoint.dead, low, high)]


def _steps(start: int, stop: int) -> Iterator[tuple[int, int]]:
    for low in range(start, stop, STEP_ROWS):
        yield low, min(low + STEP_ROWS, stop)


def _positioned(term: Term) -> PositionedCheckpoint:
    return cast("PositionedCheckpoint", term.view)
