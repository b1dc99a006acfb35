"""Runs of the key table: immutable files of (hash, row id), in buckets by the top bits of the hash, behind a filter.

A run holds the rows of one range of row ids. It is derived from the row log, so a damaged one is made again. A lookup
asks the filter first: one 64-bit word a key, four bits of it (a register-blocked Bloom filter; Putze, Sanders and
Singler 2009). Fewer than one absent key in a hundred passes, and looks into its bucket of about sixteen entries.

Little-endian: a header of 64 bytes (magic, version, bucket bits, entries, first and stop row id, filter words, CRC-32C
of the four sections' CRC-32C, CRC-32C of the header so far), then the sections: ``ends`` uint64[buckets], hashes
uint64[entries], row ids uint64[entries], the filter uint64[words]. Entries of a bucket are in no order.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from covector.errors import Corrupt
from covector_server.storage.disk import Disk
from covector_server.storage.key_filter import KEYS_PER_WORD, Words, add_to, may_hold
from covector_server.storage.key_hash import Hashes
from covector_server.storage.positions import is_among
from covector_server.storage.recent_keys import Candidates, RowIds

_MAGIC, _VERSION = b"CVKR", 1
_HEADER = struct.Struct("<4sHHQQQQI")
_HEADER_BYTES = 64
_BUCKET_ENTRIES = 16
_RADIX_BITS = 16
_SEARCHED = 1 << 20  # entries looked at at once


class KeyRun:
    """A run, mapped. Its checksum is verified when it is opened."""

    def __init__(self, path: Path) -> None:
        """Raises Corrupt if the file is not what was written."""
        self.path = path
        with path.open("rb") as file:
            try:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError as error:
                raise Corrupt(f"{path} is empty; it is made again from the row log") from error
        header = _read_header(path, self._map)
        self.first_row_id, self.stop_row_id, self.count = header.first_row_id, header.stop_row_id, header.count
        self._bucket_shift = np.uint64(64 - header.bucket_bits)
        bucket_count = 1 << header.bucket_bits
        self._ends = self._words(0, bucket_count)
        self._hashes = self._words(bucket_count, header.count)
        self._row_ids = self._words(bucket_count + header.count, header.count)
        self._filter = self._words(bucket_count + 2 * header.count, header.filter_words)

    @property
    def size_bytes(self) -> int:
        """The file's size."""
        return len(self._map)

    def find(self, hashes: Hashes) -> Candidates:
        """The rows with these hashes."""
        passed = may_hold(self._filter, hashes)
        if not len(passed):
            return Candidates(passed, passed)
        wanted = hashes[passed]
        buckets = self._buckets(wanted)
        stops = self._ends[buckets].astype(np.int64)
        starts = np.where(buckets > 0, self._ends[buckets - 1].astype(np.int64), 0)
        counts = stops - starts
        asked = np.repeat(np.arange(len(passed)), counts)
        entries = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts) + starts[asked]
        same = np.flatnonzero(self._hashes[entries] == wanted[asked])
        return Candidates(passed[asked[same]], self._row_ids[entries[same]].astype(np.int64))

    def entries_between(self, low: int, high: int, of: int) -> tuple[Hashes, RowIds]:
        """The entries whose hash lies in the parts [low, high) of ``of`` equal parts of all hashes; ``of`` is a power
        of two that divides the number of buckets."""
        step = len(self._ends) // of
        start = int(self._ends[low * step - 1]) if low else 0
        stop = int(self._ends[high * step - 1])
        return self._hashes[start:stop], self._row_ids[start:stop].astype(np.int64)

    def holds_any(self, row_ids: RowIds) -> bool:
        """Whether it has an entry of one of some rows; they are sorted."""
        low, high = np.searchsorted(row_ids, (self.first_row_id, self.stop_row_id))
        wanted = row_ids[low:high]
        if not len(wanted):
            return False
        steps = range(0, self.count, _SEARCHED)
        return any(is_among(wanted, self._row_ids[step : step + _SEARCHED].astype(np.int64)).any() for step in steps)

    def part_count_max(self) -> int:
        """Into how many parts ``entries_between`` can cut."""
        return len(self._ends)

    def _buckets(self, hashes: Hashes) -> npt.NDArray[np.int64]:
        if len(self._ends) == 1:
            return np.zeros(len(hashes), dtype=np.int64)
        return (hashes >> self._bucket_shift).astype(np.int64)

    def _words(self, start: int, count: int) -> Words:
        return np.frombuffer(self._map, "<u8", count=count, offset=_HEADER_BYTES + 8 * start)


