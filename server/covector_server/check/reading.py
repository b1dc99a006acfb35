"""Reading files to check them: with ``pread``, never mapped, so that a file cut short is a finding and not a crash."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from crc32c import crc32c

PIECE_BYTES = 4 << 20


class ShortRead(Exception):
    """The file ends before the bytes that were asked for."""


class CheckedFile:
    """An open file. ``on_bytes`` hears of all that is read."""

    def __init__(self, descriptor: int, on_bytes: Callable[[int], None]) -> None:
        self.descriptor = descriptor
        self.size_bytes = os.fstat(descriptor).st_size
        self._on_bytes = on_bytes

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        """The bytes at a place. Raises ShortRead; OSError if the disk cannot read them."""
        data = bytearray()
        while len(data) < size_bytes:
            piece = os.pread(self.descriptor, min(size_bytes - len(data), PIECE_BYTES), offset_bytes + len(data))
            if not piece:
                raise ShortRead(f"the file ends at {offset_bytes + len(data)}")
            self._on_bytes(len(piece))
            data += piece
        return bytes(data)

    def checksum(self, offset_bytes: int, size_bytes: int) -> int:
        """CRC-32C of the bytes at a place, a piece at a time. Raises as ``read``."""
        checksum = 0
        for offset in range(offset_bytes, offset_bytes + size_bytes, PIECE_BYTES):
            piece = self.read(offset, min(PIECE_BYTES, offset_bytes + size_bytes - offset))
            checksum = crc32c(piece, checksum)
        return checksum

    def first_nonzero(self, start: int, stop: int) -> int | None:
        """Where the first byte that is not zero lies in [start, stop); holes are skipped unread."""
        for low, high in self._data_ranges(start, min(stop, self.size_bytes)):
            for offset in range(low, high, PIECE_BYTES):
                piece = self.read(offset, min(PIECE_BYTES, high - offset))
                rest = piece.lstrip(b"\0")
                if rest:
                    return offset + len(piece) - len(rest)
        return None

    def _data_ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        while start < stop:
            try:
                low = os.lseek(self.descriptor, start, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                    return
                raise
            high = os.lseek(self.descriptor, low, os.SEEK_HOLE)
            if low < stop:
                yield low, min(high, stop)
            start = high


@contextmanager
def open_checked(path: Path, on_bytes: Callable[[int], None] = lambda count: None) -> Iterator[CheckedFile]:
    """Opens a file to be checked. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield CheckedFile(descriptor, on_bytes)
    finally:
        os.close(descriptor)
