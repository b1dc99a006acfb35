"""``python -m covector_server.storage.restore SNAPSHOT TARGET``: a new store out of a snapshot. Needs no server.

The restored store shares with the snapshot only what never changes; on another file system it shares nothing. It is
made beside its place and gets its name when it is whole.

On stdout, for the program that runs this: a JSON object a line, ``{"done": bytes, "total": bytes}`` as it goes on, then
``{"restored": {...}}`` or ``{"error": {"kind": ..., "message": ...}}``. Exit status 0, or 2 for an error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from covector.errors import AlreadyExists, Conflict, Corrupt, CovectorError, InvalidInput, NotFound, Unavailable
from covector_server.storage.disk import Disk
from covector_server.storage.snapshot import SnapshotRecord, read_record
from covector_server.storage.snapshot_files import CATALOG, FilesCopier, Report, open_copy
from covector_server.storage.space import FreeSpace
from covector_server.storage.store import SNAPSHOT_FILE

_SAY_EVERY_S = 0.1


def restore(snapshot: Path, target: Path, report: Report, disk: Disk | None = None) -> SnapshotRecord:
    """Makes a store at ``target``, durably and whole, or leaves nothing. Returns what the snapshot says of itself.

    Raises NotFound if there is no snapshot, AlreadyExists if ``target`` is anything but an empty directory, Corrupt if
    the snapshot lacks bytes, Unavailable if there is no room.
    """
    disk, target = disk or Disk(), target.resolve()
    record = _record_of(snapshot)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise AlreadyExists(f"{target} is not empty; restore to a new directory")
    if target.is_relative_to(snapshot.resolve()):
        raise Conflict(f"{target} lies in the snapshot; restore to a directory elsewhere")
    partial = target.with_name(f".{target.name}.partial")
    try:
        disk.make_directories(target.parent)
        disk.remove_tree(partial)
        disk.make_directory(partial)
        _fill(snapshot, partial, disk, report)
        disk.rename(partial, target)
        disk.sync_directory(target.parent)
    except OSError as error:
        _drop(partial, disk)
        raise Unavailable(f"{target} could not be written ({error}); free space, then try again") from error
    except BaseException:
        _drop(partial, disk)
        raise
    return record


def _record_of(snapshot: Path) -> SnapshotRecord:
    if not (snapshot / SNAPSHOT_FILE).exists():
        raise NotFound(f"{snapshot} is no snapshot: it has no {SNAPSHOT_FILE}; covector snapshot list names them")
    try:
        return read_record(snapshot)
    except (OSError, ValueError, TypeError) as error:
        raise Corrupt(f"{snapshot / SNAPSHOT_FILE} cannot be read ({error}); use another snapshot") from error


def _fill(snapshot: Path, partial: Path, disk: Disk, report: Report) -> None:
    source = snapshot / CATALOG
    if not source.is_file():
        raise Corrupt(f"{source} is missing; use another snapshot", path=source)
    FreeSpace(partial, 0).check(source.stat().st_size)
    _copy(source, partial / CATALOG, disk)
    plan = open_copy(partial / CATALOG, disk).plan
    disk.step("restore.catalog_copied")
    shares = snapshot.stat().st_dev == partial.stat().st_dev
    FreeSpace(partial, 0).check(plan.copied_bytes if shares else plan.size_bytes)
    FilesCopier(snapshot, partial, disk, report).copy(plan)
    disk.step("restore.copied")


def _copy(source: Path, target: Path, disk: Disk) -> None:
    reading, writing = os.open(source, os.O_RDONLY | os.O_CLOEXEC), disk.open(target, 0)
    try:
        disk.copy_range(reading, writing, 0, os.fstat(reading).st_size)
        disk.sync(writing)
    finally:
        disk.close(writing)
        os.close(reading)


def _drop(partial: Path, disk: Disk) -> None:
    with suppress(OSError):  # it goes when this is tried again
        disk.remove_tree(partial)


class _Lines:
    """Progress on stdout, a line now and then."""

    def __init__(self) -> None:
        self._said_at_s = float("-inf")

    def report(self, done_bytes: int, total_bytes: int) -> None:
        if done_bytes == total_bytes or time.monotonic() - self._said_at_s >= _SAY_EVERY_S:
            self._said_at_s = time.monotonic()
            _say({"done": done_bytes, "total": total_bytes})


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def main(arguments: Sequence[str]) -> int:
    """Restores, and returns the exit status."""
    try:
        if len(arguments) != 2:
            raise InvalidInput("usage: python -m covector_server.storage.restore SNAPSHOT TARGET")
        snapshot, target = map(Path, arguments)
        record = restore(snapshot, target, _Lines().report)
    except CovectorError as error:
        _say({"error": {"kind": error.kind, "message": error.message}})
        return 2
    _say({"restored": {**asdict(record), "path": str(target.resolve())}})
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
