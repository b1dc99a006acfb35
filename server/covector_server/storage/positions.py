"""Where each row's gradient lies in a checkpoint: found in the row_ids column itself, shard by shard, with no table in
memory.

Rows mostly arrive in the order of their ids, so a shard's column is mostly sorted and a binary search finds a row. A
shard that is not gets an order of its own, made when it is first asked for and kept in a small cache. Where a row was
replaced its newest position counts, and a dead newest position means that the row has none.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from covector_server.kernels.pages import Losses
from covector_server.storage.contract import BadRows, RowArray
from covector_server.storage.view import Positions, RowIds

ORDERS_BYTES = 32 << 20  # of the orders of unsorted shards that are kept, for each checkpoint
NO_POSITIONS: Positions = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class _Shard:
    """What is known of ``count`` rows of a shard. ``order`` None: their ids ascend."""

    count: int
    low: int
    high: int
    order: Positions | None

    @property
    def memory_bytes(self) -> int:
        return 128 if self.order is None else 128 + self.order.nbytes


class PositionFinder:
    """Finds positions in the row_ids array of one checkpoint. Any thread may ask."""

    def __init__(self, row_ids: RowArray, orders_bytes: int = ORDERS_BYTES) -> None:
        self._row_ids = row_ids
        self._orders_bytes = orders_bytes
        self._shards: OrderedDict[int, _Shard] = OrderedDict()  # sorted ones stay, orders are evicted
        self._kept_bytes = 0
        self._losses = Losses()
        self._keeping = threading.Lock()

    def find(
        self, row_ids: RowIds, row_count: int, dead: Positions, on_bad: Callable[[BadRows], None] | None = None
    ) -> Positions:
        """int64[rows]: the position of each row among the first ``row_count``, -1 for none. ``dead``: sorted.

        A damaged shard of the column is told to ``on_bad``, and rows in it are not found; BadRows is raised without.
        """
        found = np.full(len(row_ids), -1, dtype=np.int64)
        if not len(row_ids):
            return found
        if self._losses.grew():
            self.forget()  # an order may have been made of what could not be read
        low, high = int(row_ids.min()), int(row_ids.max())
        shard_rows = self._row_ids.layout.shard_rows
        for start in range(0, row_count, shard_rows):
            count = min(shard_rows, row_count - start)
            try:
                shard = self._shard(start // shard_rows, count, row_count)
                if shard.low <= high and shard.high >= low:
                    self._find_in(shard, start, row_ids, row_count, found)
            except BadRows as bad:
                if on_bad is None:
                    raise
                on_bad(bad)
        return np.where(is_among(dead, found), -1, found)

    def forget(self) -> None:
        """Drops what is known, after rows past the committed ones were written over."""
        with self._keeping:
            self._shards.clear()
            self._kept_bytes = 0

    def _find_in(self, shard: _Shard, start: int, row_ids: RowIds, row_count: int, found: Positions) -> None:
        """Fills in the rows that this shard has; called from the oldest to the newest."""
        column = self._column(start, shard.count, row_count)
        wanted = row_ids.astype(np.uint64)
        places = np.searchsorted(column, wanted, side="right", sorter=shard.order) - 1
        here = np.flatnonzero(places >= 0)
        at = places[here] if shard.order is None else shard.order[places[here]]
        same = column[at] == wanted[here]
        found[here[same]] = at[same] + start

    def _shard(self, number: int, count: int, row_count: int) -> _Shard:
        with self._keeping:
            known = self._shards.get(number)
            if known is not None and known.count == count:
                self._shards.move_to_end(number)
                return known
        made = self._examined(self._column(number * self._row_ids.layout.shard_rows, count, row_count))
        with self._keeping:
            if known is None or known.count < count:  # a view of fewer rows does not undo what the newest has made
                self._keep(number, made)
        return made

    def _keep(self, number: int, shard: _Shard) -> None:
        old = self._shards.pop(number, None)
        self._kept_bytes += shard.memory_bytes - (0 if old is None else old.memory_bytes)
        self._shards[number] = shard
        for other in [other for other, kept in self._shards.items() if kept.order is not None]:
            if self._kept_bytes <= self._orders_bytes or other == number:
                break
            self._kept_bytes -= self._shards.pop(other).memory_bytes

    def _examined(self, column: npt.NDArray[np.uint64]) -> _Shard:
        count = len(column)
        if count < 2 or (column[1:] > column[:-1]).all():
            return _Shard(count, int(column[0]), int(column[-1]), None)
        order = np.argsort(column, kind="stable")
        return _Shard(count, int(column[order[0]]), int(column[order[-1]]), order)

    def _column(self, start: int, count: int, row_count: int) -> npt.NDArray[np.uint64]:
        return self._row_ids.read(start, start + count, row_count)


def is_among(ordered: npt.NDArray[np.int64], values: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """bool[values]: which values stand in a sorted array."""
    if not len(ordered):
        return np.zeros(len(values), dtype=bool)
    places = np.searchsorted(ordered, values)
    found: npt.NDArray[np.bool_] = ordered[np.minimum(places, len(ordered) - 1)] == values
    return found


def merged(ordered: npt.NDArray[np.int64], more: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """A sorted array with more values."""
    return np.union1d(ordered, more) if len(more) else ordered
