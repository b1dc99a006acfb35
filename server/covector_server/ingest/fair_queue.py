"""What waits for the store: batches, taken in turn from each writer, and other work, which goes before them.

The queue has no bound of its own: ``ingest.budget`` bounds the bytes of batches before they come here.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

Entry = TypeVar("Entry")
Call = TypeVar("Call")


class FairQueue(Generic[Entry, Call]):
    """Entries of a writer stay in order; writers take turns. Any thread may put, one takes."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[Entry]] = OrderedDict()
        self._calls: deque[Call] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, writer: str, entry: Entry) -> None:
        """Queues an entry of a writer."""
        with self._changed:
            self._waiting.setdefault(writer, deque()).append(entry)
            self._changed.notify_all()

    def put_call(self, call: Call) -> None:
        """Queues other work."""
        with self._changed:
            self._calls.append(call)
            self._changed.notify_all()

    def close(self) -> None:
        """Lets ``wait`` end once everything was taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wake(self) -> None:
        """Makes ``wait`` look at its condition again."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, otherwise: Callable[[], bool]) -> bool:
        """Returns when something waits or ``otherwise`` holds; False when the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._calls or self._waiting or self._closed or otherwise())
            return bool(self._calls or self._waiting or not self._closed)

    def wait_for_call(self, timeout_s: float) -> None:
        """Returns when other work waits, or the time has passed."""
        with self._changed:
            self._changed.wait_for(lambda: self._calls or self._closed, timeout_s)

    def take_call(self) -> Call | None:
        """The next piece of other work, if any waits."""
        with self._changed:
            return self._calls.popleft() if self._calls else None

    def take(self) -> Entry | None:
        """The next entry, if any waits: of the writer whose turn it is."""
        with self._changed:
            if not self._waiting:
                return None
            writer, entries = self._waiting.popitem(last=False)
            entry = entries.popleft()
            if entries:
                self._waiting[writer] = entries
            return entry
