"""Pages of mapped files: which are in memory, and which could not be read.

Reading a page that the disk does not give, or that lies behind the end of a file that was cut short, ends the process.
Of a map that is watched, such a page becomes one of zeros and is counted instead. So whoever read mapped bytes asks
afterwards whether the count has grown, and if it has, does not trust them; and caches of what was verified begin anew.
Without the compiled library nothing is watched.
"""

from __future__ import annotations

import ctypes

from covector.errors import Unavailable
from covector_server.kernels.library import BRIEF, LIBRARY


def is_resident(address: int, size_bytes: int, step_bytes: int) -> bool:
    """Whether the mapped bytes from an address on are in memory, as far as a page in each ``step_bytes`` tells. True
    without the compiled library: the system then reads ahead as it sees fit."""
    return LIBRARY is None or bool(LIBRARY.covector_resident(address, size_bytes, step_bytes))


def watch(address: int, size_bytes: int) -> int:
    """Watches a map; returns what ``unwatch`` wants."""
    return -1 if BRIEF is None else int(BRIEF.covector_watch(address, size_bytes))


def unwatch(place: int) -> None:
    """Call it before the map is taken away."""
    if BRIEF is not None:
        BRIEF.covector_unwatch(place)


def lost_part(address: int) -> tuple[int, int]:
    """Between which bytes of the watched map at this address all its lost pages lie, the second excluded; (0, 0) if
    none was lost."""
    if BRIEF is None or not _lost_page_count():
        return 0, 0  # every read of a last chunk asks
    first, stop = ctypes.c_size_t(), ctypes.c_size_t()
    if not BRIEF.covector_lost_part(address, ctypes.addressof(first), ctypes.addressof(stop)):
        return 0, 0
    return first.value, stop.value


class Losses:
    """Whether pages of watched maps could not be read, since this was made or last asked."""

    def __init__(self) -> None:
        self._count = _lost_page_count()

    def grew(self) -> bool:
        """Each loss is told once."""
        before, self._count = self._count, _lost_page_count()
        return self._count != before

    def check(self) -> None:
        """Raises Unavailable if some were: what was read meanwhile is not to be trusted. A second try verifies it anew,
        and names what is damaged."""
        if self.grew():
            raise Unavailable("part of a stored file could not be read; ask again, and the damage will be named")


def _lost_page_count() -> int:
    return 0 if BRIEF is None else int(BRIEF.covector_lost_pages())
