"""The scrubber: reads everything committed, round and round, a step at a time, and remembers what is damaged.

It knows the store by its catalog alone: for each piece it asks, in one short transaction, what is committed there,
reads the piece with ``pread``, and holds it against its checksum. A piece that does not match may have been changed
while it was read (by compaction, by erasure, by a deletion), so the catalog is asked again: only when it still says the
same is the piece damaged. What a read brought into the page cache is let go again; what was there stays.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from covector.errors import Corrupt
from covector.types import Space
from covector_server.jobs.scrub_pieces import (
    BlockPiece,
    ChunkPiece,
    IndexPiece,
    ListedFilePiece,
    Piece,
    Reading,
    Values,
    listed_files,
)
from covector_server.metadata.catalog import TABLES, Catalog, Table, numbers
from covector_server.metadata.records import CheckpointCounters, CheckpointRecord, CollectionRecord
from covector_server.storage.damage import Damage, DamageLog
from covector_server.storage.drafts import MANIFEST
from covector_server.storage.layout import checkpoint_layouts

STEP_BYTES = 64 << 20
_LISTED: tuple[Table, ...] = ("indexes", "fits")  # tables that list directories of files
_LARGE = ("row_blocks", "tombstones", "deleted_rows", "checkpoint_counters")  # read a collection at a time
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # say nothing about the file
_ATTEMPTS = 3  # a piece that changes each time it is read waits for the next round


@dataclass(frozen=True, slots=True)
class ScrubProgress:
    """How far the round is. ``total_bytes`` is an estimate, 0 before the first round."""

    checked_bytes: int = 0
    total_bytes: int = 0
    round_count: int = 0


class Scrubber:
    """Checks the store behind ``catalog`` and ``data``. ``step`` belongs to one thread, any may read ``progress``.

    bytes_per_s: how fast it may read on the average, 0 for not at all. round_s_min: a round begins so long after the
    one before began, at the earliest; a small store need not be read all the time.
    """

    def __init__(
        self,
        catalog: Catalog,
        data: Path,
        damages: DamageLog,
        bytes_per_s: int,
        clock: Callable[[], float] = time.monotonic,
        round_s_min: float = 0.0,
    ) -> None:
        self._catalog = catalog
        self._data = data
        self._damages = damages
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._allowance_bytes = 0.0
        self._allowed_at_s = clock()
        self._round: Iterator[int] | None = None
        self._round_s_min = round_s_min
        self._next_round_at_s = clock()
        self.progress = ScrubProgress()

    def step(self) -> bool:
        """Reads as much as the rate allows since the last step, ``STEP_BYTES`` at the most, and returns whether it read
        anything. At the end of a round it stops short."""
        now_s = self._clock()
        earned = (now_s - self._allowed_at_s) * self._bytes_per_s
        self._allowance_bytes = min(self._allowance_bytes + earned, STEP_BYTES)
        self._allowed_at_s = now_s
        has_read = False
        while self._allowance_bytes > 0 and self._advance():
            has_read = True
        return has_read

    def _advance(self) -> bool:
        """The next read; False at the end of a round, and until the next may begin."""
        if self._round is None:
            if self._clock() < self._next_round_at_s:
                return False
            self._next_round_at_s = self._clock() + self._round_s_min
            self._round = self._pieces()
            self.progress = ScrubProgress(0, self._total_bytes(), self.progress.round_count)
        read_bytes = next(self._round, None)
        before = self.progress
        if read_bytes is None:
            self._round = None
            self.progress = ScrubProgress(before.checked_bytes, before.checked_bytes, before.round_count + 1)
            return False
        self._allowance_bytes -= read_bytes
        checked = before.checked_bytes + read_bytes
        self.progress = ScrubProgress(checked, max(before.total_bytes, checked), before.round_count)
        return True

    def _pieces(self) -> Iterator[int]:
        """One round: checks piece after piece, and yields the bytes of each read."""
        yield from self._scrub_catalog()
        for id_ in self._keys("collections", b""):
            for key in self._keys("row_blocks", id_):
                yield from self._verify(BlockPiece(id_, key))
            for table in _LISTED:
                for key in self._keys(table, id_):
                    for piece in self._listed_pieces(table, id_, key):
                        yield from self._verify(piece)
            for key in self._keys("checkpoints", id_):
                for piece in self._checkpoint_pieces(id_, key):
                    yield from self._verify(piece)

    def _verify(self, piece: Piece) -> Iterator[int]:
        """Checks a piece as often as it takes to tell damage from change."""
        for _ in range(_ATTEMPTS):
            values = self._values(piece)
            if values is None:
                return
            reading = Reading(self._data)
            try:
                trouble = yield from piece.check(reading, values)
            except OSError as error:
                if error.errno in _SHORTAGES:
                    return  # for the next round
                trouble = f"it cannot be read: {error.strerror}"
            finally:
                reading.close()
            if trouble is None:
                return
            if self._values(piece) == values:
                self._damages.report(*piece.damage(values, trouble))
                return

    def _values(self, piece: Piece) -> Values | None:
        """What the catalog says of a piece; None if it speaks of it no more, or not soundly."""
        try:
            with self._catalog.read() as reader:
                found = tuple(reader.get(table, key) for table, key in piece.entries)
        except Corrupt:
            return None  # the round over the catalog reports it
        values = tuple(value for value in found if value is not None)
        return values if len(values) == len(found) else None

    def _checkpoint_pieces(self, id_: bytes, key: bytes) -> Iterator[Piece]:
        """The pieces of a checkpoint as it is now."""
        state = self._checkpoint(id_, key)
        if state is None:
            return
        dim, record, counters = state
        for layout in checkpoint_layouts(dim, record.chunk_rows, record.shard_rows):
            for chunk in range(-(-counters.row_count // layout.chunk_rows)):
                yield ChunkPiece(id_, key, layout, record.generation, chunk)
            for shard in range(counters.sealed_shard_count):
                yield IndexPiece(id_, key, layout, record.generation, shard)

    def _listed_pieces(self, table: Table, id_: bytes, key: bytes) -> list[Piece]:
        """The files of an index or a fit as it is now, the manifest of each directory first."""
        with suppress(Corrupt), self._catalog.read() as reader:
            value = reader.get(table, key)
            if value is not None:
                return [
                    ListedFilePiece(table, id_, key, one.directory, name)
                    for one in listed_files(table, value)[1]
                    for name in sorted(one.files, key=lambda name: name != MANIFEST)
                ]
        return []

    def _checkpoint(self, id_: bytes, key: bytes) -> tuple[int, CheckpointRecord, CheckpointCounters] | None:
        with suppress(Corrupt), self._catalog.read() as reader:
            collection, record = reader.get("collections", id_), reader.get("checkpoints", key)
            counters = reader.get("checkpoint_counters", key)
            if collection is not None and record is not None and counters is not None:
                dim = Space.from_json(CollectionRecord.decode(collection).space_json).dim
                return dim, CheckpointRecord.decode(record), CheckpointCounters.decode(counters)
        return None

    def _scrub_catalog(self) -> Iterator[int]:
        """Every value against its checksum, a table or a collection's part of it in one transaction."""
        ids = self._keys("collections", b"")
        for table in TABLES:
            for prefix in ids if table in _LARGE else [b""]:
                yield self._scrub_table(table, prefix)

    def _scrub_table(self, table: Table, prefix: bytes) -> int:
        byte_count = 0
        try:
            with self._catalog.read() as reader:
                for key, value in reader.scan(table, prefix):
                    byte_count += len(key) + len(value)
        except Corrupt as error:
            self._damages.report("", Damage("", "catalog.lmdb", error.message, 0))
        return byte_count

    def _keys(self, table: Table, prefix: bytes) -> list[bytes]:
        """The keys below a prefix; those before the first damaged value, if there is one."""
        keys: list[bytes] = []
        with suppress(Corrupt), self._catalog.read() as reader:
            keys.extend(key for key, _ in reader.scan(table, prefix))
        return keys

    def _total_bytes(self) -> int:
        """About how much a round reads."""
        total = 0
        for id_ in self._keys("collections", b""):
            for key in self._keys("checkpoints", id_):
                state = self._checkpoint(id_, key)
                if state is not None:
                    dim, record, counters = state
                    layouts = checkpoint_layouts(dim, record.chunk_rows, record.shard_rows)
                    total += counters.row_count * sum(layout.row_bytes for layout in layouts)
            log = self._data / "collections" / str(numbers(id_)[0]) / "rows"
            with suppress(OSError):  # the collection may go meanwhile
                total += sum(path.stat().st_size for path in log.glob("*.blocks"))
        return total
