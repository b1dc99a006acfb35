"""The way of a question through an index: candidates from both ends, exact scores, and the rows that the index has not.

An index covers the positions of a checkpoint up to some count. Live rows past it, new or replaced since, are scanned as
ever, and the two answers are merged, so an answer is complete to the last acknowledged row. Rows that died since are
known to the view and never drawn. Each candidate is scored in float64 from the stored bytes, by the same function as in
an exact scan: an answer may lack a row, but never has a wrong score.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from covector.errors import Corrupt
from covector.types import Stage
from covector_server.index.contract import Index, Search, candidate_count
from covector_server.index.source import CheckpointRows
from covector_server.metadata.records import IndexRecord
from covector_server.query.cancellation import Cancelled, check_cancelled
from covector_server.query.choosing import positioned
from covector_server.query.planner import Plan
from covector_server.query.question import End, Ends
from covector_server.query.rerank import best_of, union_of
from covector_server.query.scan import Mask
from covector_server.storage.view import NO_KEY, CollectionView, PositionedCheckpoint, Positions

STRIP_ROWS = 1 << 12  # of candidates looked at between two questions whether to go on

# Scans and re-scores what a plan sees of the rows in a mask: the ends of each result, the stages, whether all keys
# could be read.
ExactSearch: TypeAlias = Callable[[Plan, Mask | None], tuple[tuple[Ends, ...], tuple[Stage, ...], bool]]


@dataclass(frozen=True, slots=True)
class IndexSearch:
    """A question of one checkpoint to an open index. ``mask``: bool[row ids], the rows asked about, None for all."""

    view: CollectionView
    plan: Plan
    k: int
    mask: Mask | None
    record: IndexRecord
    cancelled: Cancelled

    def run(self, index: Index, exact_search: ExactSearch) -> tuple[tuple[Ends, ...], tuple[Stage, ...]]:
        """The ends of each result and the stages. Raises Corrupt where a row or a key cannot be read."""
        (term,) = self.plan.terms
        (part,) = self.record.covered
        known, candidates, rescored = self._known(index)
        checkpoint = positioned(term)
        if checkpoint.position_count == part.row_count:
            return known, (candidates, rescored)
        newer = replace(self.plan, terms=(replace(term, view=checkpoint.since(part.row_count)),))
        fresh, stages, all_named = exact_search(newer, self.mask)
        if not all_named:
            raise Corrupt("a key cannot be read")
        merged = merged_ends(known, fresh, self.k)
        return merged, (candidates, *stages, joined(rescored, merged))

    def _known(self, index: Index) -> tuple[tuple[Ends, ...], Stage, Stage]:
        """The ends among the rows that the index covers."""
        started = time.perf_counter()
        (term,) = self.plan.terms
        checkpoint = positioned(term)
        rows = CheckpointRows(checkpoint, term.scorer, self.plan.dim, self.mask)
        count = candidate_count(self.record.oversampling_of(term.scorer.name), self.k)
        search = Search(term.narrow, count, rows, self._check)
        found = index.candidates(search)
        drawn_s = time.perf_counter()
        drawn = [union_of(top, bottom) for top, bottom in zip(found.top, found.bottom, strict=True)]
        ends = tuple(self._ends(checkpoint, positions, group) for group, positions in enumerate(drawn))
        count = sum(map(len, drawn))
        candidates = Stage("candidates", found.seen_count, count, drawn_s - started)
        return ends, candidates, Stage("rescore", count, hit_count(ends), time.perf_counter() - drawn_s)

    def _ends(self, checkpoint: PositionedCheckpoint, positions: Positions, group: int) -> Ends:
        """The best of some candidates of one result, by exact scores."""
        (term,) = self.plan.terms
        strips = []
        for source in checkpoint.strips_at(positions, STRIP_ROWS):
            self._check()
            strips.append(source.load())
        return best_of(term, group, strips, self.k, self._keys_of)

    def _keys_of(self, row_ids: Positions) -> list[bytes]:
        return self.view.keys_of(row_ids)

    def _check(self) -> None:
        check_cancelled(self.cancelled)


def merged_ends(one: tuple[Ends, ...], other: tuple[Ends, ...], k: int) -> tuple[Ends, ...]:
    """The k best of the results of two searches without a row in common."""
    return tuple(
        Ends(_merged(a.proponents, b.proponents, k, 1.0), _merged(a.opponents, b.opponents, k, -1.0))
        for a, b in zip(one, other, strict=True)
    )


def _merged(one: End, other: End, k: int, turn: float) -> End:
    """The k best of two ends without a row in common: by score, then key."""
    assert NO_KEY not in one.keys
    row_ids = np.concatenate([one.row_ids, other.row_ids])
    scores = np.concatenate([one.scores, other.scores])
    keys = [*one.keys, *other.keys]
    order = sorted(range(len(keys)), key=lambda place: (-turn * scores[place], keys[place]))[:k]
    return End(row_ids[order], [keys[place] for place in order], scores[order])


def hit_count(ends: tuple[Ends, ...]) -> int:
    """Hits of all results."""
    return sum(len(end.keys) for both in ends for end in (both.proponents, both.opponents))


def joined(rescored: Stage, ends: tuple[Ends, ...]) -> Stage:
    """The stage of the candidates' exact scores, after what is newer was merged in."""
    return replace(rescored, rows_out=hit_count(ends))
