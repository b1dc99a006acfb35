"""Both ends of every result, from blocks of approximate scores.

A row is a candidate while its approximate score, moved up by its error, reaches a score that k rows surely have. The
candidates wait in pools of bounded size (``kernels.topk``) and are re-scored in float64 at the end, or when a pool is
full of rows that cannot be told apart. Rows with the same exact score are told apart by key, looked up only when more
of them stand at the k-th place than fit. However many rows tie, a pool holds a bounded number of them, and each row
costs a bounded number of look-ups.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

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

    ``k``: rows at each end of every result, or of each its own number. ``lost``: ids of rows that were found damaged
    after they were scanned, by this selection or one before it; those of the latter are left out. If it has grown, the
    ends lack rows that gave way to lost ones: scan again.
    """

    def __init__(self, scan: Scan, k: int | Sequence[int], keys_of: KeysOf, lost: set[int] | None = None) -> None:
        self.rescored_counts = np.zeros(scan.plan.result_count, dtype=np.int64)  # by result
        self.scanned_count = 0
        self._scan = scan
        self._plan = scan.plan
        self._keys_of = keys_of
        self._ks = [k] * scan.plan.result_count if isinstance(k, int) else k
        self._pools = Pools(scan.plan.result_count, max(self._ks))
        self._offering = threading.Lock()
        self._lost: set[int] = set() if lost is None else lost
        self._left_out = np.array(sorted(self._lost), dtype=np.int64)
        self._direct = None if len(self._left_out) else direct_offer(scan, self._pools)

    def run(self) -> None:
        """Scans: offers all rows."""
        if self._direct is None:
            scan_each(self._scan, self.offer)
        else:
            direct, offer = self._direct, self._offer
            scan_strips(self._scan, lambda strip: direct.score(strip, offer), lambda: direct.help(offer))
            self.scanned_count += self._direct.scanned_count

    @property
    def rescored_count(self) -> int:
        """Of all results together."""
        return int(self.rescored_counts.sum())

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
        row_ids = self.finish()
        return self.named(dict(zip(row_ids.tolist(), self._keys_of(row_ids), strict=True)))

    def finish(self) -> RowIds:
        """Re-scores what is in doubt, and returns the ids of the rows at any end, ascending. Nothing is offered
        afterwards."""
        self._pools.settle()
        numbers = range(2 * self._plan.result_count)
        self._rescore(numbers)
        return np.unique(np.concatenate([self._pools.kept(number)[2] for number in numbers]))

    def named(self, key_of: Mapping[int, bytes]) -> tuple[Ends, ...]:
        """The ends of each result, by the keys of the rows that ``finish`` returned."""
        kept = [self._pools.kept(number) for number in range(2 * self._plan.result_count)]
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
        """Puts exact scores into pools, of the k best at most. What both ends of a result want is scored at once."""
        kept = [self._wanted(number) for number in numbers]
        doubtful: dict[int, list[tuple[RowIds, RowIds]]] = {}
        for number, (_, errors, row_ids, origins) in zip(numbers, kept, strict=True):
            doubtful.setdefault(number // 2, []).append((row_ids[errors > 0], origins[errors > 0]))
        wanted = {result: _distinct(ends) for result, ends in doubtful.items()}
        found = dict(zip(wanted, self._exact(wanted), strict=True))
        for result, exact in found.items():
            self.rescored_counts[result] += exact.shape[1]
        for number, (scores, errors, row_ids, _) in zip(numbers, kept, strict=True):
            result, places = number // 2, errors > 0
            exact = found[result][:, np.searchsorted(wanted[result][0], row_ids[places])]
            scores[places] = _turn(number) * exact.max(axis=0)  # of one group, unless it is the largest that counts
            self._keep_best(number, scores, row_ids)

    def _exact(self, wanted: Mapping[int, tuple[RowIds, RowIds]]) -> list[Float64]:
        """Scores of rows, (ids, origins) by result: float64[groups of the result, rows]."""
        groups = [self._plan.groups_of(result) for result in wanted]
        if self._direct is not None:
            found = self._direct.exact(groups, [origins for _, origins in wanted.values()])
            if found is not None:
                return found
        return exact_scores(self._scan, [(some, ids) for some, (ids, _) in zip(groups, wanted.values(), strict=True)])

    def _wanted(self, number: int) -> tuple[Float64, Float64, RowIds, RowIds]:
        """What a pool holds; where it keeps more rows than are wanted of its result, what may be among these."""
        scores, errors, row_ids = self._pools.kept(number)
        origins, k = self._pools.origins(number), self._ks[number // 2]
        if k == self._pools.k or len(scores) <= k:
            return scores, errors, row_ids, origins
        keep = scores + errors >= np.partition(scores - errors, -k)[-k]
        return scores[keep], errors[keep], row_ids[keep], origins[keep]

    def _keep_best(self, number: int, scores: Float64, row_ids: RowIds) -> None:
        sound = ~np.isnan(scores)
        self._lost.update(row_ids[~sound].tolist())
        scores, row_ids = scores[sound], row_ids[sound]
        if len(scores) > self._ks[number // 2]:
            ranking = Ranking(self._ks[number // 2], self._keys_of)
            ranking.add(scores, row_ids)
            scores, row_ids = ranking.kept()
        self._pools.replace(number, scores, row_ids)


def _distinct(ends: Sequence[tuple[RowIds, RowIds]]) -> tuple[RowIds, RowIds]:
    """Row ids, ascending, each once, and their origins."""
    row_ids, first = np.unique(np.concatenate([ids for ids, _ in ends]), return_index=True)
    return row_ids, np.concatenate([origins for _, origins in ends])[first]


def _turn(number: int) -> float:
    return -1.0 if number % 2 else 1.0


def _end(scores: Float64, row_ids: RowIds, key_of: Mapping[int, bytes], turn: float) -> End:
    keys = [key_of[row_id] for row_id in row_ids.tolist()]
    order = sorted(range(len(keys)), key=lambda place: (-scores[place], keys[place]))
    return End(row_ids[order], [keys[place] for place in order], turn * scores[order] + 0.0)  # no score leaves as -0.0
