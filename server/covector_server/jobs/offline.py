"""The collections of a store that another process may have open: read, and listed in by one transaction.

The catalog is opened for a moment at a time; a server that has it open too sees the new list with its next query. The
rows are those committed when work began: committed rows do not change in their place, and if a compaction moves them
meanwhile, the work begins again.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from covector.blocks import encode_key
from covector.errors import Conflict, InvalidInput, NotFound, near_matches
from covector.types import Space
from covector_server.limits import Limits
from covector_server.metadata.catalog import Reader, number
from covector_server.metadata.lmdb_catalog import beside
from covector_server.metadata.records import CheckpointCounters, CheckpointRecord, CollectionRecord
from covector_server.storage.array import ZarrArray
from covector_server.storage.checkpoint import StoredCheckpoint, StoredCheckpointView
from covector_server.storage.collection import StoredFit, dead_positions
from covector_server.storage.damage import DamageLog, DamageReporter, OnDamage
from covector_server.storage.disk import Disk
from covector_server.storage.drafts import Moved
from covector_server.storage.fit_files import FITS, listed_fits
from covector_server.storage.shard_cache import ShardCache
from covector_server.storage.view import Positions, RowIds

LOOK_S = 2.0  # between two looks whether the rows were moved

Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class OfflineFiles:
    """The collections at ``data``, of which another process may be the owner. Raises NotFound for what is not there,
    InvalidInput if ``data`` is no store."""

    data: Path
    disk: Disk
    limits: Limits

    def looking(self, collection_id: int, records: Sequence[CheckpointRecord], report: Report) -> Report:
        """``report``, and now and then a look whether the rows are where they were."""
        look_at_s = time.monotonic() + LOOK_S

        def looking(done: int, total: int) -> None:
            nonlocal look_at_s
            report(done, total)
            if time.monotonic() >= look_at_s:
                for record in records:
                    self.check_current(collection_id, record)
                look_at_s = time.monotonic() + LOOK_S

        return looking

    def check_current(self, collection_id: int, record: CheckpointRecord) -> None:
        with self.catalog() as reader:
            value = reader.get("checkpoints", number(collection_id, record.id))
        if value is None:
            raise Conflict("the collection was deleted meanwhile")
        if CheckpointRecord.decode(value).generation != record.generation:
            raise Moved(f"checkpoint {record.name!r} was compacted meanwhile")

    def remove(self, root: Path, directories: Sequence[str]) -> None:
        """Removes directories below ``root`` that are not listed any more, unless a server may have readers of them."""
        with _owned(self.data) as is_owned:
            for directory in directories if is_owned else ():
                self.disk.remove_tree(root / directory)

    def directory(self, collection: CollectionRecord) -> Path:
        """Where a collection lies."""
        return self.data / "collections" / str(collection.id)

    def view(self, collection: CollectionRecord, found: FoundCheckpoint) -> StoredCheckpointView:
        """The rows of a checkpoint, as they were committed when it was found."""
        record, dim = found.record, Space.from_json(collection.space_json).dim
        stored = StoredCheckpoint(
            record,
            self.directory(collection) / str(record.id) / str(record.generation),
            dim,
            lambda path, layout: ZarrArray(path, layout, self.disk, ShardCache(self.limits.mapped_shards)),
        )
        stored.counters, stored.dead = found.counters, found.dead
        return stored.view(DamageReporter(collection.name, self.data, DamageLog(self.limits.damages)))

    @contextmanager
    def catalog(self) -> Iterator[Reader]:
        with beside(self.path()) as catalog, catalog.read() as reader:
            yield reader

    def path(self) -> Path:
        path = self.data / "catalog.lmdb"
        if not path.exists():
            raise InvalidInput(f"{self.data} is no store: it has no catalog.lmdb", field="data")
        if (self.data / "snapshot.json").exists():
            raise Conflict(f"{self.data} is a snapshot, which stays as it is; restore it first")
        return path


@dataclass(frozen=True, slots=True)
class OfflineState:
    """``fit.serving.FitView`` of a collection."""

    files: OfflineFiles
    collection: CollectionRecord

    @property
    def name(self) -> str:
        return self.collection.name

    def listed_fits(self) -> list[StoredFit]:
        """The fits that are listed now."""
        with self.files.catalog() as reader:
            records = listed_fits(reader, self.collection.id)
        root = self.files.directory(self.collection) / FITS
        log = DamageLog(self.files.limits.damages)
        return [StoredFit(record, root, DamageReporter(self.name, self.files.data, log)) for record in records]

    def keys_of(self, row_ids: RowIds, on_damage: OnDamage | None = None) -> list[bytes]:
        """The numbers of the rows: their keys are the server's to know."""
        return [encode_key(f"number {row_id}") for row_id in row_ids.tolist()]


@contextmanager
def _owned(data: Path) -> Iterator[bool]:
    """Whether no other process has the store open; none opens it while the block runs then."""
    descriptor = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def collection_named(reader: Reader, name: str) -> CollectionRecord:
    """The collection of this name. Raises NotFound."""
    id_ = reader.get("names", name.encode())
    value = None if id_ is None else reader.get("collections", id_)
    if value is None:
        names = [key.decode() for key, _ in reader.scan("names")]
        raise NotFound(f"no collection {name!r}; {near_matches(name, names)}", collection=name)
    return CollectionRecord.decode(value)


@dataclass(frozen=True, slots=True)
class FoundCheckpoint:
    """A checkpoint as the catalog has it."""

    record: CheckpointRecord
    counters: CheckpointCounters
    dead: Positions


def checkpoint_names(reader: Reader, collection: CollectionRecord) -> list[str]:
    """The checkpoints of a collection, in the order they were made."""
    return list(checkpoint_ids(reader, collection).values())


def checkpoint_ids(reader: Reader, collection: CollectionRecord) -> dict[int, str]:
    """Their names by id, in the order they were made."""
    records = [CheckpointRecord.decode(value) for _, value in reader.scan("checkpoints", number(collection.id))]
    return {record.id: record.name for record in records}


def checkpoint_named(reader: Reader, collection: CollectionRecord, name: str) -> FoundCheckpoint:
    """The checkpoint of this name, or the only one for an empty name. Raises NotFound or InvalidInput."""
    entries = list(reader.scan("checkpoints", number(collection.id)))
    known = {record.name: (key, record) for key, record in ((k, CheckpointRecord.decode(v)) for k, v in entries)}
    if not name and len(known) == 1:
        (name,) = known
    if not name and known:
        raise InvalidInput(f"collection {collection.name!r} has several checkpoints; say which: {', '.join(known)}")
    if name not in known:
        raise NotFound(f"no checkpoint {name!r} in {collection.name!r}; {near_matches(name, known)}", checkpoint=name)
    key, record = known[name]
    counters = CheckpointCounters.decode(reader.get("checkpoint_counters", key) or b"{}")
    return FoundCheckpoint(record, counters, dead_positions(reader, key, record.shard_rows))
