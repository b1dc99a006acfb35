"""The largest and the smallest of a stream of scores, for many vectors at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from covector_server.storage.view import Positions

Scores = npt.NDArray[np.float32]


class _End:
    """The ``count`` largest of a stream of scores, with their positions."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._threshold = -np.inf
        self._scores: list[Scores] = []
        self._positions: list[Positions] = []
        self._held_count = 0

    def offer(self, first: int, scores: Scores) -> None:
        """Scores of positions from ``first`` on; NaN stands for none."""
        places = np.flatnonzero(scores > self._threshold)
        if len(places):
            self._scores.append(scores[places])
            self._positions.append(places + first)
            self._held_count += len(places)
            if self._held_count > 4 * self._count:
                self._prune()

    def best(self) -> Positions:
        """Positions, largest score first; those of equal scores in their own order."""
        self._prune()
        if not self._held_count:
            return np.empty(0, dtype=np.int64)
        scores, positions = self._scores[0], self._positions[0]
        return positions[np.lexsort((positions, -scores))]

    def _prune(self) -> None:
        if not self._held_count:
            return
        scores, positions = np.concatenate(self._scores), np.concatenate(self._positions)
        if len(scores) > self._count:
            kept = np.argpartition(scores, -self._count)[-self._count :]
            scores, positions = scores[kept], positions[kept]
            self._threshold = float(scores.min())
        self._scores, self._positions, self._held_count = [scores], [positions], len(scores)


class Extremes:
    """Both ends of the scores of ``vector_count`` vectors."""

    def __init__(self, vector_count: int, count: int) -> None:
        self._top = [_End(count) for _ in range(vector_count)]
        self._bottom = [_End(count) for _ in range(vector_count)]

    def offer(self, first: int, scores: Scores) -> None:
        """scores: float32[vectors, n] of positions from ``first`` on; NaN for one that may not come."""
        for top, bottom, row in zip(self._top, self._bottom, scores, strict=True):
            top.offer(first, row)
            bottom.offer(first, -row)

    def top(self) -> list[Positions]:
        """Of each vector, the positions of the largest, largest first."""
        return [end.best() for end in self._top]

    def bottom(self) -> list[Positions]:
        """Of each vector, the positions of the smallest, smallest first."""
        return [end.best() for end in self._bottom]
