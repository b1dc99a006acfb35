"""The threads that scan: each takes a strip of rows, works on it without the interpreter's lock, and takes the next.

The threads are shared by all queries: scans that run at the same time take turns by strips. Who asked sleeps until the
last strip is done, so the threads have the cores to themselves. Ahead of the strips, one more thread asks the system
for rows that are not in memory yet.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import Final

from covector_server.storage.view import StripSource

READ_AHEAD: Final = 2  # strips asked for beyond those under way
PRESENT_ENOUGH: Final = 4  # strips found in memory, after which only some are looked at
LOOK_EVERY: Final = 8

Work = Callable[[StripSource], None]


class _Presence:
    """How many strips in a row were found in memory."""

    def __init__(self) -> None:
        self.count = 0

    def ask(self, source: StripSource) -> None:
        self.count = 0 if source.prefetch() else self.count + 1


class _Scan:
    """The strips of one scan that are left. ``done`` is set when no thread works on it any more."""

    def __init__(
        self, work: Work, sources: Iterator[StripSource], thread_count: int, finish: Callable[[], None] | None
    ) -> None:
        self.done = threading.Event()
        self.error: BaseException | None = None
        self._work = work
        self._sources = sources
        self._thread_count = thread_count
        self._finish = finish
        self._taking = threading.Lock()

    def step(self) -> bool:
        """Works on one strip; False if none is left for this thread."""
        try:
            with self._taking:
                source = None if self.error is not None else next(self._sources, None)
            if source is not None:
                self._work(source)
                return True
            if self._finish is not None and self.error is None:
                self._finish()
        except BaseException as error:  # noqa: BLE001 - who asked raises it
            self.fail(error)
        return False

    def fail(self, error: BaseException) -> None:
        """No further strip is begun. The first error is the one that counts."""
        with self._taking:
            self.error = self.error or error

    def leave(self) -> None:
        """One thread has nothing left to do."""
        with self._taking:
            self._thread_count -= 1
            is_last = self._thread_count == 0
        if is_last:
            self.done.set()


class Workers:
    """``count`` scanning threads."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._scan_count = 0
        self._counting = threading.Lock()
        self._scanning = ThreadPoolExecutor(count, thread_name_prefix="scan")
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")

    def each(self, work: Work, sources: Iterable[StripSource], finish: Callable[[], None] | None = None) -> None:
        """Works on every source, in no order, on up to ``count`` at a time. After one that fails none is begun; its
        error is raised when the others under way are done. A thread that finds none left calls ``finish``. A single
        source is worked on by the caller: waking a thread takes longer than a few rows."""
        ahead = self._read_ahead(sources)
        first = list(islice(ahead, 2))
        if len(first) < 2:
            for source in first:
                work(source)
            return
        scan = _Scan(work, chain(first, ahead), self.count, finish)
        self._count(1)
        try:
            for _ in range(self.count):
                self._scanning.submit(self._run, scan)
            scan.done.wait()
        except BaseException as error:
            scan.fail(error)
            raise
        finally:
            self._count(-1)
        if scan.error is not None:
            raise scan.error

    def close(self) -> None:
        """Waits for what is under way; nothing can be scanned afterwards."""
        self._scanning.shutdown(wait=True)
        self._reading.shutdown(wait=True, cancel_futures=True)

    def _run(self, scan: _Scan) -> None:
        """Works on strips of a scan, and stands in line again after each while there are others."""
        while scan.step():
            if self._scan_count > 1 and self._stands_in_line(scan):
                return
        scan.leave()

    def _stands_in_line(self, scan: _Scan) -> bool:
        try:
            self._scanning.submit(self._run, scan)
        except RuntimeError:  # closing: what is under way is finished
            return False
        return True

    def _count(self, more: int) -> None:
        with self._counting:
            self._scan_count += more

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
