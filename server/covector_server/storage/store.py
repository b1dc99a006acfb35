"""A data directory: its lock, its catalog, its collections. Opening it is recovery."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from covector.errors import AlreadyExists, Conflict, Corrupt, CovectorError, NotFound, Unavailable, near_matches
from covector.types import Space
from covector_server.limits import Limits
from covector_server.metadata.catalog import TABLES, Catalog, Writer, number
from covector_server.metadata.lmdb_catalog import LmdbCatalog
from covector_server.metadata.records import FORMAT_VERSION, CollectionRecord, StoreRecord
from covector_server.storage.checkpoint import StoredCheckpoint
from covector_server.storage.collection import StoredCollection
from covector_server.storage.damage import DamageLog
from covector_server.storage.disk import Disk, SyncFailed
from covector_server.storage.key_table import Change as KeyChange
from covector_server.storage.layout import Sizes, rows_for
from covector_server.storage.orphans import remove_orphans
from covector_server.storage.pins import Pins
from covector_server.storage.postings_files import PostingsCache
from covector_server.storage.requests import answered, forget_old, remember
from covector_server.storage.shard_cache import ShardCache
from covector_server.storage.shared import Shared

SNAPSHOT_FILE = "snapshot.json"  # in a directory that is a snapshot of a store
_STORE_KEY = b"store"
__all__ = ["Sizes", "Store"]
_log = logging.getLogger(__name__)


class Store:
    """An open data directory. Everything but ``collection`` and ``collections`` belongs to the committer's thread."""

    def __init__(
        self, data: Path, sizes: Sizes | None = None, disk: Disk | None = None, limits: Limits | None = None
    ) -> None:
        self.data = data
        self._limits = limits = limits or Limits()
        self._remembered_count = 0
        self.sizes = sizes or Sizes()
        self.disk = disk or Disk()
        self.pins = Pins()
        _refuse_snapshot(data)
        self.damages = DamageLog(limits.damages)
        self.shards = ShardCache(limits.mapped_shards)
        self.postings_cache = PostingsCache(limits.postings_cache_bytes)
        self.disk.make_directories(data / "collections")
        self._lock = _lock(data / "lock")
        self.catalog: Catalog = LmdbCatalog(data / "catalog.lmdb")
        self._by_name: dict[str, StoredCollection] = {}
        self._record = self._open_record()
        self._recover()

    @property
    def format_version(self) -> int:
        """The version of the store's format."""
        return self._record.format_version

    def collection(self, name: str) -> StoredCollection:
        """The collection called ``name``. Raises NotFound naming near matches."""
        found = self._by_name.get(name)
        if found is None:
            raise NotFound(f"no collection {name!r}; {near_matches(name, self._by_name)}", collection=name)
        return found

    def collections(self) -> list[StoredCollection]:
        """All collections, by name."""
        return sorted(self._by_name.values(), key=lambda collection: collection.record.name)

    def create_collection(self, name: str, space: Space, exist_ok: bool, request_id: str = "") -> StoredCollection:
        """Makes a collection, durably. Raises AlreadyExists, or Conflict where ``exist_ok`` meets another space. The
        same request sent again has no second effect."""
        standing = self._by_name.get(name)
        if standing is not None:
            return _existing(standing, space, exist_ok or self.answered(request_id) == standing.record.id)
        record = CollectionRecord(self._record.next_collection_id, name, space.json)
        collection = self._at(record)
        shutil.rmtree(collection.directory, ignore_errors=True)  # of an attempt that was not committed
        collection.log.create()
        following = replace(self._record, next_collection_id=record.id + 1)
        with self.catalog.write() as writer:
            writer.put("collections", number(record.id), record.encode())
            writer.put("names", name.encode(), number(record.id))
            writer.put("store", _STORE_KEY, following.encode())
            self.remember(writer, request_id, record.id)
        self._record = following
        self._by_name[name] = collection
        return collection

    def delete_collection(self, name: str, request_id: str = "") -> int:
        """Takes a collection out of the catalog, durably, and returns how many rows it had; its files go when its last
        reader has. The same request sent again has no second effect."""
        answer = self.answered(request_id)
        if answer is not None:
            return answer
        collection = self.collection(name)
        prefix = number(collection.record.id)
        with self.catalog.write() as writer:
            writer.delete("names", name.encode())
            for table in TABLES:
                if table not in ("names", "store", "operations", "requests"):
                    for key in [key for key, _ in writer.scan(table, prefix)]:
                        writer.delete(table, key)
            self.remember(writer, request_id, collection.row_count)
        del self._by_name[name]
        collection.retire(Unavailable(f"collection {name!r} was deleted"))
        return collection.row_count

    def new_checkpoint_rows(self, dim: int) -> tuple[int, int]:
        """(chunk_rows, shard_rows) of a new checkpoint."""
        return rows_for(dim, self.sizes.chunk_bytes, self.sizes.shard_bytes)

    def seal_full_shards(self, collection: StoredCollection, checkpoint: StoredCheckpoint) -> int | None:
        """Seals what is full, and returns how many shards are to be marked sealed; None for none. Raises OSError where
        it may be tried again, as on a full disk; after a failed sync the collection is read-only. May run beside the
        commit thread."""
        if checkpoint.full_shard_count() <= checkpoint.counters.sealed_shard_count:
            return None
        if not collection.is_current(checkpoint):
            return None  # a new generation took its place, with full shards sealed
        try:
            sealed = checkpoint.seal_full_shards()
        except (CovectorError, SyncFailed) as error:
            if not collection.is_current(checkpoint):
                return None  # a new generation took its place, with full shards sealed
            _log.exception("collection %r: a full shard could not be sealed", collection.record.name)
            collection.read_only = Unavailable(
                f"collection {collection.record.name!r} is read-only: a full shard could not be sealed ({error}); "
                "free space or look at the disk, then restart the server",
                final="true",
            )
            return None
        except OSError:
            if not collection.is_current(checkpoint):
                return None
            raise
        self.disk.step("commit.sealed")
        return sealed

    def mark_sealed(self, collection: StoredCollection, checkpoint: StoredCheckpoint, sealed_shard_count: int) -> None:
        """Marks shards sealed, durably."""
        if not collection.is_current(checkpoint):
            return  # a new generation took its place
        counters = replace(checkpoint.counters, sealed_shard_count=sealed_shard_count)
        with self.catalog.write() as writer:
            if writer.get("collections", number(collection.record.id)) is None:
                return  # deleted meanwhile
            writer.put("checkpoint_counters", number(collection.record.id, checkpoint.record.id), counters.encode())
        checkpoint.counters = counters

    def register_keys(self, collection: StoredCollection, change: KeyChange) -> None:
        """Makes a change of the key table count, durably; runs that it replaces are removed."""
        with self.catalog.write() as writer:
            if writer.get("collections", number(collection.record.id)) is None:
                return  # deleted meanwhile
            collection.keys.commit(writer, collection.record.id, change)
        self.disk.step("keys.committed")
        replaced = collection.keys.install(change)
        self.pins.when_unpinned(lambda: _remove(replaced))

    def publish(self, collection: StoredCollection) -> None:
        """Makes every committed row of a collection readable by Zarr tools; what is full is sealed first."""
        self.seal(collection)
        for checkpoint in collection.checkpoints.values():
            if not checkpoint.is_published():
                try:
                    checkpoint.publish()
                except OSError as error:
                    collection.read_only = Unavailable(
                        f"collection {collection.record.name!r} is read-only: its last shard could not be published "
                        f"({error}); look at the disk, then restart the server"
                    )
                    raise collection.read_only from error

    def close(self) -> None:
        """Publishes partial shards and closes the files."""
        for collection in self._by_name.values():
            try:
                if collection.fault is None and collection.read_only is None:
                    self.seal(collection)
                    self.publish(collection)
                    self._flush_keys(collection)
                collection.close()
            except (CovectorError, OSError):
                _log.exception("collection %r could not be published", collection.record.name)
        self.catalog.close()
        os.close(self._lock)

    def seal(self, collection: StoredCollection) -> None:
        """Seals what is full, and marks it; what cannot be sealed now is left for later."""
        try:
            for checkpoint in collection.checkpoints.values():
                sealed = self.seal_full_shards(collection, checkpoint)
                if sealed is not None:
                    self.mark_sealed(collection, checkpoint, sealed)
        except OSError as error:
            _log.warning("collection %r: a full shard is not sealed yet (%s)", collection.record.name, error)

    def _flush_keys(self, collection: StoredCollection) -> None:
        """Leaves few keys to be replayed when the store is opened again."""
        collection.keys.freeze()
        while (change := collection.keys.flush(collection.counters.next_row_id)) is not None:
            self.register_keys(collection, change)

    def answered(self, request_id: str) -> int | None:
        """What was answered to a request that was made before, None if it was not."""
        with self.catalog.read() as reader:
            return answered(reader, request_id)

    def remember(self, writer: Writer, request_id: str, answer: int) -> None:
        """Keeps an answer, and at the first and then every thousandth forgets old ones."""
        now_s = int(time.time())
        remember(writer, request_id, answer, now_s)
        if self._remembered_count % 1000 == 0:
            forget_old(writer, now_s, self._limits)
        self._remembered_count += 1

    def _at(self, record: CollectionRecord) -> StoredCollection:
        directory = self.data / "collections" / str(record.id)
        shared = Shared(self.catalog, self.disk, self.sizes, self.shards, self.postings_cache, self.damages)
        return StoredCollection(record, directory, shared)

    def _open_record(self) -> StoreRecord:
        with self.catalog.read() as reader:
            stored = reader.get("store", _STORE_KEY)
        if stored is None:
            if any((self.data / "collections").iterdir()):
                raise Corrupt(f"{self.data} holds collections but its catalog is empty; restore catalog.lmdb")
            record = StoreRecord()
            with self.catalog.write() as writer:
                writer.put("store", _STORE_KEY, record.encode())
            self.disk.sync_directory(self.data)
            return record
        record = StoreRecord.decode(stored)
        if record.format_version > FORMAT_VERSION:
            raise Conflict(
                f"{self.data} has format {record.format_version}, this program knows up to {FORMAT_VERSION}; "
                "use a newer covector"
            )
        if record.format_version < FORMAT_VERSION:  # what is new in a format has a default
            record = replace(record, format_version=FORMAT_VERSION)
            with self.catalog.write() as writer:
                writer.put("store", _STORE_KEY, record.encode())
        return record

    def _recover(self) -> None:
        with self.catalog.read() as reader:
            for _, value in reader.scan("collections"):
                collection = self._at(CollectionRecord.decode(value))
                collection.load(reader)
                self._by_name[collection.record.name] = collection
        for collection in self._by_name.values():
            if collection.fault is None:
                self.seal(collection)
        self._remove_orphans()

    def _remove_orphans(self) -> None:
        """Removes what a deletion or a compaction left behind when the process ended. Ids not given out yet are left to
        their maker."""
        claimed = {collection.record.id for collection in self._by_name.values()}
        for id_ in range(1, self._record.next_collection_id):
            if id_ not in claimed:
                shutil.rmtree(self.data / "collections" / str(id_), ignore_errors=True)
        for collection in self._by_name.values():
            if collection.fault is None:
                remove_orphans(collection, self.disk)


def _existing(collection: StoredCollection, space: Space, exist_ok: bool) -> StoredCollection:
    name = collection.record.name
    if not exist_ok:
        raise AlreadyExists(f"collection {name!r} exists; choose another name or pass exist_ok=True", collection=name)
    difference = collection.space.difference(space)
    if difference is not None:
        raise Conflict(f"collection {name!r} exists with another space: {difference}", field=difference.split(":")[0])
    return collection


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _refuse_snapshot(data: Path) -> None:
    """A snapshot shares files with the store it is of, and must stay what it is."""
    if (data / SNAPSHOT_FILE).exists():
        raise Conflict(
            f"{data} is a snapshot and takes no rows; restore it first: covector snapshot restore {data} --to NEWDIR"
        )


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise Unavailable(f"{path.parent} is open in another covector process; stop it first") from error
    return descriptor
