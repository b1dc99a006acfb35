"""From the commit thread to a writer's stream: outcomes cross over to the event loop together, not one by one."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from covector_server.ingest.batch import Outcome


@dataclass(frozen=True, slots=True)
class Pending:
    """A batch whose outcome is awaited. ``size_bytes``: what it holds of the budget."""

    sequence: int
    size_bytes: int
    answer: Future[Outcome]


class _End:
    """No more batches will come."""


_END: Final = _End()


class Acknowledgements:
    """The batches of one stream, in order. The event loop adds, ends and asks; outcomes come from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pending: deque[Pending | _End] = deque()
        self._changed = asyncio.Event()
        self._waking = threading.Lock()  # held from the first outcome until the loop has looked

    def add(self, pending: Pending) -> None:
        """A batch was queued."""
        self._pending.append(pending)
        pending.answer.add_done_callback(self._wake)

    def end(self) -> None:
        """No more batches come: ``done`` returns nothing once the last is answered."""
        self._pending.append(_END)
        self._changed.set()

    async def done(self) -> list[Pending]:
        """The next batches, in order, that are answered; at least one, or none at the end."""
        while True:
            if self._waking.locked():
                self._waking.release()
            found = []
            while self._pending and not isinstance(first := self._pending[0], _End) and first.answer.done():
                found.append(first)
                self._pending.popleft()
            if found or (self._pending and isinstance(self._pending[0], _End)):
                return found
            await self._changed.wait()
            self._changed.clear()

    def rest(self) -> list[Pending]:
        """The batches that nobody waits for any more."""
        found = [one for one in self._pending if isinstance(one, Pending)]
        self._pending.clear()
        return found

    def _wake(self, _: Future[Outcome]) -> None:
        if self._waking.acquire(blocking=False):
            try:
                self._loop.call_soon_threadsafe(self._changed.set)
            except RuntimeError:  # the loop is closed: the server has stopped
                return
