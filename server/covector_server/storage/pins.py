"""Who keeps the files of a store in place, and who waits to remove or replace some.

A snapshot pins: while it links and copies, every file that a committed state names must stay what it is. Any number
may pin at once. Whoever replaces or removes such files (erasure, compaction) goes alone: it waits for the pins, and new
pins wait for it. Ingest needs neither, for it only appends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_CHECK_S = 0.2  # between two looks at whether a waiting caller should give up


def _go_on() -> None:
    """What a waiting caller checks when nobody can ask it to stop."""


class Pins:
    """The pins of one store. Safe to use from any thread; nothing here nests in a thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pin_count = 0
        self._is_replacing = False
        self._waiting: list[Callable[[], None]] = []

    @contextmanager
    def pinned(self, check: Callable[[], None] = _go_on) -> Iterator[None]:
        """While the block runs, no file that a committed state names goes or is replaced. ``check`` is called from
        time to time while others are in the way; what it raises ends the waiting."""
        with self._changed:
            self._wait_until(lambda: not self._is_replacing, check)
            self._pin_count += 1
        try:
            yield
        finally:
            for action in self._unpin():
                action()

    @contextmanager
    def replacing(self, check: Callable[[], None] = _go_on) -> Iterator[None]:
        """The block may replace and remove files that a committed state names: it runs alone, without any pin."""
        with self._changed:
            self._wait_until(lambda: not self._is_replacing and self._pin_count == 0, check)
            self._is_replacing = True
        try:
            yield
        finally:
            with self._changed:
                self._is_replacing = False
                self._changed.notify_all()

    def when_unpinned(self, action: Callable[[], None]) -> None:
        """Runs ``action`` now, or if there are pins, in the thread that takes away the last. For removing files that
        no committed state names any more, by those who must not wait."""
        with self._changed:
            if self._pin_count:
                self._waiting.append(action)
                return
        action()

    def _unpin(self) -> list[Callable[[], None]]:
        with self._changed:
            self._pin_count -= 1
            self._changed.notify_all()
            if self._pin_count:
                return []
            actions, self._waiting = self._waiting, []
            return actions

    def _wait_until(self, free: Callable[[], bool], check: Callable[[], None]) -> None:
        while not self._changed.wait_for(free, _CHECK_S):
            check()
