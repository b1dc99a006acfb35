"""What a group of batches must sync before it may be committed: files and directories, each once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from covector_server.storage.disk import Disk


class Syncs:
    """Collected by the thread that writes, carried out by the one that commits."""

    def __init__(self) -> None:
        self._descriptors: dict[int, None] = {}
        self._directories: dict[Path, None] = {}

    def add_file(self, descriptor: int) -> None:
        """A file was written."""
        self._descriptors[descriptor] = None

    def add_directory(self, directory: Path) -> None:
        """A file was made in a directory."""
        self._directories[directory] = None

    def run_alone(self, disk: Disk) -> None:
        """As ``run``, one after the other, in this thread."""
        for descriptor in self._descriptors:
            disk.sync(descriptor)
        for directory in self._directories:
            disk.sync_directory(directory)

    def run(self, disk: Disk, pool: Executor) -> None:
        """Returns when all of it is on stable storage. Files are synced at the same time, since each waits for the
        disk alone. Raises OSError if any sync fails, after all have ended."""
        work: list[Callable[[], None]] = [_bound(disk.sync, descriptor) for descriptor in self._descriptors]
        work += [_bound(disk.sync_directory, directory) for directory in self._directories]
        _run_all(work, pool)


def _bound(function: Callable[[Any], None], argument: Any) -> Callable[[], None]:
    return lambda: function(argument)


def _run_all(work: Iterable[Callable[[], None]], pool: Executor) -> None:
    own, *others = [*work] or [lambda: None]
    waiting = [pool.submit(one) for one in others]
    errors: list[BaseException] = []
    try:
        own()
    except OSError as error:
        errors.append(error)
    errors += [error for error in (one.exception() for one in waiting) if error is not None]
    if errors:
        raise errors[0]
