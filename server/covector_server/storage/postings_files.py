"""The postings of a collection on disk: files below ``postings/``, which the catalog's table of that name lists.

They are derived from the row log, so nothing depends on them but speed. A file that is missing or damaged is told of
once in the log and left alone: its rows are answered one by one until it is built again. A file never changes; a newer
one takes its place in one catalog transaction, and a reader that comes too late to open the old one has its rows
answered one by one too.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from covector.errors import Corrupt
from covector_server.limits import Limits
from covector_server.metadata.catalog import Reader, Writer, number, numbers
from covector_server.metadata.postings import CHECKSUM_BYTES, Postings
from covector_server.metadata.postings_builder import PostingsBuilder
from covector_server.metadata.records import BlockRecord, PostingsRecord
from covector_server.storage.disk import Disk
from covector_server.storage.row_log import RowLog
from covector_server.storage.view import CollectionView, PostingsRange, RowIds

RANGE_ROWS = 1 << 16  # a roaring bitmap's container; and metadata that is read and encoded in a fraction of a second
_log = logging.getLogger(__name__)


class PostingsCache:
    """Opened postings of all collections, the latest used, up to ``bytes_max`` together."""

    def __init__(self, bytes_max: int = Limits().postings_cache_bytes) -> None:
        self._bytes_max = bytes_max
        self._size_bytes = 0
        self._kept: OrderedDict[Path, Postings] = OrderedDict()
        self._changing = threading.Lock()

    def get(self, path: Path) -> Postings | None:
        """The postings of a file, None if they are not kept."""
        with self._changing:
            found = self._kept.get(path)
            if found is not None:
                self._kept.move_to_end(path)
            return found

    def put(self, path: Path, postings: Postings) -> None:
        """Keeps the postings of a file, and no longer those that were not used for longest."""
        self.drop(path)
        with self._changing:
            self._kept[path] = postings
            self._size_bytes += postings.size_bytes
            while self._size_bytes > self._bytes_max and len(self._kept) > 1:
                self._size_bytes -= self._kept.popitem(last=False)[1].size_bytes

    def drop(self, path: Path) -> None:
        """Forgets a file."""
        with self._changing:
            old = self._kept.pop(path, None)
            self._size_bytes -= 0 if old is None else old.size_bytes


class PostingsFile:
    """One file: ``view.PostingsRange``. ``is_damaged`` once it could not be opened."""

    def __init__(self, number: int, record: PostingsRecord, path: Path, cache: PostingsCache) -> None:
        self.number = number
        self.record = record
        self.path = path
        self.is_damaged = False
        self._cache = cache

    @property
    def first(self) -> int:
        return self.record.first

    @property
    def row_count(self) -> int:
        return self.record.row_count

    @property
    def supplement_count(self) -> int:
        return self.record.supplement_count

    def open(self) -> Postings | None:
        """The postings, read and checked the first time; None if the file is missing or damaged."""
        found = self._cache.get(self.path)
        if found is None and not self.is_damaged:
            try:
                found = read_postings(self.path, self.record)
            except (Corrupt, OSError) as error:
                self.is_damaged = True
                last = self.first + self.row_count - 1
                _log.warning("%s: rows %d to %d are filtered one by one: %s", self.path, self.first, last, error)
                return None
            self._cache.put(self.path, found)
        return found

    def close(self) -> None:
        """Forgets what was read. It can be opened again."""
        self._cache.drop(self.path)


class PostingsFiles:
    """The files of one collection. Reading belongs to any thread; building to one; ``install`` and ``forget`` to
    whoever holds the collection's ``changing``."""

    def __init__(self, directory: Path, disk: Disk, cache: PostingsCache) -> None:
        self.files: tuple[PostingsFile, ...] = ()  # by first row; replaced whole, so that a view can hold it
        self.forgotten_count = 0  # how often files were forgotten without another in their place
        self._directory = directory
        self._disk = disk
        self._cache = cache

    def load(self, reader: Reader, collection_id: int) -> None:
        """Reads what the catalog lists. Opens no file. What follows a damaged entry is not taken; the next file that is
        listed stands in its place."""
        listed = []
        try:
            for key, value in reader.scan("postings", number(collection_id)):
                listed.append(self._file(numbers(key)[1], PostingsRecord.decode(value)))
        except Corrupt as error:
            _log.warning(
                "%s: some rows are filtered one by one until they are indexed again: %s", self._directory, error
            )
        self._put(listed)

    def next_number(self) -> int:
        """A number that no file has: neither a listed one nor one that a snapshot still keeps from being removed."""
        on_disk = (int(path.name.split(".")[0]) for path in self._directory.glob("*.postings*"))
        return max([0, *(file.number for file in self.files), *on_disk]) + 1

    def write(self, file_number: int, data: bytes, is_complete: bool) -> PostingsRecord:
        """Writes postings to a file, durably. It is not listed yet. Raises Corrupt if ``data`` does not decode."""
        postings = Postings.decode(data)
        self._disk.make_directories(self._directory)
        path = self._path(file_number)
        temporary = path.with_name(path.name + ".tmp")
        temporary.unlink(missing_ok=True)
        descriptor = self._disk.open(temporary, 0)
        try:
            self._disk.write(descriptor, data, 0)
            self._disk.step("postings.written")
            self._disk.sync(descriptor)
        finally:
            self._disk.close(descriptor)
        self._disk.step("postings.synced")
        self._disk.rename(temporary, path)
        self._disk.sync_directory(self._directory)
        self._disk.step("postings.renamed")
        checksum = int.from_bytes(data[-CHECKSUM_BYTES:], "little")
        return PostingsRecord(
            postings.first, postings.row_count, postings.supplement_count, is_complete, len(data), checksum
        )

    def install(self, file_number: int, record: PostingsRecord, replaced: Collection[int]) -> None:
        """Makes a registered file visible to new views, in the place of others."""
        kept = [file for file in self.files if file.number not in replaced]
        self._put([*kept, self._file(file_number, record)])

    def forget(self, forgotten: Collection[int]) -> None:
        """Takes unregistered files out of new views; their rows will be built again. What is being built from an older
        view will not be registered."""
        self.forgotten_count += 1
        self._put([file for file in self.files if file.number not in forgotten])

    def remove(self, removed: Collection[int]) -> None:
        """Removes files that are no longer listed."""
        for file_number in removed:
            self._path(file_number).unlink(missing_ok=True)
            self._cache.drop(self._path(file_number))

    def remove_orphans(self) -> None:
        """Removes what was written and never listed. For the thread that builds."""
        listed = {file.path for file in self.files}
        for path in self._directory.glob("*.postings*"):
            if path not in listed:
                path.unlink(missing_ok=True)

    def _put(self, files: list[PostingsFile]) -> None:
        self.files = tuple(sorted(files, key=lambda file: file.first))

    def _file(self, file_number: int, record: PostingsRecord) -> PostingsFile:
        return PostingsFile(file_number, record, self._path(file_number), self._cache)

    def _path(self, file_number: int) -> Path:
        return self._directory / f"{file_number:08d}.postings"


