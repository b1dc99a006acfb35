"""The rows that an index is built from, streamed from the mapped shards of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt

from covector.attribution.preconditioner import Identity, Preconditioner
from covector.attribution.scoring import RowFacts, Scorer
from covector_server.index.contract import Mask
from covector_server.kernels.pages import Losses
from covector_server.storage.strips import live_mask
from covector_server.storage.view import Columns, PositionedCheckpoint, Positions

MEMORY_BYTES_MIN = 512 << 20
MEMORY_SHARE = 0.1
COLUMN_ROWS = 1 << 18  # whose scales are looked at at once

Report = Callable[[int, int], None]  # rows done, rows in all


def memory_bytes(row_count: int, dim: int) -> int:
    """The anonymous memory that a build may take."""
    return max(MEMORY_BYTES_MIN, int(MEMORY_SHARE * 2 * dim * row_count))


class CheckpointRows:
    """``contract.Rows`` of a checkpoint: factors of a scorer, and the live positions, or those among them that ``mask``
    (bool[row ids]) lets through."""

    def __init__(self, view: PositionedCheckpoint, scorer: Scorer, dim: int, mask: Mask | None = None) -> None:
        self._view = view
        self._scorer = scorer
        self._norm = np.sqrt(dim)  # of a row at unit RMS, but for the rounding to float16
        self._mask = mask

    def factors(self, start: int, stop: int) -> npt.NDArray[np.float64]:
        """See ``contract.Rows``; 0 for a dead row, of which a scorer may know nothing any more. Norms are those of rows
        at unit RMS: good enough to choose candidates by."""
        columns = self._view.columns(start, stop)
        facts = RowFacts(np.full(stop - start, self._norm), columns.scales, columns.trak_q, columns.row_ids)
        low, high = np.searchsorted(self._view.dead, (start, stop)) if len(self._view.dead) else (0, 0)
        if low == high:
            return self._scorer.row_factor(facts)
        live = live_mask(self._view.dead, start, stop)
        factors = np.zeros(stop - start)
        factors[live] = self._scorer.row_factor(
            RowFacts(facts.norms[live], facts.scales[live], facts.trak_q[live], facts.row_ids[live])
        )
        return factors

    def chosen(self, start: int, stop: int) -> Mask | None:
        low, high = np.searchsorted(self._view.dead, (start, stop)) if len(self._view.dead) else (0, 0)
        if self._mask is None and low == high:
            return None
        if self._mask is None:
            chosen = np.ones(stop - start, dtype=bool)
        else:
            chosen = self._mask[self._view.columns(start, stop).row_ids]
        chosen[self._view.dead[low:high] - start] = False
        return chosen


class CheckpointSource:
    """``contract.Source`` of the first ``row_count`` positions of a checkpoint. ``report`` hears of the rows that went
    by, over all passes, and may raise. ``preconditioner``: the scorer's A, None for the identity."""

    def __init__(
        self,
        view: PositionedCheckpoint,
        dim: int,
        scorer: Scorer,
        report: Report,
        preconditioner: Preconditioner | None = None,
    ) -> None:
        self.row_count = view.position_count
        self.dim = dim
        self.rows = CheckpointRows(view, scorer, dim)
        self.preconditioner: Preconditioner = preconditioner or Identity()
        self._view = view
        self._report = report
        self._losses = Losses()
        self._done_count = 0
        self._total_count = self.row_count

    @cached_property
    def live(self) -> Positions:
        """The positions of live rows that are not all zero."""
        found = [
            start + np.flatnonzero(self._columns(start).scales > 0) for start in range(0, self.row_count, COLUMN_ROWS)
        ]
        positions = np.concatenate([np.empty(0, dtype=np.int64), *found])
        return np.setdiff1d(positions, self._view.dead, assume_unique=True)

    def pieces(self, rows_max: int) -> Iterator[tuple[int, list[npt.NDArray[np.float16]]]]:
        """See ``contract.Source``."""
        self._total_count = max(self._total_count, self._done_count + self.row_count)
        for first in range(0, self.row_count, rows_max):
            stop = min(first + rows_max, self.row_count)
            self.check()
            yield first, [self._view.span(*span).rows for span in self._view.spans(first, stop)]
            self._done_count += stop - first
        self.check()

    def check(self) -> None:
        """See ``contract.Source``. Raises Unavailable if rows handed out before could not be read after all."""
        self._losses.check()
        self._report(self._done_count, self._total_count)

    def expect(self, row_count: int) -> None:
        """See ``contract.Source``."""
        self._total_count = max(self._total_count, self._done_count) + row_count

    def advance(self, row_count: int) -> None:
        """See ``contract.Source``."""
        self._done_count += row_count
        self.check()

    def views(self, positions: Positions) -> list[npt.NDArray[np.float16]]:
        """See ``contract.Source``."""
        found: list[npt.NDArray[np.float16]] = []
        while len(found) < len(positions):
            self.check()
            first = int(positions[len(found)])
            stop = next(end for _, end in self._view.spans(first, self.row_count))
            here = positions[len(found) : len(found) + int(np.searchsorted(positions[len(found) :], stop))]
            rows = self._view.span(first, stop).rows
            found += [rows[place] for place in (here - first).tolist()]
        return found

    def _columns(self, start: int) -> Columns:
        return self._view.columns(start, min(start + COLUMN_ROWS, self.row_count))
