"""A disk that fails on purpose.

Fault model: a write may be refused (no space, I/O error), whole or after a part of it reached the file; a sync may
fail once, after which what was written before it may or may not be there. Nothing is ever reported as done that is not.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from covector_server.storage.disk import Disk


@dataclass(slots=True)
class Fault:
    """Fails the ``after``-th ``operation`` (``write``, ``sync`` or the name of a step) from now, counted from 0, with
    ``number``."""

    operation: str
    after: int = 0
    number: int = errno.EIO


class FaultyDisk(Disk):
    """The real disk, with the faults that are armed."""

    def __init__(self) -> None:
        self.fault: Fault | None = None

    def step(self, name: str) -> None:
        if self._is_due(name):
            self._fail()

    def write(self, descriptor: int, data: bytes | memoryview, offset_bytes: int) -> None:
        if self._is_due("write"):
            super().write(descriptor, memoryview(data).cast("B")[: memoryview(data).nbytes // 2], offset_bytes)
            self._fail()
        super().write(descriptor, data, offset_bytes)

    def sync(self, descriptor: int) -> None:
        if self._is_due("sync"):
            self._fail()
        super().sync(descriptor)

    def _is_due(self, operation: str) -> bool:
        if self.fault is None or self.fault.operation != operation:
            return False
        self.fault.after -= 1
        return self.fault.after < 0

    def _fail(self) -> None:
        assert self.fault is not None
        number, self.fault = self.fault.number, None
        raise OSError(number, "a fault on purpose")
