"""An array of rows in memory: the same contract as on files, without a file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from crc32c import crc32c

from covector_server.storage.contract import ArrayState, Piece, Places, Rows, Span
from covector_server.storage.layout import ArrayLayout
from covector_server.storage.syncs import Syncs


class MemoryArray:
    """``storage.contract.RowArray`` on one growing numpy array."""

    def __init__(self, layout: ArrayLayout) -> None:
        self.layout = layout
        self._rows: Rows = np.empty((0, *layout.item_shape), dtype=layout.dtype)
        self._published = 0

    def create(self) -> None:
        self._rows = self._rows[:0]

    def write(self, state: ArrayState, pieces: Sequence[Piece], syncs: Syncs) -> ArrayState:
        given = [np.asarray(piece.rows, dtype=self.layout.dtype) for piece in pieces]
        self._rows = np.concatenate([self._rows[: state.row_count], *given])
        row_count = len(self._rows)
        return ArrayState(row_count, self.checksum_of_tail(row_count))

    def close_after(self, row_count: int) -> None:
        pass

    def seal(self, shard: int) -> None:
        assert len(self._rows) >= (shard + 1) * self.layout.shard_rows

    def complete_tail(self, state: ArrayState) -> None:
        assert len(self._rows) >= state.row_count

    def published_row_count(self) -> int:
        return self._published

    def set_published(self, row_count: int) -> None:
        self._published = row_count

    def read(self, start: int, stop: int, row_count: int) -> Rows:
        assert stop <= max(row_count, len(self._rows))
        return self._rows[start:stop]

    def span(self, start: int, stop: int, row_count: int, wanted: Places | None = None) -> Span:
        return Span(self.read(start, stop, row_count)[None], 0)

    def prefetch(self, start: int, stop: int) -> bool:
        return False

    def checksum_of_tail(self, row_count: int) -> int:
        start = row_count - row_count % self.layout.chunk_rows
        return int(crc32c(self._rows[start:row_count].tobytes()))

    def close(self) -> None:
        pass
