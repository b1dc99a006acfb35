"""Recall of an index on rows of its own collection: some rows are asked as queries, and exact search is the judge.

The exact scores come from the pass that a build makes over the rows anyway. A row that asks does not count as an answer
to itself, nor was it among those that the index was learnt from, where there are others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from covector.attribution.preconditioner import Identity
from covector.attribution.scoring import split_scale
from covector_server.index.contract import Candidates, Float32, Index, Search, Source, candidate_count
from covector_server.index.directions import Directions, Float16
from covector_server.kernels.extremes import Extremes
from covector_server.storage.view import Positions

QUERIES_MAX, QUERIES_MIN = 64, 8
QUERY_BYTES = 32 << 20
DEPTH = 100  # of the exact answers
MISSING = 1 << 62
OVERSAMPLINGS = (5, 7, 10, 20, 40)


def held_out(source: Source, learnt_from: npt.NDArray[np.int64], seed: int) -> Positions:
    """Positions of rows to ask with, sorted."""
    count = max(QUERIES_MIN, min(QUERIES_MAX, QUERY_BYTES // (2 * source.dim)))
    live = source.live
    others = np.setdiff1d(live, learnt_from, assume_unique=True)
    pool = others if len(others) >= count else live
    return np.sort(np.random.default_rng(seed).choice(pool, min(count, len(pool)), replace=False))


@dataclass(frozen=True, slots=True)
class Recall:
    """Shares of the exact answers that are among the candidates: of the top 10, the top 100, the bottom 10. 1.0 where
    nothing could be asked."""

    at_10: float
    at_100: float
    bottom_10: float

    @property
    def least(self) -> float:
        """The smallest of the three."""
        return min(self.at_10, self.at_100, self.bottom_10)

    def as_json(self) -> dict[str, float]:
        """As it is kept with the index."""
        return {"recall@10": self.at_10, "recall@100": self.at_100, "bottom-10": self.bottom_10}


@dataclass(slots=True)
class Judge:
    """Asks with the rows at ``positions``, after the scorer's A. ``offer`` takes exact products; after the last,
    ``recalls`` may be asked."""

    source: Source
    positions: Positions
    directions: Directions | None = field(init=False)
    _vectors: Float32 = field(init=False)
    _extremes: Extremes = field(init=False)
    _truth: tuple[list[Positions], list[Positions]] | None = None

    def __post_init__(self) -> None:
        views = self.source.views(self.positions)
        self._vectors = _mapped(self.source, _wide(views, self.source.dim))
        self.directions = Directions.of(self._vectors) if views else None
        self._extremes = Extremes(len(views), DEPTH)

    def offer(self, first: int, products: Float32) -> None:
        """products: float32[n, queries] of the rows at positions from ``first`` on."""
        if self._truth is not None:
            return
        stop = first + len(products)
        scores = (products * self.source.rows.factors(first, stop)[:, None].astype(np.float32)).T
        chosen = self.source.rows.chosen(first, stop)
        if chosen is not None:
            scores[:, ~chosen] = np.nan
        here = np.flatnonzero((self.positions >= first) & (self.positions < stop))
        scores[here, self.positions[here] - first] = np.nan
        self._extremes.offer(first, scores)

    def recalls(self, index: Index) -> dict[int, Recall]:
        """Recall by oversampling."""
        if self.directions is None:
            return dict.fromkeys(OVERSAMPLINGS, Recall(1.0, 1.0, 1.0))
        found = _Places.of(self._known(), self._ask(index, candidate_count(max(OVERSAMPLINGS), DEPTH)))
        return {oversampling: _recall(found, found, oversampling) for oversampling in OVERSAMPLINGS}

    def recall(self, index: Index, oversampling: int) -> Recall:
        """Recall of an index that looks at more rows where it is asked for more candidates: each k is asked by itself,
        as queries do."""
        if self.directions is None:
            return Recall(1.0, 1.0, 1.0)
        found = [self._ask(index, candidate_count(oversampling, k)) for k in (10, 100)]
        found_10, found_100 = (_Places.of(self._known(), one) for one in found)
        return _recall(found_10, found_100, oversampling)

    def _ask(self, index: Index, count: int) -> Candidates:
        """Candidates beside the row that asks."""
        count = min(count, self.source.row_count) + 1
        return index.candidates(Search(self._vectors, count, self.source.rows, lambda: None))

    def _known(self) -> tuple[list[Positions], list[Positions]]:
        self._truth = self._truth or (self._extremes.top(), self._extremes.bottom())
        return self._truth


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the exact answers are among the candidates, for each query: a large number for one that is not there."""

    top: list[Positions]
    bottom: list[Positions]

    @staticmethod
    def of(truth: tuple[list[Positions], list[Positions]], found: Candidates) -> _Places:
        ends = zip(truth, (found.top, found.bottom), strict=True)
        return _Places(*([places_of(*one) for one in zip(true, drawn, strict=True)] for true, drawn in ends))


def _recall(found_10: _Places, found_100: _Places, oversampling: int) -> Recall:
    return Recall(
        share_found(found_10.top, 10, oversampling),
        share_found(found_100.top, 100, oversampling),
        share_found(found_10.bottom, 10, oversampling),
    )


def places_of(truth: Positions, candidates: Positions) -> Positions:
    """Where each of some positions is among the candidates; ``MISSING`` for one that is not there."""
    order = np.argsort(candidates)
    places = np.full(len(truth), MISSING)
    if len(order):
        at = order[np.minimum(np.searchsorted(candidates, truth, sorter=order), len(order) - 1)]
        there = candidates[at] == truth
        places[there] = at[there]
    return places


def share_found(places: Sequence[Positions], k: int, oversampling: int) -> float:
    """The share of the first ``k`` of each exact answer that is among the candidates for k, beside the row that
    asks."""
    wanted_count = sum(len(one[:k]) for one in places)
    limit = candidate_count(oversampling, k) + 1
    hit_count = sum(int(np.count_nonzero(one[:k] < limit)) for one in places)
    return hit_count / wanted_count if wanted_count else 1.0


def choose_oversampling(recalls: dict[int, Recall], wanted: float) -> int | None:
    """The smallest oversampling that reaches a recall, None if none does."""
    return next((one for one in OVERSAMPLINGS if recalls[one].least >= wanted), None)


def _mapped(source: Source, wide: Float32) -> Float32:
    """A of some rows, at about unit RMS: what a query's gradient is turned into before an index is asked."""
    if not len(wide) or isinstance(source.preconditioner, Identity):
        return wide
    return split_scale(source.preconditioner.apply(wide.astype(np.float64)))[0].astype(np.float32)


def _wide(views: Sequence[Float16], dim: int) -> Float32:
    wide = np.empty((len(views), dim), dtype=np.float32)
    for row, view in zip(wide, views, strict=True):
        row[:] = view
    return wide
