"""A store made again elsewhere, from its files and a copy of its catalog.

What is finished is shared by hard link where the file system allows it; nobody writes to such a file any more, so
neither store can change the other. Everything else is copied as far as it is committed. A shard that was still filled
is completed in the copy alone, so that Zarr tools read every row of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from errno import EMLINK, ENOSYS, EOPNOTSUPP, EPERM, EXDEV
from pathlib import Path

import lmdb
from crc32c import crc32c

from covector.errors import Conflict, Corrupt
from covector_server.metadata.lmdb_catalog import LmdbCatalog
from covector_server.metadata.records import FORMAT_VERSION, StoreRecord
from covector_server.storage.disk import Disk
from covector_server.storage.layout import CHECKSUM_BYTES
from covector_server.storage.snapshot_plan import Finished, Plan, PlannedFile, Shape, Tail, plan_of

CATALOG = "catalog.lmdb"
Report = Callable[[int, int], None]  # bytes done, bytes in all; what it raises ends the work
_PIECE_BYTES = 64 << 20  # between two reports
_NO_LINK = {EXDEV, EMLINK, EPERM, EOPNOTSUPP, ENOSYS}


@dataclass(frozen=True, slots=True)
class CopiedCatalog:
    """What a copy of the catalog says."""

    format_version: int
    plan: Plan
    size_bytes: int


def open_copy(path: Path, disk: Disk) -> CopiedCatalog:
    """Reads a catalog that was just copied to ``path``, takes out what belongs to the running server alone
    (operations, answered requests), and makes it durable.

    Writers' high-water marks stay: a writer that goes on against a restored store learns that it was restored. Raises
    Corrupt if the copy cannot be read, Conflict if it is of a newer format.
    """
    try:
        catalog = LmdbCatalog(path)
    except lmdb.Error as error:
        raise Corrupt(f"{path} is no catalog that can be opened ({error})") from error
    try:
        with catalog.write() as writer:
            for table in ("operations", "requests"):
                for key in [key for key, _ in writer.scan(table)]:
                    writer.delete(table, key)
        with catalog.read() as reader:
            record = StoreRecord.decode(reader.get("store", b"store") or b"{}")
            if record.format_version > FORMAT_VERSION:
                raise Conflict(f"{path} has format {record.format_version}; use a newer covector")
            plan = plan_of(reader)
    finally:
        catalog.close()
        disk.remove_file(path.with_name(f"{path.name}-lock"))
    with disk.opened(path, 0) as descriptor:
        disk.sync(descriptor)
    return CopiedCatalog(record.format_version, plan, path.stat().st_size)


class FilesCopier:
    """Makes the files of a plan below ``target`` from those below ``source``."""

    def __init__(self, source: Path, target: Path, disk: Disk, report: Report) -> None:
        self._source = source
        self._target = target
        self._disk = disk
        self._report = report
        self._done_bytes = 0
        self._total_bytes = 0

    def copy(self, plan: Plan) -> int:
        """Makes all of it, durably but for the name of ``target`` itself, and returns its bytes. Raises Corrupt naming
        a file that is missing, too short, or not what the catalog says."""
        sizes = [self._size_bytes(file) for file in plan.files]
        self._total_bytes = sum(sizes)
        for directory in plan.directories:
            self._disk.make_directory(self._target / directory)
        for file, size_bytes in zip(plan.files, sizes, strict=True):
            done_bytes = self._done_bytes
            self._report(done_bytes, self._total_bytes)
            self._make(file, size_bytes)
            self._done_bytes = done_bytes + size_bytes
        check_files(plan, self._target)
        for directory in reversed(plan.directories):
            self._disk.sync_directory(self._target / directory)
        self._disk.sync_directory(self._target)
        self._report(self._total_bytes, self._total_bytes)
        return self._total_bytes

    def _size_bytes(self, file: PlannedFile) -> int:
        if not isinstance(file, Finished):
            return file.size_bytes
        path = self._source / file.path
        if not path.is_file() or path.stat().st_size < file.size_bytes:
            raise _missing(path, file.size_bytes)
        return path.stat().st_size

    def _make(self, file: PlannedFile, size_bytes: int) -> None:
        source, target = self._source / file.path, self._target / file.path
        try:
            if isinstance(file, Finished):
                self._share(source, target, size_bytes)
            elif isinstance(file, Shape):
                self._make_shape(source, target, file.row_count)
            else:
                size_on_disk = file.layout.shard_bytes if isinstance(file, Tail) else 0
                with self._disk.opened(target, size_on_disk) as descriptor:
                    self._copy(source, descriptor, size_bytes)
                    if isinstance(file, Tail):
                        self._complete(descriptor, file, source)
                    self._disk.sync(descriptor)
        except (FileNotFoundError, EOFError) as error:
            raise _missing(source, size_bytes) from error

    def _share(self, source: Path, target: Path, size_bytes: int) -> None:
        try:
            self._disk.link(source, target)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            with self._disk.opened(target, 0) as descriptor:
                self._copy(source, descriptor, size_bytes)
                self._disk.sync(descriptor)

    def _copy(self, source: Path, target: int, size_bytes: int) -> None:
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for start in range(0, size_bytes, _PIECE_BYTES):
                piece_bytes = min(_PIECE_BYTES, size_bytes - start)
                self._disk.copy_range(descriptor, target, start, piece_bytes)
                self._done_bytes += piece_bytes
                self._report(min(self._done_bytes, self._total_bytes), self._total_bytes)
        finally:
            os.close(descriptor)

    def _complete(self, descriptor: int, tail: Tail, source: Path) -> None:
        """Checks the committed rows of the last chunk, ends it with zeros (the file is made of them) and writes the
        index, as publishing does."""
        layout, row_in_chunk = tail.layout, tail.row_count % tail.layout.chunk_rows
        if row_in_chunk:
            start = tail.size_bytes - row_in_chunk * layout.row_bytes
            if crc32c(os.pread(descriptor, tail.size_bytes - start, start)) != tail.checksum:
                raise Corrupt(
                    f"{source}: rows {tail.row_count - row_in_chunk} to {tail.row_count - 1} of the shard do not match "
                    "their checksum; restore the file from a snapshot",
                    path=source,
                )
            checksum = crc32c(bytes((layout.chunk_rows - row_in_chunk) * layout.row_bytes), tail.checksum)
            self._disk.write(descriptor, checksum.to_bytes(CHECKSUM_BYTES, "little"), start + layout.chunk_bytes)
        chunk_count = -(-tail.row_count // layout.chunk_rows)
        self._disk.write(descriptor, layout.index(chunk_count), layout.index_offset_bytes)

    def _make_shape(self, source: Path, target: Path, row_count: int) -> None:
        """The live ``zarr.json`` may speak of fewer rows, or by now of more."""
        try:
            document = json.loads(source.read_text(encoding="utf-8"))
            document["shape"][0] = row_count
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise Corrupt(f"{source} cannot be read: {error}; restore the file from a snapshot") from error
        self._disk.replace_json(target, document)


def check_files(plan: Plan, directory: Path) -> None:
    """Raises Corrupt if a file of the plan is missing below ``directory``, or shorter than what is committed."""
    for file in plan.files:
        path = directory / file.path
        size_bytes = file.layout.shard_bytes if isinstance(file, Tail) else file.size_bytes
        if not path.is_file() or path.stat().st_size < size_bytes:
            raise _missing(path, size_bytes)


def _missing(path: Path, size_bytes: int) -> Corrupt:
    return Corrupt(
        f"{path} is missing or has fewer than {size_bytes} bytes, which the catalog says are committed; restore it "
        "from another snapshot",
        path=path,
    )
