"""Who reads a collection, and which files wait for readers that may need them.

Each reader belongs to the epoch in which it began. Whoever puts new files in the place of old ones does so first, for
all who begin later, and then *retires* the old: they go when the last reader of that epoch or an earlier one has left.
A restart forgets readers and retired files both; recovery removes what no committed state names.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)

Action = Callable[[], None]


class Readers:
    """The readers of one collection. Safe to use from any thread."""

    def __init__(self) -> None:
        self._counting = threading.Lock()
        self._epoch = 0
        self._counts: Counter[int] = Counter()  # readers by the epoch in which they began
        self._waiting: list[tuple[int, Action]] = []

    @property
    def epoch(self) -> int:
        """The epoch of a reader that began now."""
        return self._epoch

    @contextmanager
    def reading(self) -> Iterator[int]:
        """The block reads; it gets its epoch."""
        with self._counting:
            epoch = self._epoch
            self._counts[epoch] += 1
        try:
            yield epoch
        finally:
            with self._counting:
                self._counts[epoch] -= 1
                if not self._counts[epoch]:
                    del self._counts[epoch]
                due = self._due()
            _run(due)

    def retire(self, action: Action) -> None:
        """Runs ``action`` once every reader that began before this call has left: here, or in the last one's thread. An
        action removes what nobody can reach any more; what it cannot remove is left to recovery."""
        with self._counting:
            self._waiting.append((self._epoch, action))
            self._epoch += 1
            due = self._due()
        _run(due)

    def _due(self) -> list[Action]:
        oldest = min(self._counts, default=self._epoch)
        due = [action for epoch, action in self._waiting if epoch < oldest]
        self._waiting = [waiting for waiting in self._waiting if waiting[0] >= oldest]
        return due


def _run(actions: list[Action]) -> None:
    for action in actions:
        try:
            action()
        except OSError:
            _log.exception("files that nobody reads could not be removed; the next start removes them")
