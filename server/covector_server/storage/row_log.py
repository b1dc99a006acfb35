"""The row log: keys, texts and metadata of rows, a block a batch, appended to files below ``rows/``.

Where a block lies is committed in the catalog; bytes that no record names do not exist. ``storage.row_block`` knows the
bytes of a block.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from covector.errors import Corrupt
from covector_server.metadata.records import BlockRecord
from covector_server.storage.damage import check_shortage
from covector_server.storage.disk import Disk
from covector_server.storage.row_block import NEW, SUPPLEMENT, Block, unreadable
from covector_server.storage.syncs import Syncs

CACHED_BYTES = 32 << 20
_OPEN_FILES = 8  # the newest ones, to append to; more than one group writes to

__all__ = ["NEW", "SUPPLEMENT", "RowLog"]


class RowLog:
    """The blocks below ``directory``. Appending belongs to one thread, reading to any; blocks read are cached."""

    def __init__(self, directory: Path, disk: Disk, file_bytes: int) -> None:
        self._directory = directory
        self._disk = disk
        self._file_bytes = file_bytes
        self._descriptors: dict[int, int] = {}  # file number -> open file
        self._held: dict[tuple[int, int], bytes] = {}  # blocks that are not written yet, by place, neighbours in order
        self._cache: OrderedDict[tuple[int, int], Block] = OrderedDict()
        self._cached_bytes = 0
        self._caching = threading.Lock()

    def create(self) -> None:
        """Makes the empty log, durably."""
        self._disk.make_directories(self._directory)

    def place(self, size_bytes: int, file: int, offset_bytes: int) -> tuple[int, int]:
        """Where a block goes that is to come after the end of the log: file and offset."""
        if offset_bytes and offset_bytes + size_bytes > self._file_bytes:
            return file + 1, 0
        return file, offset_bytes

    def append(self, data: bytes, file: int, offset_bytes: int) -> None:
        """Takes a block for its place, which is behind that of the block before. It can be read at once, and is written
        by ``write_held``."""
        self._forget(file, offset_bytes)
        self._held[file, offset_bytes] = data

    def write_held(self, syncs: Syncs) -> None:
        """Writes the blocks that were appended, neighbours together. Not durable before ``syncs`` are done. If it fails
        they are dropped: nothing may speak of them."""
        try:
            for file in sorted({file for file, _ in self._held}):
                places = [place for place in self._held if place[0] == file]
                descriptor = self._open(file, syncs)
                self._disk.write_parts(descriptor, [self._held[place] for place in places], places[0][1])
                syncs.add_file(descriptor)
        finally:
            self._held = {}

    def close_after(self, file: int) -> None:
        """Drops what was not written, and closes the files behind ``file``: the group failed."""
        self._held = {}
        for number in [number for number in self._descriptors if number > file]:
            self._disk.close(self._descriptors.pop(number))

    def read(self, record: BlockRecord) -> Block:
        """The block at a place. One that is damaged says so when its sections are read: it is not cached."""
        place = (record.file, record.offset_bytes)
        with self._caching:
            if place in self._cache:
                self._cache.move_to_end(place)
                return self._cache[place]
        held = self._held.get(place)
        if held is not None:
            return Block(held)
        try:
            block = Block(self._read_bytes(record))
        except OSError as error:
            check_shortage(error, self.path(record.file))
            return unreadable(record.first, record.row_count, f"the file cannot be read ({error})")
        except Corrupt as error:
            return unreadable(record.first, record.row_count, error.message)
        self._remember(place, block)
        return block

    def read_bytes(self, record: BlockRecord) -> bytes:
        """The bytes at a place, as they are."""
        return self._read_bytes(record)

    def close_file(self, file: int) -> None:
        """Closes a file that nothing is appended to any more. Belongs to the thread that appends."""
        descriptor = self._descriptors.pop(file, None)
        if descriptor is not None:
            self._disk.close(descriptor)

    def remove_file(self, file: int) -> None:
        """Removes a file that no record names and nobody reads, durably."""
        self._disk.remove_file(self.path(file))
        self.forget_file(file)

    def forget_file(self, file: int) -> None:
        """Drops what is cached of a file that was replaced."""
        with self._caching:
            for place in [place for place in self._cache if place[0] == file]:
                self._cached_bytes -= self._cache.pop(place).memory_bytes

    def path(self, file: int) -> Path:
        """The path of a file of the log."""
        return self._directory / f"{file:08d}.blocks"

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            self._disk.close(descriptor)
        self._descriptors.clear()

    def _read_bytes(self, record: BlockRecord) -> bytes:
        with self.path(record.file).open("rb", buffering=0) as file:
            file.seek(record.offset_bytes)
            return file.read(record.size_bytes) or b""

    def _remember(self, place: tuple[int, int], block: Block) -> None:
        with self._caching:
            if place in self._cache:
                return
            self._cache[place] = block
            self._cached_bytes += block.memory_bytes
            while self._cached_bytes > CACHED_BYTES and len(self._cache) > 1:
                self._cached_bytes -= self._cache.popitem(last=False)[1].memory_bytes

    def _forget(self, file: int, offset_bytes: int) -> None:
        with self._caching:
            block = self._cache.pop((file, offset_bytes), None)
            self._cached_bytes -= 0 if block is None else block.memory_bytes

    def _open(self, file: int, syncs: Syncs) -> int:
        if file not in self._descriptors:
            self._descriptors[file] = self._disk.open(self.path(file), 0)
            syncs.add_directory(self._directory)  # the file is new, or its maker died before syncing its name
            for old in sorted(self._descriptors)[:-_OPEN_FILES]:
                self._disk.close(self._descriptors.pop(old))
        return self._descriptors[file]
