"""A disk that fails on purpose.

Fault model: a write may be refused (no space, I/O error), whole or after a part of it reached the file; opening a file
may be refused; a sync may fail once, after which what was written before it may or may not be there. Nothing is ever
reported as done that is not. What the server does then is watched: a file whose sync failed must not be synced again.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from covector_server.storage.disk import Disk

FileId = tuple[int, int]  # device, inode


@dataclass(slots=True)
class Fault:
    """Fails the ``after``-th ``operation`` (``write``, ``open``, ``sync`` or the name of a step) from now, counted from
    0, with ``number``.

    lasting: all that follow fail too. await_write_s: a sync fails only when another thread has written, which tells
    that the next group is in flight, or when so much time has passed.
    """

    operation: str
    after: int = 0
    number: int = errno.EIO
    lasting: bool = False
    await_write_s: float = 0.0


class FaultyDisk(Disk):
    """The real disk, with the fault that is armed. ``sync_counts``: syncs by file, failed ones included; ``retried``:
    files that were synced again after a sync of theirs had failed. ``failing``: set when a sync is about to fail."""

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self.sync_counts: Counter[FileId] = Counter()
        self.retried: list[FileId] = []
        self.failing = threading.Event()
        self._failed: set[FileId] = set()
        self._wrote = threading.Event()
        self._counting = threading.Lock()

    def step(self, name: str) -> None:
        self._fail_if_due(name)

    def open(self, path: Path, size_bytes: int) -> int:
        self._fail_if_due("open")
        return super().open(path, size_bytes)

    def write(self, descriptor: int, data: bytes | memoryview, offset_bytes: int) -> None:
        fault = self._due("write")
        if fault is not None:
            super().write(descriptor, memoryview(data).cast("B")[: memoryview(data).nbytes // 2], offset_bytes)
            raise OSError(fault.number, "a fault on purpose")
        super().write(descriptor, data, offset_bytes)
        self._wrote.set()

    def sync(self, descriptor: int) -> None:
        file = _file_id(descriptor)
        self.sync_counts[file] += 1
        if file in self._failed:
            self.retried.append(file)
        fault = self._due("sync")
        if fault is not None:
            self._failed.add(file)
            self._wrote.clear()
            self.failing.set()
            self._wrote.wait(fault.await_write_s)
            raise OSError(fault.number, "a fault on purpose")
        super().sync(descriptor)

    def _fail_if_due(self, operation: str) -> None:
        fault = self._due(operation)
        if fault is not None:
            raise OSError(fault.number, "a fault on purpose")

    def _due(self, operation: str) -> Fault | None:
        """The fault, if it is this operation's turn."""
        with self._counting:
            fault = self.fault
            if fault is None or fault.operation != operation:
                return None
            fault.after -= 1
            if fault.after >= 0:
                return None
            if not fault.lasting:
                self.fault = None
            return fault


def _file_id(descriptor: int) -> FileId:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
