"""Who reads the catalog just now: open read transactions are counted, so that the file can be swapped between them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from covector.errors import Unavailable


class ReadingGate:
    """Any number may read at once; whoever closes the gate waits for them, and new ones wait for it. A thread that
    reads already is let through, or it would wait for itself."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._reader_count = 0
        self._is_closed = False
        self._own = threading.local()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """The block reads."""
        depth = getattr(self._own, "depth", 0)
        with self._changed:
            self._changed.wait_for(lambda: depth > 0 or not self._is_closed)
            self._reader_count += 1
        self._own.depth = depth + 1
        try:
            yield
        finally:
            self._own.depth -= 1
            with self._changed:
                self._reader_count -= 1
                self._changed.notify_all()

    @contextmanager
    def closed(self, timeout_s: float) -> Iterator[None]:
        """The block runs while nobody reads. Raises Unavailable if somebody still reads after ``timeout_s``."""
        with self._changed:
            self._is_closed = True
            left = self._changed.wait_for(lambda: self._reader_count == 0, timeout_s)
            if not left:
                self._open()
                raise Unavailable(f"the catalog is being read for more than {timeout_s:g} s; try again later")
        try:
            yield
        finally:
            with self._changed:
                self._open()

    def _open(self) -> None:
        self._is_closed = False
        self._changed.notify_all()
