"""A collection on disk: its rows, its checkpoints, and the view that readers take of both.

The key table and the positions are derived: they are read from the row log and the row_ids arrays when the collection
is opened, and follow the commits from then on. What is committed is changed by the committer's thread alone.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from covector.errors import Corrupt, Unavailable
from covector.types import Space
from covector_server.metadata.catalog import Reader, number, numbers
from covector_server.metadata.records import (
    BlockRecord,
    CheckpointCounters,
    CheckpointRecord,
    CollectionCounters,
    CollectionRecord,
)
from covector_server.storage.checkpoint import MakeArray, StoredCheckpoint, StoredCheckpointView
from covector_server.storage.damage import Damage, DamageLog, DamageReporter, OnDamage
from covector_server.storage.disk import Disk
from covector_server.storage.row_log import NEW, RowLog
from covector_server.storage.row_reader import RowBlocks, RowReader
from covector_server.storage.view import Positions, RowDetails, RowIds


class StoredCollection:
    """A collection on disk, as committed."""

    def __init__(
        self, record: CollectionRecord, directory: Path, disk: Disk, make_array: MakeArray, damages: DamageLog
    ) -> None:
        self.record = record
        self.damages = DamageReporter(record.name, directory.parents[1], damages)
        self.space = Space.from_json(record.space_json)
        self.directory = directory
        self.counters = CollectionCounters()
        self.fields: dict[str, str] = {}
        self.row_ids: dict[bytes, int] = {}  # encoded key -> row id
        self.blocks = RowBlocks()
        self.log = RowLog(directory / "rows", disk)
        self.checkpoints: dict[str, StoredCheckpoint] = {}
        self.fault: Corrupt | Unavailable | None = None  # why it may not be read
        self.read_only: Unavailable | None = None  # why it may not be written
        self.changing = threading.Lock()  # held while the committed state changes, and while a view is taken
        self._make_array = make_array
        self._reader_count = 0
        self._retired = False
        self._counting = threading.Lock()

    def load(self, reader: Reader) -> None:
        """Reads what the catalog says and derives the rest. A damaged collection stays closed and says why."""
        try:
            self._load(reader, number(self.record.id))
        except (Corrupt, OSError) as error:
            self.fault = Corrupt(f"collection {self.record.name!r} cannot be opened: {error}")
            path = getattr(error, "path", None) or self.directory
            self.damages.meet(Damage("", str(path), self.fault.message, 0), on_damage=lambda _: None)

    def _load(self, reader: Reader, id_: bytes) -> None:
        self.counters = CollectionCounters.decode(reader.get("collection_counters", id_) or b"{}")
        self.fields = {key[8:].decode(): value.decode() for key, value in reader.scan("fields", id_)}
        for key, value in reader.scan("row_blocks", id_):
            blocks = self.blocks.new if numbers(key)[1] == NEW else self.blocks.supplements
            blocks.append(BlockRecord.decode(value))
        self._load_keys()
        for key, value in reader.scan("checkpoints", id_):
            self._load_checkpoint(reader, key, CheckpointRecord.decode(value))

    def checkpoint_at(self, record: CheckpointRecord) -> StoredCheckpoint:
        """The checkpoint of a record, on its place on disk; not part of the collection yet."""
        directory = self.directory / str(record.id) / str(record.generation)
        return StoredCheckpoint(record, directory, self.space.dim, self._make_array)

    @contextmanager
    def reading(self) -> Iterator[StoredCollectionView]:
        """What is committed now, its files kept until the block ends. Raises Corrupt if the collection is damaged."""
        with self._counting:
            self._reader_count += 1
        try:
            yield self._view()
        finally:
            with self._counting:
                self._reader_count -= 1
            self._remove_if_unused()

    def retire(self, reason: Unavailable) -> None:
        """Refuses readers and writers from now on; the files go with the last reader."""
        self.fault = self.read_only = reason
        self._retired = True
        self._remove_if_unused()

    def _remove_if_unused(self) -> None:
        with self._counting:
            if self._retired and self._reader_count == 0:
                self.close()
                shutil.rmtree(self.directory, ignore_errors=True)

    def _view(self) -> StoredCollectionView:
        if self.fault is not None:
            raise self.fault.with_traceback(None)  # or every reader's frames would stay with it
        with self.changing:
            checkpoints = {name: checkpoint.view(self.damages) for name, checkpoint in self.checkpoints.items()}
            supplement_count = len(self.blocks.supplements)
            return StoredCollectionView(
                self, self.counters.next_row_id, supplement_count, dict(self.fields), checkpoints
            )

    def close(self) -> None:
        """Closes the files. Views that are still held stay readable."""
        self.log.close()
        for checkpoint in self.checkpoints.values():
            checkpoint.close()

    def _load_keys(self) -> None:
        for record in self.blocks.new:
            bad: dict[str, str] = {}  # a damaged text is no reason to stay closed
            keys = self.log.read(record, bad).keys
            if keys is None or len(keys) != record.row_count:
                reason = bad.get("keys", "there are too few")
                raise Corrupt(f"keys of rows with ids {record.first} to {record.last} cannot be read: {reason}")
            self.row_ids.update(zip(keys.values(), range(record.first, record.last + 1), strict=True))  # type: ignore[arg-type]

    def _load_checkpoint(self, reader: Reader, key: bytes, record: CheckpointRecord) -> None:
        checkpoint = self.checkpoint_at(record)
        counters = CheckpointCounters.decode(reader.get("checkpoint_counters", key) or b"{}")
        dead = [
            np.frombuffer(value, "<u4").astype(np.int64) + numbers(entry)[2] * record.shard_rows
            for entry, value in reader.scan("tombstones", key)
        ]
        checkpoint.load(counters, np.concatenate(dead) if dead else np.empty(0, dtype=np.int64))
        self.checkpoints[record.name] = checkpoint


@dataclass(frozen=True, slots=True)
class StoredCollectionView:
    """``view.CollectionView`` on files."""

    collection: StoredCollection
    row_id_count: int
    supplement_count: int
    fields: Mapping[str, str]
    checkpoints: Mapping[str, StoredCheckpointView]

    @property
    def name(self) -> str:
        return self.collection.record.name

    @property
    def space(self) -> Space:
        return self.collection.space

    @property
    def row_count(self) -> int:
        return self.row_id_count

    def row_ids_of(self, keys: Sequence[bytes]) -> RowIds:
        """The ids of encoded keys, -1 for an unknown one."""
        known = self.collection.row_ids
        found = np.fromiter((known.get(key, -1) for key in keys), dtype=np.int64, count=len(keys))
        found[found >= self.row_id_count] = -1
        return found

    def keys_of(self, row_ids: RowIds, on_damage: OnDamage | None = None) -> list[bytes]:
        """The encoded keys of rows, in this order."""
        return self._rows().keys_of(row_ids, on_damage)

    def details_of(self, row_ids: RowIds, on_damage: OnDamage | None = None) -> list[RowDetails]:
        """Key, text and metadata of rows, in this order."""
        return self._rows().details_of(row_ids, on_damage)

    def metadata(self, on_damage: OnDamage | None = None) -> Iterator[tuple[int, list[dict[str, Any] | None]]]:
        """The metadata of all rows in order of row id, block by block."""
        return self._rows().metadata(on_damage)

    def _rows(self) -> RowReader:
        collection = self.collection
        return RowReader(
            collection.log, collection.blocks, self.row_id_count, self.supplement_count, collection.damages
        )


def positions_by_shard(dead: Positions, shard_rows: int) -> Iterator[tuple[int, bytes]]:
    """The stored form of dead positions: (shard, uint32 positions in it)."""
    shards = dead // shard_rows
    for shard in np.unique(shards):
        yield int(shard), (dead[shards == shard] - shard * shard_rows).astype("<u4").tobytes()
