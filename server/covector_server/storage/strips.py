"""Strips of a stored checkpoint: rows for the scan, left where they lie in the mapped shard.

A strip is read by the thread that scans it: the chunks' checksums on their first touch, and which rows are live.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from covector_server.kernels.scan import ChunkedRows
from covector_server.storage.contract import BadRows, RowArray, Rows
from covector_server.storage.damage import OnDamage
from covector_server.storage.view import Positions, Strip

_NO_FLOATS = np.empty(0, dtype=np.float32)
_NO_PLACES = np.empty(0, dtype=np.int64)


class StripHost(Protocol):
    """What a strip needs of its checkpoint."""

    @property
    def arrays(self) -> Mapping[str, RowArray]: ...
    @property
    def position_count(self) -> int: ...
    @property
    def dead(self) -> Positions: ...

    def column(self, name: str, start: int, stop: int) -> Rows: ...
    def meet(self, bad: BadRows, on_damage: OnDamage | None, left_out: int) -> None: ...
    def live_count(self, start: int, stop: int, row_id_range: tuple[int, int] | None) -> int: ...


@dataclass(frozen=True, slots=True)
class StoredStrip:
    """``view.StripSource``: the live rows at positions [start, stop) of one shard, with ids in a range if there is one;
    or, of those, the ones at ``positions``, which are live."""

    checkpoint: StripHost
    start: int
    stop: int
    row_id_range: tuple[int, int] | None = None
    positions: Positions | None = None

    def prefetch(self) -> bool:
        """Begins to read the gradients, unless they are far between."""
        if self.positions is not None and 2 * len(self.positions) <= self.stop - self.start:
            return False
        return self.checkpoint.arrays["gradients"].prefetch(self.start, self.stop)

    def may_have_rows(self) -> bool:
        """Whether ``load`` may find rows, or damage."""
        try:
            chosen = self._chosen()
        except BadRows:
            return True
        return chosen is None or bool(chosen.any())

    def load(self, on_damage: OnDamage | None = None) -> Strip:
        """The rows; see ``view.StripSource``."""
        try:
            strip, bad = self._read()
        except BadRows as error:  # of a column, or of the whole shard
            self.checkpoint.meet(error, on_damage, self._count(self.start, self.stop))
            return _NO_ROWS
        for one in bad:
            start, stop = max(one.start, self.start), min(one.stop, self.stop)
            self.checkpoint.meet(one, on_damage, self._count(start, stop))
        return strip

    def _read(self) -> tuple[Strip, tuple[BadRows, ...]]:
        checkpoint, start, stop = self.checkpoint, self.start, self.stop
        span = checkpoint.arrays["gradients"].span(start, stop, checkpoint.position_count, self.positions)
        places = self._places(span.bad)
        strip = Strip(
            rows=ChunkedRows(
                span.chunks,
                range(span.first, span.first + stop - start) if isinstance(places, slice) else span.first + places,
            ),
            scales=checkpoint.column("scales", start, stop)[places],
            row_ids=checkpoint.column("row_ids", start, stop)[places].view(np.int64),
            trak_q=checkpoint.column("trak_q", start, stop)[places],
        )
        return strip, span.bad

    def _places(self, bad: tuple[BadRows, ...]) -> slice | Positions:
        """Which of the positions count, from the first on, and are not bad."""
        if self.positions is not None and not bad:
            return self.positions - self.start
        chosen = self._chosen()
        if chosen is None and not bad:
            return slice(None)
        sound = np.ones(self.stop - self.start, dtype=bool) if chosen is None else chosen
        for one in bad:
            sound[max(one.start - self.start, 0) : one.stop - self.start] = False
        return np.flatnonzero(sound)

    def _chosen(self) -> npt.NDArray[np.bool_] | None:
        """Which positions count; None for all."""
        if self.positions is not None:
            chosen = np.zeros(self.stop - self.start, dtype=bool)
            chosen[self.positions - self.start] = True
            return chosen
        if self.row_id_range is None and not _any_dead(self.checkpoint.dead, self.start, self.stop):
            return None
        live = live_mask(self.checkpoint.dead, self.start, self.stop)
        if self.row_id_range is not None:
            row_ids, (low, high) = self.checkpoint.column("row_ids", self.start, self.stop), self.row_id_range
            live &= (row_ids >= low) & (row_ids < high)
        return None if live.all() else live

    def _count(self, start: int, stop: int) -> int:
        """How many of the rows lie at positions [start, stop)."""
        if self.positions is None:
            return self.checkpoint.live_count(start, stop, self.row_id_range)
        return int(np.count_nonzero((self.positions >= start) & (self.positions < stop)))


def _any_dead(dead: Positions, start: int, stop: int) -> bool:
    low, high = np.searchsorted(dead, (start, stop))
    return bool(high > low)


def live_mask(dead: Positions, start: int, stop: int) -> npt.NDArray[np.bool_]:
    """Which of the positions [start, stop) are not among the sorted dead ones."""
    low, high = np.searchsorted(dead, (start, stop))
    live = np.ones(stop - start, dtype=bool)
    live[dead[low:high] - start] = False
    return live


_NO_ROWS = Strip(ChunkedRows.of(np.empty((0, 1), dtype=np.float16)), _NO_FLOATS, _NO_PLACES, _NO_FLOATS)
