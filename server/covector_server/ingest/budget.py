"""A bound on the bytes of batches that wait to be stored, shared by all streams, first come first served."""

from __future__ import annotations

import asyncio
from collections import deque


class ByteBudget:
    """``acquire`` waits until the bytes are free. A batch larger than the whole budget waits until it is alone."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._used_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def acquire(self, size_bytes: int) -> None:
        """Takes bytes, after those who came before."""
        if not self._waiting and self._fits(size_bytes):
            self._used_bytes += size_bytes
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size_bytes, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(size_bytes)
            raise

    def release(self, size_bytes: int) -> None:
        """Gives bytes back and lets in who waits."""
        self._used_bytes -= size_bytes
        while self._waiting:
            wanted, turn = self._waiting[0]
            if turn.cancelled():
                self._waiting.popleft()
                continue
            if not self._fits(wanted):
                return
            self._waiting.popleft()
            self._used_bytes += wanted
            turn.set_result(None)

    def _fits(self, size_bytes: int) -> bool:
        return self._used_bytes == 0 or self._used_bytes + size_bytes <= self._size_bytes
