"""Both ends of every result, from blocks of approximate scores.

A row is a candidate while its approximate score, moved up by its error, reaches the k-th best exact score so far.
Candidates are re-scored in float64 as their block passes, so no pool of doubtful rows builds up. Rows with the same
exact score are told apart by key, looked up only when more of them stand at the k-th place than fit. However many rows
tie, a ranking holds at most 2 k + SLACK rows plus one piece, and each row costs a bounded number of look-ups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from covector.attribution.scoring import Float64
from covector_server.query.cancellation import Cancelled, check_cancelled
from covector_server.query.planner import Plan
from covector_server.query.question import End, Ends
from covector_server.query.scan import Block
from covector_server.storage.view import Positions, RowIds

SLACK = 1024
PIECE_ELEMENTS = 1 << 20  # of float64 rows re-scored at once

KeysOf = Callable[[RowIds], list[bytes]]
_Bounds = tuple[Float64, Float64, npt.NDArray[np.bool_]]  # upper, lower, and who waits to be re-scored


class Ranking:
    """The k largest of a stream of exact scores, equal ones in order of key. Scores are those of one end: opponents
    come with their sign turned."""

    def __init__(self, k: int, keys_of: KeysOf) -> None:
        self.threshold = -np.inf  # a row below it cannot enter
        self._k = k
        self._keys_of = keys_of
        self._scores: Float64 = np.empty(0)
        self._row_ids: RowIds = np.empty(0, dtype=np.int64)

    def add(self, scores: Float64, row_ids: RowIds) -> None:
        """Offers rows that were not offered before."""
        entering = scores >= self.threshold
        self._scores = np.concatenate([self._scores, scores[entering]])
        self._row_ids = np.concatenate([self._row_ids, row_ids[entering]])
        if len(self._scores) >= self._k:
            self.threshold = float(np.partition(self._scores, -self._k)[-self._k])
            self._keep(np.flatnonzero(self._scores >= self.threshold))
        if len(self._scores) > 2 * self._k + SLACK:
            self._break_ties()

    def best(self) -> tuple[RowIds, list[bytes], Float64]:
        """Row ids, keys and scores of the k best, best first."""
        self._break_ties()
        keys = self._keys_of(self._row_ids)
        order = sorted(range(len(keys)), key=lambda place: (-self._scores[place], keys[place]))
        return self._row_ids[order], [keys[place] for place in order], self._scores[order]

    def _break_ties(self) -> None:
        """Of the rows that share the k-th place, keeps as many as fit, by key."""
        if len(self._scores) <= self._k:
            return
        tied = np.flatnonzero(self._scores == self.threshold)
        above = np.flatnonzero(self._scores > self.threshold)
        keys = self._keys_of(self._row_ids[tied])
        by_key = sorted(range(len(tied)), key=keys.__getitem__)
        self._keep(np.concatenate([above, tied[by_key[: self._k - len(above)]]]))

    def _keep(self, places: Positions) -> None:
        self._scores, self._row_ids = self._scores[places], self._row_ids[places]


class Selection:
    """The rankings of both ends of every result of a plan, fed block by block."""

    def __init__(self, plan: Plan, k: int, keys_of: KeysOf) -> None:
        self.rescored_count = 0
        self._plan = plan
        self._k = k
        self._rankings = {turn: [Ranking(k, keys_of) for _ in range(plan.result_count)] for turn in (1.0, -1.0)}

    def offer(self, block: Block, cancelled: Cancelled) -> None:
        """Takes from a block what belongs to an end."""
        approximate, error = self._plan.reduced(block.approximate), self._plan.reduced(block.error)
        for turn, rankings in self._rankings.items():
            upper = turn * approximate + error
            thresholds = np.array([ranking.threshold for ranking in rankings])
            for result in np.flatnonzero(upper.max(axis=1, initial=-np.inf) >= thresholds):
                lower = turn * approximate[result] - error[result]
                waiting = np.ones(len(block.row_ids), dtype=bool)  # not re-scored yet
                while not self._rescore_all(block, int(result), turn, (upper[result], lower, waiting), cancelled):
                    pass  # rows that others gave way to were lost: once more, without them

    def ends(self) -> tuple[Ends, ...]:
        """The ends of each result."""
        pairs = zip(self._rankings[1.0], self._rankings[-1.0], strict=True)
        return tuple(Ends(_end(proponents, 1.0), _end(opponents, -1.0)) for proponents, opponents in pairs)

    def _rescore_all(self, block: Block, result: int, turn: float, bounds: _Bounds, cancelled: Cancelled) -> bool:
        """Re-scores the candidates of a result. False if some of them turned out to be damaged."""
        ranking, sound = self._rankings[turn][result], True
        for piece in self._pieces(ranking, *bounds):
            check_cancelled(cancelled)
            bounds[2][piece] = False
            sound &= self._rescore(block, ranking, result, turn, piece)
        return sound

    def _pieces(
        self, ranking: Ranking, upper: Float64, lower: Float64, waiting: npt.NDArray[np.bool_]
    ) -> Iterator[Positions]:
        """Positions of the candidates, the most promising first, as long as they can still enter."""
        candidates = np.flatnonzero(waiting & (upper >= ranking.threshold))
        if len(candidates) > self._k:
            sure = np.partition(lower[candidates], -self._k)[-self._k]  # k rows of the block score at least this
            candidates = candidates[upper[candidates] >= sure]
        candidates = candidates[np.argsort(-upper[candidates], kind="stable")]
        piece_rows = max(1, PIECE_ELEMENTS // self._plan.dim)
        for start in range(0, len(candidates), piece_rows):
            piece = candidates[start : start + piece_rows]
            piece = piece[upper[piece] >= ranking.threshold]
            if not len(piece):
                return
            yield piece

    def _rescore(self, block: Block, ranking: Ranking, result: int, turn: float, piece: Positions) -> bool:
        """Ranks rows by their exact scores. False if some of them are lost."""
        exact = block.exact(piece, self._plan.groups_of(result))
        scores = exact.max(axis=0) if self._plan.reduce_max else exact[0]
        found = ~np.isnan(scores)
        ranking.add(turn * scores[found], block.row_ids[piece[found]])
        self.rescored_count += len(piece)
        return bool(found.all())


def _end(ranking: Ranking, turn: float) -> End:
    row_ids, keys, scores = ranking.best()
    return End(row_ids, keys, turn * scores + 0.0)  # no score leaves as -0.0
