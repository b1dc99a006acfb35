"""Both ends of every result, from blocks of approximate scores.

A row is a candidate while its approximate score, moved up by its error, reaches a score that k rows surely have. The
candidates wait in pools of bounded size (``kernels.topk``) and are re-scored in float64 at the end, or when a pool is
full of rows that cannot be told apart. Rows with the same exact score are told apart by key, looked up only when more
of them stand at the k-th place than fit. However many rows tie, a pool holds a bounded number of them, and each row
costs a bounded number of look-ups.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from covector.attribution.scoring import Float64
from covector_server.kernels.topk import Pools, Scored
from covector_server.query.direct import direct_offer
from covector_server.query.question import End, Ends
from covector_server.query.scan import Scan, exact_scores, scan_each, scan_strips
from covector_server.storage.view import Positions, RowIds

SLACK = 1024  # rows of a ranking beside twice k

KeysOf = Callable[[RowIds], list[bytes]]


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

    def kept(self) -> tuple[Float64, RowIds]:
        """Scores and row ids of the k best, in no order."""
        self._break_ties()
        return self._scores, self._row_ids

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
    """Both ends of every result of a scan's plan, fed block by block from any thread.

    ``lost``: ids of rows that were found damaged after they were scanned, by this selection or one before it; those of
    the latter are left out. If it has grown, the ends lack rows that gave way to lost ones: scan again.
    """

    def __init__(self, scan: Scan, k: int, keys_of: KeysOf, lost: set[int] | None = None) -> None:
        self.rescored_count = 0
        self.scanned_count = 0
        self._scan = scan
        self._plan = scan.plan
        self._keys_of = keys_of
        self._pools = Pools(scan.plan.result_count, k)
        self._offering = threading.Lock()
        self._lost: set[int] = set() if lost is None else lost
        self._left_out = np.array(sorted(self._lost), dtype=np.int64)
        self._direct = None if len(self._left_out) else direct_offer(scan, self._pools, self._offer)

    def run(self) -> None:
        """Scans: offers all rows."""
        if self._direct is None:
            scan_each(self._scan, self.offer)
        else:
            scan_strips(self._scan, self._direct.score, self._direct.help)
            self.scanned_count += self._direct.scanned_count

    def offer(self, block: Scored) -> None:
        """Takes from a block, of scores by group, what may belong to an end."""
        self._offer(block)
        with self._offering:
            self.scanned_count += len(block.row_ids)

    def _offer(self, block: Scored) -> None:
        scored = self._reduced(block)
        with self._offering:
            self._pools.begin()
            while full := self._pools.offer(scored):
                self._rescore(full)

    def ends(self) -> tuple[Ends, ...]:
        """The ends of each result."""
        self._pools.settle()
        numbers = range(2 * self._plan.result_count)
        self._rescore(numbers)
        kept = [self._pools.kept(number) for number in numbers]
        row_ids = np.unique(np.concatenate([row_ids for _, _, row_ids in kept]))
        key_of = dict(zip(row_ids.tolist(), self._keys_of(row_ids), strict=True))
        sides = [_end(scores, row_ids, key_of, _turn(number)) for number, (scores, _, row_ids) in enumerate(kept)]
        return tuple(Ends(top, bottom) for top, bottom in zip(sides[::2], sides[1::2], strict=True))

    def _reduced(self, block: Scored) -> Scored:
        if self._plan.reduce_max:
            scores, bounds = self._plan.reduced(block.scores()), self._plan.reduced(block.bounds())
            block = Scored.plain(scores, bounds, block.row_ids)
        if not len(self._left_out):
            return block
        gone = np.isin(block.row_ids, self._left_out)
        if gone.any():  # their bytes are read once more, so that whoever counts damage is told of them
            exact_scores(self._scan, [(slice(0, 1), block.row_ids[gone])])
        return Scored.plain(block.scores()[:, ~gone], block.bounds()[:, ~gone], block.row_ids[~gone])

    def _rescore(self, numbers: Sequence[int]) -> None:
        """Puts exact scores into pools, of the k best at most."""
        kept = [self._pools.kept(number) for number in numbers]
        doubtful = [errors > 0 for _, errors, _ in kept]
        wanted = [
            (self._plan.groups_of(number // 2), row_ids[places])
            for number, (_, _, row_ids), places in zip(numbers, kept, doubtful, strict=True)
        ]
        origins = [self._pools.origins(number)[places] for number, places in zip(numbers, doubtful, strict=True)]
        found = None if self._direct is None else self._direct.exact([groups for groups, _ in wanted], origins)
        if found is None:
            found = exact_scores(self._scan, wanted)
        for number, (scores, _, row_ids), places, exact in zip(numbers, kept, doubtful, found, strict=True):
            self.rescored_count += exact.shape[1]
            scores[places] = _turn(number) * exact.max(axis=0)  # of one group, unless it is the largest that counts
            self._keep_best(number, scores, row_ids)

    def _keep_best(self, number: int, scores: Float64, row_ids: RowIds) -> None:
        sound = ~np.isnan(scores)
        self._lost.update(row_ids[~sound].tolist())
        scores, row_ids = scores[sound], row_ids[sound]
        if len(scores) > self._pools.k:
            ranking = Ranking(self._pools.k, self._keys_of)
            ranking.add(scores, row_ids)
            scores, row_ids = ranking.kept()
        self._pools.replace(number, scores, row_ids)


def _turn(number: int) -> float:
    return -1.0 if number % 2 else 1.0


def _end(scores: Float64, row_ids: RowIds, key_of: dict[int, bytes], turn: float) -> End:
    keys = [key_of[row_id] for row_id in row_ids.tolist()]
    order = sorted(range(len(keys)), key=lambda place: (-scores[place], keys[place]))
    return End(row_ids[order], [keys[place] for place in order], turn * scores[order] + 0.0)  # no score leaves as -0.0
