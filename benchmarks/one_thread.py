"""Times of one thread: of a piece of work, and of reading memory, which no scan can beat."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

TIMES = 5


def timed(work: Callable[[], object]) -> float:
    """The best time of a few, in seconds; once before, so that everything is in memory."""
    times = []
    for _ in range(TIMES + 1):
        began_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - began_s)
    return min(times[1:])


def read_rate() -> float:
    """GB/s at which one thread reads memory."""
    data = np.ones(1 << 26, dtype=np.uint64)
    return data.nbytes / timed(data.max) / 1e9
