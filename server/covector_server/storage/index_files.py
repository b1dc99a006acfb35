"""The files of indexes: directories below ``indexes/`` of a collection, which the catalog's table of that name lists.

A directory is made aside, filled, synced, and counts from the transaction on that lists it; after that its files never
change. Whoever fills it holds a lock on it, so that what a process that died left can be told from what is being made,
by this process or another: a directory that is not listed and not locked is an orphan.

``manifest.json`` names the files with their sizes and CRC-32C; its own checksum stands in the catalog.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from covector.errors import Conflict, Corrupt, LimitExceeded
from covector_server.metadata.catalog import Catalog, Reader, Writer, number
from covector_server.metadata.records import CheckpointRecord, IndexRecord
from covector_server.storage.damage import check_shortage
from covector_server.storage.disk import Disk
from covector_server.storage.mapping import map_file

MANIFEST = "manifest.json"
INDEXES = "indexes"
PIECE_BYTES = 16 << 20  # checked between two questions whether to go on
FORMAT = 1

Check = Callable[[], None]  # called at safe points; what it raises ends the work


# Records


def listed(reader: Reader, collection_id: int) -> list[IndexRecord]:
    """The indexes of a collection. Raises Corrupt for a damaged entry."""
    return [IndexRecord.decode(value) for _, value in reader.scan("indexes", number(collection_id))]


def put_index(writer: Writer, collection_id: int, record: IndexRecord) -> None:
    """Lists an index, or what is new of it."""
    writer.put("indexes", index_key(collection_id, record.id), record.encode())


class Moved(Conflict):
    """The rows that an index was built from lie elsewhere now: start again."""


def list_index(writer: Writer, collection_id: int, record: IndexRecord, indexes_max: int) -> list[IndexRecord]:
    """Lists a new index in the place of those that it replaces, which are returned. Raises Moved if a checkpoint has
    another generation by now, Conflict if it or the collection is gone, LimitExceeded."""
    for part in record.covered:
        value = writer.get("checkpoints", number(collection_id, part.checkpoint_id))
        if value is None or writer.get("collections", number(collection_id)) is None:
            raise Conflict("the collection was deleted while the index was built")
        if CheckpointRecord.decode(value).generation != part.generation:
            raise Moved("the checkpoint was compacted while the index was built; build it again")
    others = listed(writer, collection_id)
    replaced = [other for other in others if record.replaces(other)]
    if len(others) - len(replaced) >= indexes_max:
        raise LimitExceeded(
            f"the collection has {len(others)} indexes: the limit is indexes={indexes_max}; drop one first",
            limit="indexes",
            value=len(others) + 1,
        )
    for other in replaced:
        remove_index(writer, collection_id, other.id)
    put_index(writer, collection_id, record)
    return replaced


def remove_index(writer: Writer, collection_id: int, index_id: str) -> None:
    """Takes an index off the list."""
    writer.delete("indexes", index_key(collection_id, index_id))


def index_key(collection_id: int, index_id: str) -> bytes:
    """The key of an index in its table."""
    return number(collection_id) + index_id.encode()


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
        self.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

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
    """The files of an index on their way, in a directory that nothing lists yet. ``may_be_listed``: set it before the
    transaction that lists it; then whether it is listed is known to the catalog alone."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        self.directory = directory
        self.may_be_listed = False
        self._disk = disk
        self._files: dict[str, dict[str, int]] = {}

    @contextmanager
    def file(self, name: str) -> Iterator[DraftFile]:
        """A new file, durable when the block ends."""
        made = DraftFile(self.directory / name, self._disk)
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
        self._disk.sync_directory(self.directory)
        return {name: file["size_bytes"] for name, file in self._files.items()}, int(crc32c(data))


def map_draft(draft: Draft, name: str) -> memoryview:
    """A file of a draft that is written, mapped. It stays readable when the draft discards it."""
    size_bytes = draft.size_bytes(name)
    return map_file(draft.directory / name, size_bytes) if size_bytes else memoryview(b"")


@contextmanager
def drafting(collection_directory: Path, kind: str, disk: Disk) -> Iterator[Draft]:
    """A new directory for an index of this kind, locked while the block runs; removed if the block raises, unless it
    may be listed."""
    root = collection_directory / INDEXES
    disk.make_directories(root)
    path, lock = _make_locked(root, kind)
    draft = Draft(path, disk)
    try:
        disk.sync_directory(root)
        disk.step("index.created")
        yield draft
    except BaseException:
        if not draft.may_be_listed:
            disk.remove_tree(path)
        raise
    finally:
        os.close(lock)


def _make_locked(root: Path, kind: str) -> tuple[Path, int]:
    while True:
        path = root / f"{kind}-{secrets.token_hex(4)}"
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


def remove_unlisted(collection_directory: Path, collection_id: int, catalog: Catalog, disk: Disk) -> int:
    """Removes directories that the catalog does not list and nobody fills, and returns how many. Call it where no
    reader may need them: when the store is opened, or from an action that waited for readers. A list that is damaged
    in places keeps all of them."""
    removed_count = 0
    try:
        found = unlisted(collection_directory, collection_id, catalog)
    except Corrupt:
        return 0
    for path in found:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            # Asked once more under the lock: whoever filled it lists it before letting go.
            if _is_locked_there(descriptor, path) and path in unlisted(collection_directory, collection_id, catalog):
                disk.remove_tree(path)
                removed_count += 1
        finally:
            os.close(descriptor)
    return removed_count


def unlisted(collection_directory: Path, collection_id: int, catalog: Catalog) -> list[Path]:
    """Directories of indexes that the catalog does not list, some of which may be being filled. Raises Corrupt."""
    root = collection_directory / INDEXES
    if not root.is_dir():
        return []
    with catalog.read() as reader:
        known = {record.directory for record in listed(reader, collection_id)}
    return sorted(path for path in root.iterdir() if path.name not in known)


# Reading


@dataclass(frozen=True, slots=True)
class IndexFiles:
    """Files of an index, mapped, every byte checked."""

    directory: Path
    parameters: dict[str, Any]
    maps: dict[str, memoryview]

    @property
    def size_bytes(self) -> int:
        """Bytes mapped."""
        return sum(map(len, self.maps.values()))


def open_files(directory: Path, record: IndexRecord, check: Check) -> IndexFiles:
    """Maps and verifies the files of an index. Raises Corrupt naming the file that is not what the catalog lists,
    Unavailable for want of memory or descriptors."""
    manifest = read_manifest(directory, record)
    maps = {name: _verified(directory / name, entry, check) for name, entry in manifest["files"].items()}
    return IndexFiles(directory, manifest["parameters"], maps)


def read_manifest(directory: Path, record: IndexRecord) -> dict[str, Any]:
    """The manifest of an index. Raises as ``open_files``."""
    path = directory / MANIFEST
    try:
        data = path.read_bytes()
    except OSError as error:
        check_shortage(error, path)
        raise Corrupt(f"{path} cannot be read ({error.strerror}); build the index again", path=path) from error
    if crc32c(data) != record.checksum:
        raise Corrupt(f"{path} is not the one that the catalog lists; build the index again", path=path)
    return dict(json.loads(data))


def _verified(path: Path, entry: dict[str, int], check: Check) -> memoryview:
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
        raise Corrupt(f"{path} cannot be read ({error}); build the index again", path=path) from error
    for start in range(0, size_bytes, PIECE_BYTES):
        check()
        checksum = crc32c(mapped[start : start + PIECE_BYTES], checksum)
    if checksum != entry["checksum"]:
        raise Corrupt(f"{path} does not match its checksum; build the index again", path=path)
    return mapped
