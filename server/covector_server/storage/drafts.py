"""Directories of files that are made once and then never change: those of indexes and of fits.

A directory is made aside, filled, synced, and counts from the transaction on that lists it. Whoever fills it holds a
lock on it, so that what a process that died left can be told from what is being made, by this process or another: a
directory that is not listed and not locked is an orphan.

``manifest.json`` names the files with their sizes and CRC-32C; its own checksum stands in the catalog.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from covector.errors import Conflict, Corrupt
from covector_server.storage.damage import check_shortage
from covector_server.storage.disk import Disk
from covector_server.storage.mapping import map_file

MANIFEST = "manifest.json"
PIECE_BYTES = 16 << 20  # written, and checked, between two questions whether to go on
FORMAT = 1

Check = Callable[[], None]  # called at safe points; what it raises ends the work
Listed = Callable[[], set[str]]  # names of the directories that the catalog lists. Raises Corrupt


class Moved(Conflict):
    """The rows that something was made of lie elsewhere now, or what was listed has changed: start again."""


# Writing


class DraftFile:
    """A file that grows at its end."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self.size_bytes = 0
        self.checksum = 0
        self._disk = disk
        self._descriptor = disk.open(path, 0)

    def append(self, data: memoryview) -> None:
        """Writes bytes behind those before. Raises OSError."""
        self._disk.write(self._descriptor, data, self.size_bytes)
        self.checksum = crc32c(data, self.checksum)
        self.size_bytes += data.nbytes

    def append_array(self, array: npt.NDArray[Any]) -> None:
        """Writes an array, little-endian as it is, in the order of C."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        for start in range(0, len(data), PIECE_BYTES):
            self.append(data[start : start + PIECE_BYTES])

    def end(self) -> None:
        """Syncs and closes it."""
        try:
            self._disk.sync(self._descriptor)
        finally:
            self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            self._disk.close(self._descriptor)
            self._descriptor = -1


class Draft:
    """Files on their way, in a directory that nothing lists yet. ``may_be_listed``: set it before the transaction that
    lists it; then whether it is listed is known to the catalog alone."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        self.directory = directory
        self.may_be_listed = False
        self._disk = disk
        self._files: dict[str, dict[str, int]] = {}

    @contextmanager
    def file(self, name: str) -> Iterator[DraftFile]:
        """A new file, durable when the block ends. ``name`` may lie in directories below, which are made."""
        path = self.directory / name
        if path.parent != self.directory:
            path.parent.mkdir(parents=True, exist_ok=True)
        made = DraftFile(path, self._disk)
        try:
            yield made
            made.end()
        finally:
            made.close()
        self._files[name] = {"size_bytes": made.size_bytes, "checksum": made.checksum}

    def discard(self, name: str) -> None:
        """Removes a file that was needed on the way."""
        del self._files[name]
        self._disk.remove_file(self.directory / name)

    def step(self, name: str) -> None:
        """Between two steps of a build: a place where a test ends the process."""
        self._disk.step(name)

    def size_bytes(self, name: str) -> int:
        """Bytes of a file that is written."""
        return self._files[name]["size_bytes"]

    def add_manifest(self, kind: str, parameters: dict[str, Any]) -> tuple[dict[str, int], int]:
        """Writes the manifest, and makes all of it durable. Returns the sizes of all files, and its checksum."""
        document = {"format": FORMAT, "kind": kind, "parameters": parameters, "files": self._files}
        data = json.dumps(document, sort_keys=True, indent=1).encode()
        with self.file(MANIFEST) as manifest:
            manifest.append(memoryview(data))
        for directory in sorted(directories_of(self._files), reverse=True):
            self._disk.sync_directory(self.directory / directory)
        return {name: file["size_bytes"] for name, file in self._files.items()}, int(crc32c(data))


def directories_of(names: Iterable[str]) -> set[str]:
    """The directories that files with these names lie in, each with those above it; "." for the outermost."""
    return {str(parent) for name in names for parent in Path(name).parents}


def map_draft(draft: Draft, name: str) -> memoryview:
    """A file of a draft that is written, mapped. It stays readable when the draft discards it."""
    size_bytes = draft.size_bytes(name)
    return map_file(draft.directory / name, size_bytes) if size_bytes else memoryview(b"")


