"""The contract of an array of rows: append, sync, seal, publish, read. One backend on files, one in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from covector_server.storage.layout import ArrayLayout
from covector_server.storage.syncs import Syncs

Rows = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class ArrayState:
    """Rows written, and CRC-32C of those in the last, partial chunk (0 when there is none)."""

    row_count: int = 0
    checksum: int = 0


class RowArray(Protocol):
    """An array of rows that grows at its end. Writing belongs to one thread, reading to any; sealing may go on beside.

    ``write`` returns the next state and changes none: what was written past the state that the catalog holds is as good
    as absent, and is written over.
    """

    layout: ArrayLayout

    def create(self) -> None: ...
    def write(self, state: ArrayState, rows: Rows, syncs: Syncs) -> ArrayState: ...
    def seal(self, shard: int) -> None: ...
    def complete_tail(self, state: ArrayState) -> None: ...
    def published_row_count(self) -> int: ...
    def set_published(self, row_count: int) -> None: ...
    def read(self, start: int, stop: int, row_count: int) -> Rows: ...
    def checksum_of_tail(self, row_count: int) -> int: ...
    def close(self) -> None: ...
