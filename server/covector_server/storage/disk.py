"""Every write and sync of row files goes through a ``Disk``, so that a faulty one can stand in its place.

What the rest relies on: bytes written are on stable storage only after ``fdatasync`` of their file, a new file or a
rename only after ``sync_directory`` of its parent. A sync that failed says nothing about what is on disk and is never
tried again.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NO_KERNEL_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_COPY_BYTES = 1 << 20


_PARTS_MAX = 512  # POSIX systems take 1024


class SyncFailed(OSError):
    """A sync failed: what is on disk is not known, and no second sync will tell."""


class Disk:
    """The real disk."""

    def step(self, name: str) -> None:
        """Called between two steps of a protocol, such as ``commit.synced``: a place where a test ends the process."""

    def open(self, path: Path, size_bytes: int) -> int:
        """Opens a file to write, made of ``size_bytes`` (sparse) if it is not there. The caller closes the number."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(descriptor).st_size < size_bytes:
                os.ftruncate(descriptor, size_bytes)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    @contextmanager
    def opened(self, path: Path, size_bytes: int) -> Iterator[int]:
        """As ``open``, and closes the file when the block ends."""
        descriptor = self.open(path, size_bytes)
        try:
            yield descriptor
        finally:
            self.close(descriptor)

    def write(self, descriptor: int, data: bytes | memoryview, offset_bytes: int) -> None:
        """Writes all of ``data`` at the offset."""
        view = memoryview(data).cast("B")
        while view:
            written = os.pwrite(descriptor, view, offset_bytes)
            view, offset_bytes = view[written:], offset_bytes + written

    def write_parts(self, descriptor: int, parts: Sequence[bytes | memoryview], offset_bytes: int) -> None:
        """Writes parts one behind the other, in one call of the system where it takes so many. Each such call lets
        other threads run first, so a few large ones are worth more than they look."""
        if type(self).write is not Disk.write:  # a disk that watches writes, or fails them, sees these as well
            self.write(descriptor, b"".join(parts), offset_bytes)
            return
        for start in range(0, len(parts), _PARTS_MAX):
            some = parts[start : start + _PARTS_MAX]
            size_bytes = sum(map(len, some))
            written = os.pwritev(descriptor, some, offset_bytes)
            if written < size_bytes:
                self.write(descriptor, b"".join(some)[written:], offset_bytes + written)
            offset_bytes += size_bytes

    def sync(self, descriptor: int) -> None:
        """Returns when everything written to the file is on stable storage."""
        os.fdatasync(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """Puts a file in the place of another, whole. Durable after ``sync_directory`` of its parent."""
        old.replace(new)

    def sync_directory(self, path: Path) -> None:
        """Returns when the directory's entries are on stable storage."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def make_directories(self, path: Path) -> None:
        """Makes a directory and its parents, durably."""
        made_here = [p for p in (path, *path.parents) if not p.exists()] or [path]
        path.mkdir(parents=True, exist_ok=True)
        for made in reversed(made_here):
            self.sync_directory(made.parent)

    def make_directory(self, path: Path) -> None:
        """Makes a directory if it is not there. Not durable before ``sync_directory`` of its parent."""
        path.mkdir(exist_ok=True)

    def replace_json(self, path: Path, document: dict[str, Any]) -> None:
        """Puts a JSON file in place of the one at ``path``, durably: readers see the old or the new, whole."""
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        self.rename(temporary, path)
        self.sync_directory(path.parent)

    def link(self, source: Path, target: Path) -> None:
        """Gives a file another name. Not durable before ``sync_directory``; whoever changes one changes the other."""
        os.link(source, target)

    def copy_range(self, source: int, target: int, offset_bytes: int, size_bytes: int) -> None:
        """Copies bytes to the same place in another file; the kernel shares them where the file system can. Raises
        EOFError if the source is too short for that."""
        end_bytes = offset_bytes + size_bytes
        while offset_bytes < end_bytes:
            left_bytes = end_bytes - offset_bytes
            copied = _copy_in_kernel(source, target, offset_bytes, left_bytes)
            if not copied:
                data = os.pread(source, min(left_bytes, _COPY_BYTES), offset_bytes)
                if not data:
                    raise EOFError(f"the file ends {left_bytes} bytes too early")
                self.write(target, data, offset_bytes)
                copied = len(data)
            offset_bytes += copied

    def remove_file(self, path: Path) -> None:
        """Removes a file, if it is there, durably."""
        path.unlink(missing_ok=True)
        self.sync_directory(path.parent)

    def remove_tree(self, path: Path) -> None:
        """Removes a directory and all below it, if it is there, durably."""
        if path.exists():
            shutil.rmtree(path)
            self.sync_directory(path.parent)


def _copy_in_kernel(source: int, target: int, offset_bytes: int, size_bytes: int) -> int:
    """Copies what the kernel will of a range, and returns how much that is."""
    try:
        return os.copy_file_range(source, target, size_bytes, offset_bytes, offset_bytes)
    except OSError as error:
        if error.errno not in _NO_KERNEL_COPY:
            raise
        return 0
