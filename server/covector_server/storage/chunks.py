"""Chunks of a shard file, read by number with the checksum that they ought to have, for whoever rewrites them.

The bytes that were checked are the bytes that are handed over: they are read once, with ``pread``, into memory. So a
checksum that is made for what becomes of a sound chunk never covers a flip.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from crc32c import crc32c

from covector_server.storage.layout import CHECKSUM_BYTES, ArrayLayout


@dataclass(frozen=True, slots=True)
class Chunk:
    """The committed rows of a chunk: ``row_count`` of them from row ``first`` of the shard on. ``checksum`` is what was
    stored for them; ``is_sound``: whether it is theirs."""

    first: int
    row_count: int
    data: bytes
    checksum: int
    is_sound: bool


class ShardFile:
    """A shard of which ``row_count`` rows are committed; ``tail_checksum``: of those in the last, partial chunk."""

    def __init__(self, path: Path, layout: ArrayLayout, row_count: int, tail_checksum: int) -> None:
        self._path = path
        self._layout = layout
        self._row_count = row_count
        self._tail_checksum = tail_checksum
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    @property
    def chunk_count(self) -> int:
        """Chunks with committed rows."""
        return -(-self._row_count // self._layout.chunk_rows)

    def chunk(self, number: int) -> Chunk:
        """A chunk. What a file that was cut short lacks reads as zeros, and is not sound."""
        layout, first = self._layout, number * self._layout.chunk_rows
        row_count = min(layout.chunk_rows, self._row_count - first)
        size_bytes, is_whole = row_count * layout.row_bytes, row_count == layout.chunk_rows
        found = self._read(number * layout.stride_bytes, size_bytes + (CHECKSUM_BYTES if is_whole else 0))
        data = found[:size_bytes].ljust(size_bytes, b"\0")
        checksum = int.from_bytes(found[size_bytes:], "little") if is_whole else self._tail_checksum
        is_sound = len(found) >= size_bytes and crc32c(data) == checksum
        return Chunk(first, row_count, data, checksum, is_sound)

    def _read(self, offset_bytes: int, size_bytes: int) -> bytes:
        pieces = []
        while size_bytes and (piece := os.pread(self._descriptor, size_bytes, offset_bytes)):
            pieces.append(piece)
            offset_bytes, size_bytes = offset_bytes + len(piece), size_bytes - len(piece)
        return b"".join(pieces)