def read_postings(path: Path, record: PostingsRecord) -> Postings:
    """The postings in a file, every byte of it checked. Raises Corrupt unless it is the file that the catalog lists."""
    data = path.read_bytes()
    if int.from_bytes(data[-CHECKSUM_BYTES:], "little") != record.checksum:
        raise Corrupt("the file is not the one that the catalog lists")
    return Postings.decode(data)


def register(
    writer: Writer, collection_id: int, file_number: int, record: PostingsRecord, replaced: Collection[int] = ()
) -> None:
    """Lists a file, in the place of others."""
    unregister(writer, collection_id, replaced)
    writer.put("postings", number(collection_id, file_number), record.encode())


def unregister(writer: Writer, collection_id: int, removed: Collection[int]) -> None:
    """Takes files off the list."""
    for file_number in removed:
        writer.delete("postings", number(collection_id, file_number))


def build(view: CollectionView, first: int, row_count_max: int, text_count_max: int) -> tuple[bytes, bool]:
    """Encoded postings of the rows from ``first`` on, and whether they stopped at ``text_count_max`` characters of
    strings (about: a run of metadata is taken whole) before ``row_count_max`` rows."""
    builder = PostingsBuilder(first)
    for _, run in view.metadata((first, first + row_count_max)):
        builder.add(run)
        if builder.text_count >= text_count_max:
            break
    return builder.encode(view.supplement_count), builder.row_count < row_count_max


def supplemented_rows(log: RowLog, supplements: Sequence[BlockRecord], ranges: Sequence[PostingsRange]) -> RowIds:
    """The rows of these ranges, ascending, that were given metadata by a supplement after the range's postings were
    built."""
    oldest = min((each.supplement_count for each in ranges), default=len(supplements))
    newer = supplements[oldest:]
    firsts = np.fromiter((record.first for record in newer), dtype=np.int64, count=len(newer))
    lasts = np.fromiter((record.last for record in newer), dtype=np.int64, count=len(newer))
    found = [np.empty(0, dtype=np.int64)]
    for each in ranges if newer else ():
        stop = each.first + each.row_count
        touching = (firsts < stop) & (lasts >= each.first) & (np.arange(len(newer)) >= each.supplement_count - oldest)
        for place in np.flatnonzero(touching).tolist():
            row_ids = _rows_with_metadata(log, newer[place])
            found.append(row_ids[(row_ids >= each.first) & (row_ids < stop)])
    return np.unique(np.concatenate(found))


def _rows_with_metadata(log: RowLog, record: BlockRecord) -> RowIds:
    bad: dict[str, str] = {}
    block = log.read(record).readable(("row_ids", "metadata"), bad)
    if bad:  # any of them: who reads them finds out
        return np.arange(record.first, record.last + 1)
    if block.metadata is None:
        return np.empty(0, dtype=np.int64)
    return block.row_ids if block.metadata.present is None else block.row_ids[block.metadata.present]
