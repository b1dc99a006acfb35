"""Disks that break a promise, for controls: a test of faults that does not notice them proves nothing."""

from __future__ import annotations

import itertools
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from covector_server.storage.disk import Disk


class ForgetfulDisk(Disk):
    """Says that it wrote, and now and then has not."""

    def __init__(self) -> None:
        self._count = 0

    def write(self, descriptor: int, data: bytes | memoryview, offset_bytes: int) -> None:
        self._count += 1
        if self._count % 10:
            super().write(descriptor, data, offset_bytes)


class UnsyncedDisk(Disk):
    """Says that files are on stable storage without asking for it: the catalog runs ahead of the rows."""

    def sync(self, descriptor: int) -> None:
        """Does nothing."""


class NamelessDisk(Disk):
    """Never syncs a directory: new files may be without a name after a power loss."""

    def sync_directory(self, path: Path) -> None:
        """Does nothing."""


class LateDisk(Disk):
    """Syncs the rows after the catalog's commit, and before the acknowledgement: the wrong order."""

    def __init__(self) -> None:
        self._paths: dict[int, Path] = {}
        self._late: set[Path] = set()

    def open(self, path: Path, size_bytes: int) -> int:
        descriptor = super().open(path, size_bytes)
        self._paths[descriptor] = path
        return descriptor

    def sync(self, descriptor: int) -> None:
        """Remembers that it should have."""
        self._late.add(self._paths[descriptor])

    def step(self, name: str) -> None:
        if name == "commit.committed":
            late, self._late = self._late, set()
            for path in late:
                with suppress(FileNotFoundError):  # a temporary file, renamed since
                    descriptor = os.open(path, os.O_RDWR)
                    os.fdatasync(descriptor)
                    os.close(descriptor)


class HungryDisk(Disk):
    """The real disk; in its server, memory runs out in every fifth batch that is parsed."""

    def __init__(self) -> None:
        from covector_server.rpc import ingest

        count, parse = itertools.count(1), vars(ingest)["parse_batch"]

        def parse_if_there_is_room(*arguments: Any) -> Any:
            if next(count) % 5 == 0:
                raise MemoryError
            return parse(*arguments)

        vars(ingest)["parse_batch"] = parse_if_there_is_room


class UnsyncedCatalogDisk(Disk):
    """The real disk; the catalog, opened after it is made, commits without a sync."""

    def __init__(self) -> None:
        import lmdb

        opened = lmdb.open
        vars(lmdb)["open"] = lambda *arguments, **options: opened(*arguments, **{**options, "sync": False})
