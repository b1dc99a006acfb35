"""A collection on disk: its rows, its checkpoints, and the view that readers take of both.

Nothing here holds a value a row: keys are found in the key table, blocks in the catalog, positions in the row_ids
arrays. What is committed is changed by the commit thread alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from covector.blocks import column_of
from covector.errors import Corrupt, Unavailable
from covector.types import Space
from covector_server.metadata.catalog import Reader, number, numbers
from covector_server.metadata.records import (
    BlockRecord,
    CheckpointCounters,
    CheckpointRecord,
    CollectionCounters,
    CollectionRecord,
    FitRecord,
    IndexRecord,
)
from covector_server.storage.array import ZarrArray
from covector_server.storage.checkpoint import StoredCheckpoint, StoredCheckpointView
from covector_server.storage.damage import Damage, DamageReporter, OnDamage
from covector_server.storage.erased import erased_row_count
from covector_server.storage.fit_files import FITS, listed_fits
from covector_server.storage.index_files import INDEXES, listed
from covector_server.storage.key_hash import hash_keys
from covector_server.storage.key_table import KeyTable
from covector_server.storage.positions import is_among
from covector_server.storage.postings_files import PostingsFile, PostingsFiles, supplemented_rows
from covector_server.storage.readers import Action, Readers
from covector_server.storage.relocations import Relocations
from covector_server.storage.row_blocks import RowBlocks, Supplements
from covector_server.storage.row_log import RowLog
from covector_server.storage.row_reader import RowReader
from covector_server.storage.shared import Shared
from covector_server.storage.view import Positions, PostingsRange, RowDetails, RowIds

DELETED_RANGE_BITS: Final = 16
NO_ROWS: RowIds = np.empty(0, dtype=np.int64)


def _at_once(action: Action) -> None:
    """Removes files as soon as no reader needs them."""
    action()


class StoredCollection:
    """A collection on disk, as committed. What it holds in memory does not grow with its rows."""

    def __init__(self, record: CollectionRecord, directory: Path, shared: Shared) -> None:
        self.record = record
        self.damages = DamageReporter(record.name, directory.parents[1], shared.damages)
        self.space = Space.from_json(record.space_json)
        self.directory = directory
        self.catalog = shared.catalog
        self.counters = CollectionCounters()
        self.fields: dict[str, str] = {}
        self.log = RowLog(directory / "rows", shared.disk, shared.sizes.log_file_bytes)
        self.keys = KeyTable(directory / "keys", shared.disk, shared.sizes.recent_keys)
        self.supplements = Supplements()
        self.postings = PostingsFiles(directory / "postings", shared.disk, shared.postings)
        self.relocations = Relocations()
        self.deleted = NO_ROWS  # sorted ids of deleted rows; replaced whole
        self.erased_row_count = 0  # of those, how many are in no file any more
        self.checkpoints: dict[str, StoredCheckpoint] = {}
        self.fault: Corrupt | Unavailable | None = None  # why it may not be read
        self.read_only: Unavailable | None = None  # why it may not be written
        self.changing = threading.Lock()  # held while the committed state changes, and while a view is taken
        self._shared = shared
        self.readers = Readers()
        self.remove_when: Callable[[Action], None] = _at_once  # when removing files is let through, besides readers

    @property
    def row_count(self) -> int:
        """Live rows, with or without gradients."""
        return self.counters.next_row_id - len(self.deleted)

    def load(self, reader: Reader) -> None:
        """Reads what the catalog says and derives the rest. A damaged collection stays closed and says why."""
        try:
            self._load(reader, number(self.record.id))
        except (Corrupt, OSError) as error:
            self.fault = Corrupt(f"collection {self.record.name!r} cannot be opened: {error}")
            facts = error.facts if isinstance(error, Corrupt) else {}
            damage = Damage(facts.get("checkpoint", ""), facts.get("path", str(self.directory)), str(error), 0)
            self.damages.meet(damage, on_damage=lambda _: None)

    def _load(self, reader: Reader, id_: bytes) -> None:
        self.counters = CollectionCounters.decode(reader.get("collection_counters", id_) or b"{}")
        self.fields = {key[8:].decode(): value.decode() for key, value in reader.scan("fields", id_)}
        self.supplements = Supplements.load(reader, self.record.id)
        self.deleted = deleted_rows(reader, self.record.id)
        self.erased_row_count = erased_row_count(reader, self.record.id)
        replay = self.rows().keys_between
        self.keys.load(reader, self.record.id, self.counters.next_row_id, replay)
        self.postings.load(reader, self.record.id)
        for key, value in reader.scan("checkpoints", id_):
            self._load_checkpoint(reader, key, CheckpointRecord.decode(value))

    def is_current(self, checkpoint: StoredCheckpoint) -> bool:
        """Whether a checkpoint is the one that is committed, not a generation before it."""
        return self.checkpoints.get(checkpoint.record.name) is checkpoint

    def rows(
        self,
        pending: Sequence[BlockRecord] = (),
        pending_supplements: Sequence[BlockRecord] = (),
        epoch: int | None = None,
    ) -> RowReader:
        """Reads rows as they stand now: those committed, and those of ``pending`` blocks that are not yet. ``epoch``:
        that of a reader who goes on to read them as they stand now, whatever is moved or erased later."""
        known = self.supplements  # replaced whole where its blocks are moved
        count = len(known.records)

        def supplements(low: int, high: int) -> list[BlockRecord]:
            committed = known.overlapping(low, high, count)
            return committed + [one for one in pending_supplements if one.first <= high and one.last >= low]

        blocks = RowBlocks(self.catalog, self.record.id, pending)
        if epoch is not None:
            blocks = replace(blocks, place_of=self.relocations.seen_from(epoch))
        return RowReader(self.log, blocks, supplements, self.damages)

    def checkpoint_at(self, record: CheckpointRecord) -> StoredCheckpoint:
        """The checkpoint of a record, on its place on disk; not part of the collection yet."""
        directory = self.directory / str(record.id) / str(record.generation)
        return StoredCheckpoint(
            record,
            directory,
            self.space.dim,
            lambda path, layout: ZarrArray(path, layout, self._shared.disk, self._shared.shards),
        )

    @contextmanager
    def reading(self) -> Iterator[StoredCollectionView]:
        """What is committed now, its files kept until the block ends. Raises Corrupt if the collection is damaged."""
        with self.readers.reading() as epoch:
            yield self._view(epoch)

    def retire(self, reason: Unavailable) -> None:
        """Refuses readers and writers from now on; the files go with the last reader."""
        self.fault = self.read_only = reason

        def remove() -> None:
            self.close()
            self._shared.disk.remove_tree(self.directory)

        self.remove_later(remove)

    def remove_later(self, action: Action) -> None:
        """Has files removed that no committed state names any more: after the last reader that began before."""
        self.readers.retire(lambda: self.remove_when(action))

    def _view(self, epoch: int) -> StoredCollectionView:
        if self.fault is not None:
            raise self.fault.with_traceback(None)  # or every reader's frames would stay with it
        with self.changing:
            checkpoints = {name: checkpoint.view(self.damages) for name, checkpoint in self.checkpoints.items()}
            return StoredCollectionView(
                self,
                self.counters.next_row_id,
                self.deleted,
                len(self.supplements.records),
                self.rows(epoch=epoch),
                dict(self.fields),
                checkpoints,
                self.postings.files,
            )

    def close(self) -> None:
        """Closes the files. Views that are still held stay readable."""
        self.log.close()
        for checkpoint in self.checkpoints.values():
            checkpoint.close()

    def _load_checkpoint(self, reader: Reader, key: bytes, record: CheckpointRecord) -> None:
        checkpoint = self.checkpoint_at(record)
        counters = CheckpointCounters.decode(reader.get("checkpoint_counters", key) or b"{}")
        checkpoint.load(counters, dead_positions(reader, key, record.shard_rows))
        self.checkpoints[record.name] = checkpoint


@dataclass(frozen=True, slots=True)
class StoredIndex:
    """``view.ListedIndex`` on files."""

    record: IndexRecord
    directory: Path
    damages: DamageReporter

    def report(self, message: str) -> None:
        """Remembers that its files are damaged: no row is, but queries go without the index."""
        self.damages.meet(Damage("", str(self.directory), message, 0), on_damage=lambda _: None)


@dataclass(frozen=True, slots=True)
class StoredFit:
    """``view.ListedFit`` on files."""

    record: FitRecord
    root: Path
    damages: DamageReporter

    def report(self, message: str) -> None:
        """Remembers that its files are damaged: no row is."""
        self.damages.meet(Damage("", str(self.root), message, 0), on_damage=lambda _: None)


@dataclass(frozen=True, slots=True)
class StoredCollectionView:
    """``view.CollectionView`` on files. ``deleted``: sorted ids of deleted rows."""

    collection: StoredCollection
    row_id_count: int
    deleted: RowIds
    supplement_count: int
    rows: RowReader
    fields: Mapping[str, str]
    checkpoints: Mapping[str, StoredCheckpointView]
    postings_files: tuple[PostingsFile, ...] = ()

    @property
    def name(self) -> str:
        return self.collection.record.name

    @property
    def space(self) -> Space:
        return self.collection.space

    @property
    def row_count(self) -> int:
        return self.row_id_count - len(self.deleted)

    def row_ids_of(self, keys: Sequence[bytes]) -> RowIds:
        """The ids of encoded keys, -1 for an unknown or deleted one."""
        column = column_of(keys)
        found = self.collection.keys.find(column, hash_keys(column), self.row_id_count, self.rows.keys_of)
        return np.where(is_among(self.deleted, found), -1, found)

    def keys_of(self, row_ids: RowIds, on_damage: OnDamage | None = None) -> list[bytes]:
        """The encoded keys of rows, in this order."""
        return self.rows.keys_of(row_ids, on_damage)

    def details_of(self, row_ids: RowIds, on_damage: OnDamage | None = None) -> list[RowDetails]:
        """Key, text and metadata of rows, in this order."""
        return self.rows.details_of(row_ids, on_damage)

    def metadata(
        self, row_id_range: tuple[int, int] | None = None, on_damage: OnDamage | None = None
    ) -> Iterator[tuple[int, list[dict[str, Any] | None]]]:
        """The metadata of all rows, the deleted included, or of a range, in order of row id, block by block."""
        low, high = row_id_range or (0, self.row_id_count)
        return self.rows.metadata(low, min(high, self.row_id_count), on_damage)

    def postings(self) -> Sequence[PostingsRange]:
        """The indexes of metadata, by first row."""
        return self.postings_files

    def supplemented(self, ranges: Sequence[PostingsRange]) -> RowIds:
        """The rows of these ranges whose metadata came after the range was indexed."""
        return supplemented_rows(self.collection.log, self.supplements, ranges)

    def listed_indexes(self) -> Sequence[StoredIndex]:
        """The indexes listed now, by this process or another."""
        collection = self.collection
        with collection.catalog.read() as reader:
            records = listed(reader, collection.record.id)
        root = collection.directory / INDEXES
        return [StoredIndex(record, root / record.directory, collection.damages) for record in records]

    def listed_fits(self) -> Sequence[StoredFit]:
        """The fits listed now, by this process or another."""
        collection = self.collection
        with collection.catalog.read() as reader:
            records = listed_fits(reader, collection.record.id)
        return [StoredFit(record, collection.directory / FITS, collection.damages) for record in records]

    @property
    def supplements(self) -> Sequence[BlockRecord]:
        """Where the supplements lie, in order of arrival."""
        return self.collection.supplements.records[: self.supplement_count]


def deleted_rows(reader: Reader, collection_id: int) -> RowIds:
    """The sorted ids of a collection's deleted rows."""
    runs = [
        np.frombuffer(value, "<u2").astype(np.int64) + (numbers(key)[1] << DELETED_RANGE_BITS)
        for key, value in reader.scan("deleted_rows", number(collection_id))
    ]
    return np.concatenate(runs) if runs else NO_ROWS