Source = KeyRun | tuple[Hashes, RowIds]


@dataclass(frozen=True, slots=True)
class Without:
    """A source without the entries of some rows; they are sorted."""

    source: KeyRun
    row_ids: RowIds

    @property
    def count(self) -> int:
        """Entries that are left."""
        steps = range(0, self.source.count, _SEARCHED)
        found = (is_among(self.row_ids, self.source._row_ids[at : at + _SEARCHED].astype(np.int64)) for at in steps)
        return self.source.count - sum(int(mask.sum()) for mask in found)


def write_run(disk: Disk, path: Path, sources: Sequence[Source | Without], rows: tuple[int, int]) -> int:
    """Writes the entries of all sources as one run, durably, and returns its size in bytes. ``rows``: the range of row
    ids that it speaks for; entries outside are left out. What stood at ``path`` is replaced."""
    count = sum(_kept_count(source, rows) for source in sources)
    plan = _Plan.of(count, sources)
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    descriptor = disk.open(temporary, 0)
    try:
        size_bytes = _write_body(disk, descriptor, plan, sources, rows)
        disk.sync(descriptor)
    finally:
        disk.close(descriptor)
    disk.step("keys.written")
    disk.rename(temporary, path)
    disk.sync_directory(path.parent)
    return size_bytes


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a run is cut: ``part_count`` parts are sorted one after the other, so that memory is bounded."""

    count: int
    bucket_bits: int
    part_count: int
    filter_words: int

    @staticmethod
    def of(count: int, sources: Sequence[Source | Without]) -> _Plan:
        bucket_bits = max(0, (count // _BUCKET_ENTRIES).bit_length() - 1)
        part_bits = max(0, bucket_bits - _RADIX_BITS)
        for source in sources:
            run = source.source if isinstance(source, Without) else source
            if isinstance(run, KeyRun):
                part_bits = min(part_bits, run.part_count_max().bit_length() - 1)
        return _Plan(count, bucket_bits, 1 << part_bits, max(1, count // KEYS_PER_WORD))


def _write_body(
    disk: Disk,
    descriptor: int,
    plan: _Plan,
    sources: Sequence[Source | Without],
    rows: tuple[int, int],
) -> int:
    bucket_count = 1 << plan.bucket_bits
    counts = np.zeros(bucket_count, dtype=np.uint64)
    filter_ = np.zeros(plan.filter_words, dtype=np.uint64)
    hash_offset = _HEADER_BYTES + 8 * bucket_count
    row_offset = hash_offset + 8 * plan.count
    filter_offset = row_offset + 8 * plan.count
    hash_checksum = row_checksum = 0
    for hashes, row_ids in _sorted_parts(plan, sources, rows):
        buckets = (hashes >> np.uint64(64 - plan.bucket_bits)).astype(np.int64) if plan.bucket_bits else hashes * 0
        counts += np.bincount(buckets.astype(np.int64), minlength=bucket_count).astype(np.uint64)
        add_to(filter_, hashes)
        hash_bytes, row_bytes = hashes.astype("<u8").tobytes(), row_ids.astype("<u8").tobytes()
        disk.write(descriptor, hash_bytes, hash_offset)
        disk.write(descriptor, row_bytes, row_offset)
        hash_checksum, row_checksum = crc32c(hash_bytes, hash_checksum), crc32c(row_bytes, row_checksum)
        hash_offset, row_offset = hash_offset + len(hash_bytes), row_offset + len(row_bytes)
    ends, words = np.cumsum(counts).astype("<u8").tobytes(), filter_.astype("<u8").tobytes()
    disk.write(descriptor, ends, _HEADER_BYTES)
    disk.write(descriptor, words, filter_offset)
    checksums = struct.pack("<IIII", crc32c(ends), hash_checksum, row_checksum, crc32c(words))
    header = _HEADER.pack(_MAGIC, _VERSION, plan.bucket_bits, plan.count, *rows, plan.filter_words, crc32c(checksums))
    header += crc32c(header).to_bytes(4, "little")
    disk.write(descriptor, header.ljust(_HEADER_BYTES, b"\0"), 0)
    return filter_offset + len(words)


def _sorted_parts(
    plan: _Plan, sources: Sequence[Source | Without], rows: tuple[int, int]
) -> Iterator[tuple[Hashes, RowIds]]:
    """The entries, part after part, each in the order of its buckets."""
    shift = np.uint64(max(0, 64 - plan.bucket_bits))
    for part in range(plan.part_count):
        pieces = [_part_of(source, part, plan.part_count) for source in sources]
        hashes = np.concatenate([np.empty(0, dtype=np.uint64), *(piece[0] for piece in pieces)])
        row_ids = np.concatenate([np.empty(0, dtype=np.int64), *(piece[1] for piece in pieces)])
        kept = np.flatnonzero((row_ids >= rows[0]) & (row_ids < rows[1]))
        hashes, row_ids = hashes[kept], row_ids[kept]
        if plan.bucket_bits:
            within = hashes >> shift
            bits = plan.bucket_bits - (plan.part_count.bit_length() - 1)
            radix = within.astype(np.uint16) if bits <= _RADIX_BITS else within
            order = np.argsort(radix, kind="stable")
            hashes, row_ids = hashes[order], row_ids[order]
        yield hashes, row_ids


def _part_of(source: Source | Without, part: int, part_count: int) -> tuple[Hashes, RowIds]:
    if isinstance(source, Without):
        hashes, row_ids = _part_of(source.source, part, part_count)
        kept = ~is_among(source.row_ids, row_ids)
        return hashes[kept], row_ids[kept]
    if isinstance(source, KeyRun):
        return source.entries_between(part, part + 1, part_count)
    hashes, row_ids = source
    if part_count == 1:
        return hashes, row_ids
    here = np.flatnonzero(hashes >> np.uint64(64 - (part_count.bit_length() - 1)) == np.uint64(part))
    return hashes[here], row_ids[here]


def _kept_count(source: Source | Without, rows: tuple[int, int]) -> int:
    if isinstance(source, Without):
        return source.count
    if isinstance(source, KeyRun):
        if rows[0] <= source.first_row_id and source.stop_row_id <= rows[1]:
            return source.count
        source = source.entries_between(0, 1, 1)
    return int(((source[1] >= rows[0]) & (source[1] < rows[1])).sum())


@dataclass(frozen=True, slots=True)
class _Header:
    bucket_bits: int
    count: int
    first_row_id: int
    stop_row_id: int
    filter_words: int


def _read_header(path: Path, data: mmap.mmap) -> _Header:
    head = data[: _HEADER.size]
    if len(data) < _HEADER_BYTES or data[_HEADER.size : _HEADER.size + 4] != crc32c(head).to_bytes(4, "little"):
        raise Corrupt(f"{path}: the header does not match its checksum")
    magic, version, bucket_bits, count, first, stop, filter_words, checksum = _HEADER.unpack(head)
    if magic != _MAGIC or version != _VERSION:
        raise Corrupt(f"{path}: a key run of version {version} is not known to this program")
    sizes = [8 << bucket_bits, 8 * count, 8 * count, 8 * filter_words]
    if len(data) != _HEADER_BYTES + sum(sizes) or any(data[_HEADER.size + 4 : _HEADER_BYTES]):
        raise Corrupt(f"{path}: the file is not as long as its header says")
    offset, checksums = _HEADER_BYTES, b""
    with memoryview(data) as view:
        for size in sizes:
            with view[offset : offset + size] as section:
                checksums += crc32c(section).to_bytes(4, "little")
            offset += size
    if crc32c(checksums) != checksum:
        raise Corrupt(f"{path}: the entries do not match their checksum")
    return _Header(bucket_bits, count, first, stop, filter_words)