@contextmanager
def drafting(root: Path, prefix: str, disk: Disk, step: str) -> Iterator[Draft]:
    """A new directory in ``root``, ``prefix`` before its name, locked while the block runs; removed if the block
    raises, unless it may be listed. ``step``: what it is called when it is there."""
    disk.make_directories(root)
    path, lock = _make_locked(root, prefix)
    draft = Draft(path, disk)
    try:
        disk.sync_directory(root)
        disk.step(step)
        yield draft
    except BaseException:
        if not draft.may_be_listed:
            disk.remove_tree(path)
        raise
    finally:
        os.close(lock)


def _make_locked(root: Path, prefix: str) -> tuple[Path, int]:
    while True:
        path = root / f"{prefix}-{secrets.token_hex(4)}"
        try:
            path.mkdir()
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileExistsError, FileNotFoundError):  # a name given out, or taken for an orphan before it was locked
            continue
        if _is_locked_there(lock, path):
            return path, lock
        os.close(lock)


def _is_locked_there(descriptor: int, path: Path) -> bool:
    """Locks a directory; False if another has it, or it is not at ``path`` any more."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        return False


def remove_unlisted(root: Path, listed: Listed, disk: Disk) -> int:
    """Removes directories that the catalog does not list and nobody fills, and returns how many. Call it where no
    reader may need them: when the store is opened, or from an action that waited for readers. A list that is damaged
    in places keeps all of them."""
    removed_count = 0
    try:
        found = unlisted(root, listed)
    except Corrupt:
        return 0
    for path in found:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            # Asked once more under the lock: whoever filled it lists it before letting go.
            if _is_locked_there(descriptor, path) and path in unlisted(root, listed):
                disk.remove_tree(path)
                removed_count += 1
        finally:
            os.close(descriptor)
    return removed_count


def unlisted(root: Path, listed: Listed) -> list[Path]:
    """Directories in ``root`` that the catalog does not list, some of which may be being filled. Raises Corrupt."""
    if not root.is_dir():
        return []
    known = listed()
    return sorted(path for path in root.iterdir() if path.name not in known)


# Reading


@dataclass(frozen=True, slots=True)
class MappedFiles:
    """The files of a directory, mapped, every byte checked."""

    directory: Path
    parameters: dict[str, Any]
    maps: dict[str, memoryview]

    @property
    def size_bytes(self) -> int:
        """Bytes mapped."""
        return sum(map(len, self.maps.values()))


def open_files(
    directory: Path, checksum: int, remedy: str, check: Check, is_wanted: Callable[[str], bool] = bool
) -> MappedFiles:
    """Maps and verifies the files of a directory that are wanted, all by default; its manifest has this checksum.
    Raises Corrupt naming the file that is not what the catalog lists, and the remedy; Unavailable for want of memory or
    descriptors."""
    manifest = read_manifest(directory, checksum, remedy)
    wanted = {name: entry for name, entry in manifest["files"].items() if is_wanted(name)}
    maps = {name: _verified(directory / name, entry, remedy, check) for name, entry in wanted.items()}
    return MappedFiles(directory, manifest["parameters"], maps)


def read_manifest(directory: Path, checksum: int, remedy: str) -> dict[str, Any]:
    """The manifest of a directory. Raises as ``open_files``."""
    path = directory / MANIFEST
    try:
        data = path.read_bytes()
    except OSError as error:
        check_shortage(error, path)
        raise Corrupt(f"{path} cannot be read ({error.strerror}); {remedy}", path=path) from error
    if crc32c(data) != checksum:
        raise Corrupt(f"{path} is not the one that the catalog lists; {remedy}", path=path)
    return dict(json.loads(data))


def _verified(path: Path, entry: dict[str, int], remedy: str, check: Check) -> memoryview:
    size_bytes, checksum = entry["size_bytes"], 0
    if not size_bytes:
        return memoryview(b"")
    try:
        if path.stat().st_size != size_bytes:
            raise EOFError(f"it has {path.stat().st_size} bytes, {size_bytes} are right")
        mapped = map_file(path, size_bytes)
    except (OSError, EOFError) as error:
        if isinstance(error, OSError):
            check_shortage(error, path)
        raise Corrupt(f"{path} cannot be read ({error}); {remedy}", path=path) from error
    for start in range(0, size_bytes, PIECE_BYTES):
        check()
        checksum = crc32c(mapped[start : start + PIECE_BYTES], checksum)
    if checksum != entry["checksum"]:
        raise Corrupt(f"{path} does not match its checksum; {remedy}", path=path)
    return mapped
