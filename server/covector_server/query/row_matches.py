"""Which rows a filter holds for: a set that is cheap to count, to list, and to spread over a mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from covector_server.metadata.postings_builder import bitmap_of
from covector_server.storage.view import RowIds


@dataclass(frozen=True, slots=True)
class MatchRun:
    """The matches among some consecutive rows: their offsets from row ``first``."""

    first: int
    offsets: BitMap

    def row_ids(self) -> RowIds:
        """Their row ids, ascending."""
        return np.frombuffer(self.offsets.to_array(), dtype=np.uint32).astype(np.int64) + self.first

    def without(self, row_ids: RowIds) -> MatchRun:
        """The matches that are not among these rows, which ascend; there is at least one match."""
        low, high = np.searchsorted(row_ids, [self.first, self.first + self.offsets.max() + 1])
        return MatchRun(self.first, self.offsets - bitmap_of(row_ids[low:high] - self.first))


@dataclass(frozen=True, slots=True)
class RowMatches:
    """The rows of a view that a filter holds for, in runs that ascend."""

    runs: tuple[MatchRun, ...]
    row_id_count: int

    @property
    def count(self) -> int:
        """How many rows match."""
        return sum(len(run.offsets) for run in self.runs)

    def row_ids(self) -> RowIds:
        """int64[count], ascending."""
        return np.concatenate([np.empty(0, dtype=np.int64), *(run.row_ids() for run in self.runs)])

    def mask(self) -> npt.NDArray[np.bool_]:
        """bool[row_id_count], by row id."""
        mask = np.zeros(self.row_id_count, dtype=bool)
        for run in self.runs:
            mask[run.row_ids()] = True
        return mask

    def without(self, row_ids: RowIds) -> RowMatches:
        """The matches that are not among these rows, which ascend."""
        runs = (run.without(row_ids) for run in self.runs if run.offsets)
        return RowMatches(tuple(runs), self.row_id_count)
