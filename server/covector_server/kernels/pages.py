"""Which pages of a mapped file are in memory."""

from __future__ import annotations

from covector_server.kernels.library import LIBRARY


def is_resident(address: int, size_bytes: int, step_bytes: int) -> bool:
    """Whether the mapped bytes from an address on are in memory, as far as a page in each ``step_bytes`` tells. True
    without the compiled library: the system then reads ahead as it sees fit."""
    return LIBRARY is None or bool(LIBRARY.covector_resident(address, size_bytes, step_bytes))
