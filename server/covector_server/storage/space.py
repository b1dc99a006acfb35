"""Room on the disk: below a low-water mark the store takes nothing more, and takes again when there is room.

A full file system refuses a write half way, and then the catalog cannot commit either. So the last bytes are kept
free: whoever is about to write asks first, and is refused with a status that says so.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from covector.errors import Unavailable

FRESH_S = 0.2
FRESH_BYTES = 64 << 20


def free_bytes_of(path: Path) -> int:
    """Bytes that this user may still write to the file system of ``path``."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


class FreeSpace:
    """The room below ``path``. Cheap to ask: the file system is looked at when the last look is older than
    ``FRESH_S``, when more than ``FRESH_BYTES`` were asked for since, and always before a refusal."""

    def __init__(
        self,
        path: Path,
        low_water_bytes: int,
        free_bytes_of: Callable[[Path], int] = free_bytes_of,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.low_water_bytes = low_water_bytes
        self._path = path
        self._free_bytes_of = free_bytes_of
        self._clock_s = clock_s
        self._free_bytes = 0
        self._asked_bytes = 0  # since the last look
        self._looked_at_s = float("-inf")
        self._changing = threading.Lock()

    def free_bytes(self) -> int:
        """Bytes free now."""
        return self._free_bytes_of(self._path)

    def check(self, size_bytes: int = 0) -> None:
        """Returns if ``size_bytes`` more leave the low-water mark free. Raises Unavailable, and says how much is
        missing; trying again when space was made succeeds."""
        with self._changing:
            if not self._is_fresh(size_bytes) or not self._has_room(size_bytes):
                self._look()
            if not self._has_room(size_bytes):
                raise self._refusal(size_bytes)
            self._asked_bytes += size_bytes

    def _is_fresh(self, size_bytes: int) -> bool:
        is_young = self._clock_s() - self._looked_at_s < FRESH_S
        return is_young and self._asked_bytes + size_bytes <= FRESH_BYTES

    def _has_room(self, size_bytes: int) -> bool:
        return self._free_bytes - self._asked_bytes - size_bytes >= self.low_water_bytes

    def _look(self) -> None:
        self._free_bytes, self._asked_bytes = self._free_bytes_of(self._path), 0
        self._looked_at_s = self._clock_s()

    def _refusal(self, size_bytes: int) -> Unavailable:
        return Unavailable(
            f"{self._path}: {self._free_bytes} bytes are free, and writing {size_bytes} would leave less than the low "
            f"water mark disk_low_water_bytes={self.low_water_bytes}; free space, and it goes on by itself",
            limit="disk_low_water_bytes",
            value=self._free_bytes,
        )
