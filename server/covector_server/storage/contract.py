"""The contract of an array of rows: append, sync, seal, publish, read. One backend on files, one in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from covector.errors import Corrupt
from covector_server.kernels.rows import Checksums
from covector_server.storage.layout import ArrayLayout
from covector_server.storage.syncs import Syncs

Rows = npt.NDArray[Any]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ArrayState:
    """Rows written, and CRC-32C of those in the last, partial chunk (0 when there is none)."""

    row_count: int = 0
    checksum: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows to write; ``checksums``: CRC-32C of each as it was received, if known."""

    rows: Rows
    checksums: Checksums | None = None


class BadRows(Corrupt):
    """Rows [start, stop) of an array cannot be read; ``reason`` says what is wrong with the file at ``path``."""

    def __init__(self, reason: str, path: Path, start: int, stop: int) -> None:
        super().__init__(f"{path}: rows {start} to {stop - 1}: {reason}; restore the file from a snapshot", path=path)
        self.reason = reason
        self.path = path
        self.start = start
        self.stop = stop


@dataclass(frozen=True, slots=True)
class Span:
    """Rows where they lie: ``chunks`` is [chunks, chunk_rows, ...], ``first`` the place of the first row, counted
    through the chunks; ``bad``: those chunks among them that do not match their checksum."""

    chunks: Rows
    first: int
    bad: tuple[BadRows, ...] = ()


class RowArray(Protocol):
    """An array of rows that grows at its end. Writing belongs to one thread, reading to any; sealing may go on beside.

    ``write`` returns the next state and changes none: what was written past the state that the catalog holds is as good
    as absent, and is written over.
    """

    layout: ArrayLayout

    def create(self) -> None: ...
    def write(self, state: ArrayState, pieces: Sequence[Piece], syncs: Syncs) -> ArrayState: ...
    def close_after(self, row_count: int) -> None: ...
    def seal(self, shard: int) -> None: ...
    def complete_tail(self, state: ArrayState) -> None: ...
    def published_row_count(self) -> int: ...
    def set_published(self, row_count: int) -> None: ...

    def read(self, start: int, stop: int, row_count: int) -> Rows:
        """Rows [start, stop), which must lie in one chunk. ``row_count``: committed rows. Raises BadRows for a chunk or
        a shard that is damaged."""
        ...

    def span(self, start: int, stop: int, row_count: int, wanted: Places | None = None) -> Span:
        """Rows [start, stop) of one shard where they lie; only chunks with ``wanted`` rows, sorted, are looked at if
        some are named. Raises BadRows for a shard that is missing or cut short."""
        ...

    def prefetch(self, start: int, stop: int) -> bool:
        """Begins to read rows [start, stop) of one shard into memory, if some are not there; returns whether. Never
        raises."""
        ...

    def checksum_of_tail(self, row_count: int) -> int: ...
    def close(self) -> None: ...
