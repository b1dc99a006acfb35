"""The threads that scan: each takes a strip of rows, multiplies it without the interpreter's lock, and takes the next.

The threads are shared by all queries. A scan has a few strips more under way than there are threads, so that none waits
for what Python does with the results; scans that run at the same time take turns by strips. Ahead of the strips, one
more thread asks the system for rows that are not in memory yet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Final, TypeVar

from covector_server.storage.view import StripSource

SPARE: Final = 2  # strips under way beside one a thread
READ_AHEAD: Final = 4  # strips asked for beyond those
PRESENT_ENOUGH: Final = 4  # strips found in memory, after which only some are looked at
LOOK_EVERY: Final = 8

Result = TypeVar("Result")


class _Presence:
    """How many strips in a row were found in memory."""

    def __init__(self) -> None:
        self.count = 0

    def ask(self, source: StripSource) -> None:
        self.count = 0 if source.prefetch() else self.count + 1


class Workers:
    """``count`` scanning threads."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._scanning = ThreadPoolExecutor(count, thread_name_prefix="scan")
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")

    def map(self, work: Callable[[StripSource], Result], sources: Iterable[StripSource]) -> Iterator[Result]:
        """The results, in order; what a piece of work raises is raised in its place. Ends what it began when it is
        closed early."""
        pending: deque[Future[Result]] = deque()
        ahead = self._read_ahead(sources)
        try:
            for source in islice(ahead, self.count + SPARE):
                pending.append(self._scanning.submit(work, source))
            while pending:
                yield pending.popleft().result()
                for source in islice(ahead, 1):
                    pending.append(self._scanning.submit(work, source))
        finally:
            for future in pending:
                future.cancel()

    def _read_ahead(self, sources: Iterable[StripSource]) -> Iterator[StripSource]:
        """The sources, each asked for some places before it comes; where the last few were all in memory, only every
        so many is looked at."""
        asked: deque[StripSource] = deque()
        present = _Presence()
        for number, source in enumerate(sources):
            if present.count < PRESENT_ENOUGH or number % LOOK_EVERY == 0:
                self._reading.submit(present.ask, source)
            asked.append(source)
            if len(asked) > READ_AHEAD:
                yield asked.popleft()
        yield from asked

    def close(self) -> None:
        """Waits for what is under way; nothing can be scanned afterwards."""
        self._reading.shutdown(wait=True, cancel_futures=True)
        self._scanning.shutdown(wait=True, cancel_futures=True)
