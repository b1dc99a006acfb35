"""What may be on a disk after the power fails, from a record of what was asked of it.

Fault model, stricter than any file system in use:

- Data. What was written before the start of a sync of its file that ended before the failure is there (a write through
  a descriptor with O_DSYNC syncs its own pages). Of the rest, each page of 4 KiB is as it was at the last sync or after
  any of the writes since, and so is the size of the file, each on its own: a size without its data gives zeros.
- Names. Making, linking, renaming and removing a name holds once a sync of its directory has ended. Of the rest, any
  subset holds, in the order in which it was asked for; a rename holds as a whole or not at all. Syncing a file does not
  sync its name.

``read_log`` gives the records of ``record_io.c``; ``Machine`` takes them one by one; ``Machine.fail`` writes to a
directory what is there if the power fails now, by the draws of a generator.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

State = TypeVar("State")
PAGE_BYTES = 4096
OPEN, WRITE, TRUNCATE, SYNC_BEGIN, SYNC_END, CLOSE, RENAME, LINK, UNLINK, MKDIR, RMDIR = range(1, 12)
_SYNCED, _TRUNCATED = 1, 2
_MAGIC = 0x4F494352
_HEADER = struct.Struct("<IIIiIIIIQ")
SURVIVAL = (0.0, 0.2, 0.5, 0.8, 1.0)  # how likely what was not synced is there: one of these a failure


@dataclass(frozen=True, slots=True)
class Record:
    """One call that succeeded."""

    operation: int
    process: int
    descriptor: int
    flags: int
    path: str
    path2: str
    data: bytes
    offset: int


def read_log(path: Path) -> Iterator[Record]:
    """The records in their order."""
    log, place = path.read_bytes(), 0
    while place < len(log):
        magic, operation, process, descriptor, flags, *sizes, offset = _HEADER.unpack_from(log, place)
        assert magic == _MAGIC, f"no record at {place} of {path}"
        place += _HEADER.size
        parts = []
        for size in sizes:
            parts.append(log[place : place + size])
            place += size
        yield Record(operation, process, descriptor, flags, parts[0].decode(), parts[1].decode(), parts[2], offset)


@dataclass(eq=False, slots=True)
class File:
    """Bytes as the kernel has them, and what of them is durable. Versions carry the number of the record that made
    them, so that a sync leaves those that came after it had begun."""

    data: bytearray = field(default_factory=bytearray)
    durable: dict[int, bytes] = field(default_factory=dict)  # page -> its bytes
    durable_size: int = 0
    pages: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict)
    sizes: list[tuple[int, int]] = field(default_factory=list)

    def write(self, number: int, offset: int, data: bytes) -> None:
        end = offset + len(data)
        if end > len(self.data):
            self.data.extend(bytes(end - len(self.data)))
            self.sizes.append((number, end))
        self.data[offset:end] = data
        for page in range(offset // PAGE_BYTES, -(-end // PAGE_BYTES)):
            self._keep(number, page)

    def truncate(self, number: int, size: int) -> None:
        old = len(self.data)
        if size < old:
            del self.data[size:]
            for page in range(size // PAGE_BYTES, -(-old // PAGE_BYTES)):
                self._keep(number, page)
        else:
            self.data.extend(bytes(size - old))
        self.sizes.append((number, size))

    def sync(self, before: int, pages: range | None = None) -> None:
        """What was done before a record is durable: all of it, or some pages and the size."""
        for page in list(self.pages) if pages is None else pages:
            versions = self.pages.pop(page, [])
            for number, data in versions:
                if number < before:
                    self.durable[page] = data
            if left := [version for version in versions if version[0] >= before]:
                self.pages[page] = left
        for number, size in self.sizes:
            if number < before:
                self.durable_size = size
        self.sizes = [entry for entry in self.sizes if entry[0] >= before]

    def after_failure(self, rng: np.random.Generator, survival: float) -> tuple[int, dict[int, bytes]]:
        """A size and pages that may be found."""
        size = _draw(rng, survival, [self.durable_size, *(size for _, size in self.sizes)])
        pages = dict(self.durable)
        for page, versions in self.pages.items():
            pages[page] = _draw(rng, survival, [self.durable.get(page, b""), *(data for _, data in versions)])
        return size, pages

    def _keep(self, number: int, page: int) -> None:
        data = bytes(self.data[page * PAGE_BYTES : (page + 1) * PAGE_BYTES])
        self.pages.setdefault(page, []).append((number, data))


def _draw(rng: np.random.Generator, survival: float, states: Sequence[State]) -> State:
    """The first state (the durable one), or one of those after it: often the last."""
    if len(states) == 1 or rng.random() >= survival:
        return states[0]
    return states[-1] if rng.random() < 0.5 else states[int(rng.integers(1, len(states)))]


@dataclass(eq=False, slots=True)
class Directory:
    """Names as the kernel has them, and those that are durable."""

    entries: dict[str, Node] = field(default_factory=dict)
    durable: dict[str, Node] = field(default_factory=dict)


Node = File | Directory
Change = tuple[Directory, str, Node | None]


@dataclass(frozen=True, slots=True)
class Naming:
    """Changes of names that hold together, made by one call."""

    number: int
    changes: tuple[Change, ...]


class Machine:
    """Kernel and disk, for the files below ``root``. At the start there are these empty directories in it, durably."""

    def __init__(self, root: Path, directories: Sequence[str] = ()) -> None:
        self._root_path = str(root.resolve())
        self._root = Directory()
        self._open: dict[tuple[int, int], Node] = {}
        self._syncs: dict[tuple[int, int], int] = {}  # descriptor -> the record that began its sync
        self._namings: list[Naming] = []  # not durable yet
        self._number = 0
        for name in directories:
            self._root.entries[name] = self._root.durable[name] = Directory()

    def take(self, record: Record) -> None:
        """Does what a record says was done."""
        self._number += 1
        _TAKE[record.operation](self, record)

    def file(self, path: Path) -> bytes:
        """A file as the kernel has it."""
        node = self._find(str(path))
        assert isinstance(node, File)
        return bytes(node.data)

    def has(self, path: Path) -> bool:
        """Whether there is a file as the kernel sees it."""
        return self._find(str(path)) is not None

    def fail(self, target: Path, rng: np.random.Generator, skip: Callable[[str], bool] = lambda name: False) -> None:
        """Writes what is there after a failure of the power now. ``skip``: names that are left out."""
        survival = {"pages": float(rng.choice(SURVIVAL)), "names": float(rng.choice(SURVIVAL))}
        entries: dict[int, dict[str, Node]] = {}
        for naming in self._namings:
            if rng.random() < survival["names"]:
                for directory, name, node in naming.changes:
                    _change(entries.setdefault(id(directory), dict(directory.durable)), name, node)
        written: dict[int, Path] = {}

        def put(directory: Directory, path: Path) -> None:
            path.mkdir()
            for name, node in entries.get(id(directory), directory.durable).items():
                if skip(name):
                    continue
                if isinstance(node, Directory):
                    put(node, path / name)
                elif id(node) in written:
                    os.link(written[id(node)], path / name)
                else:
                    written[id(node)] = path / name
                    _write(path / name, *node.after_failure(rng, survival["pages"]))

        put(self._root, target)

    def _parent(self, path: str) -> tuple[Directory, str]:
        relative = path.removeprefix(self._root_path).strip("/")
        *above, last = relative.split("/")
        directory = self._root
        for name in above:
            below = directory.entries[name]
            assert isinstance(below, Directory)
            directory = below
        return directory, last

    def _find(self, path: str) -> Node | None:
        if path == self._root_path:
            return self._root
        directory, last = self._parent(path)
        return directory.entries.get(last)

    def _name(self, *changes: Change) -> None:
        for directory, name, node in changes:
            _change(directory.entries, name, node)
        self._namings.append(Naming(self._number, changes))

    def _take_open(self, record: Record) -> None:
        node = self._find(record.path)
        if node is None:
            node = File()
            self._name((*self._parent(record.path), node))
        elif record.flags & _TRUNCATED and isinstance(node, File):
            node.truncate(self._number, 0)
        self._open[record.process, record.descriptor] = node

    def _take_write(self, record: Record) -> None:
        file = self._open[record.process, record.descriptor]
        assert isinstance(file, File)
        file.write(self._number, record.offset, record.data)
        if record.flags & _SYNCED:
            end = record.offset + len(record.data)
            file.sync(self._number + 1, range(record.offset // PAGE_BYTES, -(-end // PAGE_BYTES)))

    def _take_truncate(self, record: Record) -> None:
        file = self._open[record.process, record.descriptor]
        assert isinstance(file, File)
        file.truncate(self._number, record.offset)

    def _take_sync_begin(self, record: Record) -> None:
        self._syncs[record.process, record.descriptor] = self._number

    def _take_sync_end(self, record: Record) -> None:
        descriptor = record.process, record.descriptor
        node, began = self._open[descriptor], self._syncs[descriptor]
        if isinstance(node, File):
            node.sync(began)
            return
        left = []
        for naming in self._namings:
            if naming.number < began and any(directory is node for directory, _, _ in naming.changes):
                for directory, name, named in naming.changes:
                    _change(directory.durable, name, named)
            else:
                left.append(naming)
        self._namings = left

    def _take_close(self, record: Record) -> None:
        self._open.pop((record.process, record.descriptor))

    def _take_rename(self, record: Record) -> None:
        directory, name = self._parent(record.path)
        self._name((directory, name, None), (*self._parent(record.path2), directory.entries[name]))

    def _take_link(self, record: Record) -> None:
        directory, name = self._parent(record.path)
        self._name((*self._parent(record.path2), directory.entries[name]))

    def _take_removal(self, record: Record) -> None:
        self._name((*self._parent(record.path), None))

    def _take_mkdir(self, record: Record) -> None:
        self._name((*self._parent(record.path), Directory()))


_TAKE: dict[int, Callable[[Machine, Record], None]] = {
    OPEN: Machine._take_open,
    WRITE: Machine._take_write,
    TRUNCATE: Machine._take_truncate,
    SYNC_BEGIN: Machine._take_sync_begin,
    SYNC_END: Machine._take_sync_end,
    CLOSE: Machine._take_close,
    RENAME: Machine._take_rename,
    LINK: Machine._take_link,
    UNLINK: Machine._take_removal,
    MKDIR: Machine._take_mkdir,
    RMDIR: Machine._take_removal,
}


def _change(entries: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        entries.pop(name, None)
    else:
        entries[name] = node


def _write(path: Path, size: int, pages: dict[int, bytes]) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        for page, data in pages.items():
            start = page * PAGE_BYTES
            if start < size and data:
                file.seek(start)
                file.write(data[: size - start])