def dead_positions(reader: Reader, key: bytes, shard_rows: int) -> Positions:
    """The sorted dead positions of the checkpoint under ``key``."""
    dead = [
        np.frombuffer(value, "<u4").astype(np.int64) + numbers(entry)[2] * shard_rows
        for entry, value in reader.scan("tombstones", key)
    ]
    return np.concatenate(dead) if dead else NO_ROWS


def deleted_by_range(deleted: RowIds, ranges: RowIds) -> Iterator[tuple[int, bytes]]:
    """The stored form of sorted ids of deleted rows, for some ranges of row ids: (range, uint16 offsets in it)."""
    for number_ in ranges.tolist():
        low, high = np.searchsorted(deleted, (number_ << DELETED_RANGE_BITS, (number_ + 1) << DELETED_RANGE_BITS))
        yield number_, (deleted[low:high] - (number_ << DELETED_RANGE_BITS)).astype("<u2").tobytes()


def positions_by_shard(dead: Positions, shard_rows: int) -> Iterator[tuple[int, bytes]]:
    """The stored form of dead positions: (shard, uint32 positions in it)."""
    shards = dead // shard_rows
    for shard in np.unique(shards):
        yield int(shard), (dead[shards == shard] - shard * shard_rows).astype("<u4").tobytes()
