"""Erasure of keys, texts and metadata: blocks of the row log written anew without those of deleted rows.

A file that holds any such block is emptied: all its blocks are appended to the end of the log, those with deleted rows
without what they said of them, and the file goes when nobody reads it any more. The catalog lists it as being emptied
before the first block moves, so that a crash cannot leave it half empty and forgotten. Blocks that are damaged move as
they are, and are reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from covector.errors import Corrupt, CovectorError, Unavailable
from covector_server.metadata.catalog import number, numbers
from covector_server.metadata.records import BlockRecord, CollectionCounters
from covector_server.storage.collection import NO_ROWS, StoredCollection
from covector_server.storage.generation import Check, Exclusive, check_alive, check_not_deleted, following
from covector_server.storage.orphans import retired_logs
from covector_server.storage.positions import is_among, merged
from covector_server.storage.relocations import Move
from covector_server.storage.row_block import Block, without_rows
from covector_server.storage.row_log import NEW, SUPPLEMENT
from covector_server.storage.store import Store
from covector_server.storage.syncs import Syncs
from covector_server.storage.view import RowIds

MOVED_BYTES = 32 << 20  # of blocks moved at once, while ingest waits
_SCANNED = 4096  # records read in one transaction
Name = tuple[int, int]  # kind and number of a block


@dataclass(frozen=True, slots=True)
class _Moving:
    """A block on its way: its name, where it lies, and its new bytes."""

    name: Name
    record: BlockRecord
    data: bytes


class TextErasure:
    """Erases what the row log says of ``gone``, sorted ids of deleted rows. ``kept``: those of them that stand in
    damaged blocks, and stay; ``unsound``: these blocks, in words; ``block_count``: blocks written without some rows;
    ``freed_bytes``: by how much these shrank."""

    def __init__(self, store: Store, collection: StoredCollection, gone: RowIds, run: Exclusive) -> None:
        self.kept = NO_ROWS
        self.unsound: list[str] = []
        self.block_count = 0
        self.freed_bytes = 0
        self.files: list[int] = []  # that are emptied
        self._store = store
        self._collection = collection
        self._gone = gone
        self._run = run

    def erase(self, check: Check) -> None:
        """Moves every block that has to move. Afterwards no block that the catalog names tells of the rows."""
        touched = self._touched(check)
        self.files = sorted({record.file for record in touched.values()} | set(retired_logs(self._collection)))
        if not self.files:
            return
        self._run(self._begin)
        bytes_max = min(MOVED_BYTES, self._store.sizes.log_file_bytes // 2)  # so that a batch lies in two files at most
        batch: list[_Moving] = []
        batch_bytes = 0
        for name, record in self._blocks_in_files():
            batch.append(_Moving(name, record, self._moved_bytes(record, name in touched)))
            batch_bytes += len(batch[-1].data)
            if batch_bytes >= bytes_max:
                self._move(batch, check)
                batch, batch_bytes = [], 0
        self._move(batch, check)

    # Which blocks tell of the rows

    def _touched(self, check: Check) -> dict[Name, BlockRecord]:
        found: dict[Name, BlockRecord] = {}
        for record, _ in self._collection.rows().blocks.holding(self._gone):
            check()
            if self._tells(record):
                found[NEW, record.first] = record
        for place, record in enumerate(list(self._collection.supplements.records)):
            low, high = np.searchsorted(self._gone, (record.first, record.last + 1))
            if high > low and self._tells(record):
                found[SUPPLEMENT, place] = record
        return found

    def _tells(self, record: BlockRecord) -> bool:
        """Whether a block says anything of the rows. A damaged one is reported, and counts as telling nothing."""
        try:
            block = self._read(record)
            gone = np.flatnonzero(is_among(self._gone, block.row_ids))
            columns = [column for column in (block.keys, block.texts, block.metadata) if column is not None]
            return any(column.value(row) for column in columns for row in gone.tolist())
        except (Corrupt, OSError) as error:
            self._report(record, error)
            return False

    def _read(self, record: BlockRecord) -> Block:
        block = Block(self._collection.log.read_bytes(record))
        block.check()
        return block

    def _report(self, record: BlockRecord, error: Exception) -> None:
        path = self._collection.log.path(record.file)
        self.unsound.append(
            f"{path} at {record.offset_bytes}: rows {record.first} to {record.last}: {error}; left as is"
        )
        low, high = np.searchsorted(self._gone, (record.first, record.last + 1))
        self.kept = merged(self.kept, self._gone[low:high])

    # Moving

    def _begin(self) -> None:
        """On the commit thread: lists the files, and goes on in another one if the last is among them."""
        collection, id_ = self._collection, self._collection.record.id
        check_alive(collection)
        counters = collection.counters
        if counters.log_file in self.files:
            counters = replace(counters, log_file=counters.log_file + 1, log_offset_bytes=0)
        with self._in_doubt(), self._store.catalog.write() as writer:
            check_not_deleted(writer, collection)
            for file in self.files:
                writer.put("retired_logs", number(id_, file), b"")
            writer.put("collection_counters", number(id_), counters.encode())
        with following(collection):
            self._store.disk.step("compact.log_begun")
            with collection.changing:
                collection.counters = counters
        for file in self.files:
            collection.log.close_file(file)

    def _blocks_in_files(self) -> Iterator[tuple[Name, BlockRecord]]:
        start = b""
        while True:
            with self._store.catalog.read() as reader:
                found = []
                for key, value in reader.scan("row_blocks", number(self._collection.record.id), start):
                    found.append((key, BlockRecord.decode(value)))
                    if len(found) == _SCANNED:
                        break
            for key, record in found:
                if record.file in self.files:
                    _, kind, number_ = numbers(key)
                    yield (kind, number_), record
            if len(found) < _SCANNED:
                return
            start = found[-1][0] + b"\0"

    def _moved_bytes(self, record: BlockRecord, is_touched: bool) -> bytes:
        if not is_touched:
            return self._collection.log.read_bytes(record)
        block = self._read(record)
        data = without_rows(block, is_among(self._gone, block.row_ids))
        self.block_count += 1
        self.freed_bytes += record.size_bytes - len(data)
        return data

    def _move(self, batch: list[_Moving], check: Check) -> None:
        check()
        if batch:
            self._run(lambda: self._append(batch))

    def _append(self, batch: list[_Moving]) -> None:
        """On the commit thread: writes blocks at the end of the log, and makes that their place."""
        collection = self._collection
        check_alive(collection)
        counters, places = self._write(batch)
        move = Move(
            collection.readers.epoch,
            {moving.name[1]: moving.record for moving in batch if moving.name[0] == NEW},
        )
        collection.relocations.add(move)
        self._commit(counters, places)
        with following(collection):
            self._store.disk.step("compact.log_committed")
            moved = {name[1]: record for name, record in places.items() if name[0] == SUPPLEMENT}
            with collection.changing:
                collection.counters = counters
                if moved:
                    collection.supplements = collection.supplements.moved(moved)
        collection.readers.retire(lambda: collection.relocations.remove(move))

    def _write(self, batch: list[_Moving]) -> tuple[CollectionCounters, dict[Name, BlockRecord]]:
        collection, counters, syncs = self._collection, self._collection.counters, Syncs()
        places: dict[Name, BlockRecord] = {}
        for moving in batch:
            size = len(moving.data)
            file, offset_bytes = collection.log.place(size, counters.log_file, counters.log_offset_bytes)
            collection.log.append(moving.data, file, offset_bytes)
            places[moving.name] = replace(moving.record, file=file, offset_bytes=offset_bytes, size_bytes=size)
            counters = replace(counters, log_file=file, log_offset_bytes=offset_bytes + size)
        collection.log.write_held(syncs)
        self._store.disk.step("compact.log_written")
        try:
            syncs.run_alone(self._store.disk)
        except OSError as error:
            collection.read_only = _failed(collection, error)
            raise collection.read_only from error
        return counters, places

    @contextmanager
    def _in_doubt(self) -> Iterator[None]:
        """A transaction that fails may hold all the same: that is for a restart to find out."""
        try:
            yield
        except CovectorError as error:
            self._collection.read_only = _failed(self._collection, error)
            raise self._collection.read_only from error

    def _commit(self, counters: CollectionCounters, places: dict[Name, BlockRecord]) -> None:
        id_ = self._collection.record.id
        with self._in_doubt(), self._store.catalog.write() as writer:
            check_not_deleted(writer, self._collection)
            writer.put("collection_counters", number(id_), counters.encode())
            for (kind, number_), record in places.items():
                writer.put("row_blocks", number(id_, kind, number_), record.encode())


def _failed(collection: StoredCollection, error: Exception) -> Unavailable:
    return Unavailable(
        f"collection {collection.record.name!r} is read-only: the disk failed while its row log was rewritten "
        f"({error}); look at the disk, then restart the server",
        final="true",
    )
