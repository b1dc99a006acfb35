"""Snapshots: the whole store as of one commit, below ``snapshots/<name>/``, made while ingest goes on.

1. pin, so that no file goes; 2. copy the catalog: this is the moment the snapshot is of; 3. read in the copy which
files there were and how far; 4. link what is finished, copy the rest; 5. sync everything; 6. rename. Until then it lies
in ``.<name>.partial``, and what a crash leaves of that goes at the next start. ``docs/design/010-snapshots.md`` says
why this order holds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from covector.errors import AlreadyExists, NotFound, Unavailable, near_matches
from covector_server.metadata.records import Record
from covector_server.storage.snapshot_files import CATALOG, CopiedCatalog, FilesCopier, Report, open_copy
from covector_server.storage.space import FreeSpace
from covector_server.storage.store import SNAPSHOT_FILE, Store

SNAPSHOTS = "snapshots"
_PARTIAL, _DELETED = "partial", "deleted"
_PIN_ATTEMPTS = 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SnapshotRecord(Record):
    """What ``snapshot.json`` says. ``collections``: id, name, row_id_count and row_count of each."""

    name: str
    created_at_s: int = 0
    row_count: int = 0
    size_bytes: int = 0
    format_version: int = 0
    collections: list[dict[str, Any]] = field(default_factory=list)


def _no_report(done_bytes: int, total_bytes: int) -> None:
    """What hears of the progress when nobody asks."""


class Snapshots:
    """The snapshots of an open store. Safe to use from any thread but the committer's, which must not wait."""

    def __init__(self, store: Store, space: FreeSpace | None = None) -> None:
        self._store = store
        self._disk = store.disk
        self._space = space or FreeSpace(store.data, 0)
        self._directory = store.data / SNAPSHOTS
        self._reserved: set[str] = set()
        self._reserving = threading.Lock()
        self._deleting = threading.Lock()
        self._remove_leftovers()

    def path(self, name: str) -> Path:
        """Where a snapshot lies."""
        return self._directory / name

    def records(self) -> list[SnapshotRecord]:
        """All snapshots, by name. One whose description is damaged is listed by its name alone."""
        if not self._directory.is_dir():
            return []
        return [_read_or_named(path) for path in sorted(self._directory.iterdir()) if not path.name.startswith(".")]

    def holding(self, collection_id: int, row_id: int) -> list[str]:
        """The snapshots made when a collection had a row with this id, which hold it even after it is erased here."""
        return [
            record.name
            for record in self.records()
            for collection in record.collections
            if collection["id"] == collection_id and collection["row_id_count"] > row_id
        ]

    def reserve(self, name: str) -> None:
        """Takes a name for ``create``, so that only one makes it. Raises AlreadyExists."""
        with self._reserving:
            if name in self._reserved or self.path(name).exists():
                raise AlreadyExists(f"snapshot {name!r} exists; choose another name, or delete it first", snapshot=name)
            self._reserved.add(name)

    def release(self, name: str) -> None:
        """Gives a reserved name back."""
        with self._reserving:
            self._reserved.discard(name)

    def create(self, name: str, report: Report = _no_report) -> SnapshotRecord:
        """Makes the snapshot of a reserved name, durably and whole, or leaves nothing. ``report`` may raise to stop it.
        Raises Corrupt if the store lacks bytes it should have, Unavailable if there is no room."""
        partial = self._hidden(name, _PARTIAL)
        try:
            self._disk.make_directories(self._directory)
            self._disk.remove_tree(partial)
            with self._pinned(partial, report) as catalog:
                record = self._fill(name, partial, catalog, report)
            self._disk.rename(partial, self.path(name))
            self._disk.sync_directory(self._directory)
            self._disk.step("snapshot.renamed")
        except OSError as error:
            self._drop(partial)
            raise Unavailable(
                f"snapshot {name!r} could not be written ({error}); free space, then try again"
            ) from error
        except BaseException:
            self._drop(partial)
            raise
        return record

    def delete(self, name: str) -> None:
        """Deletes a snapshot, durably. Files that it shares with the store stay the store's. Raises NotFound."""
        with self._deleting:
            if not self.path(name).is_dir():
                names = [record.name for record in self.records()]
                raise NotFound(f"no snapshot {name!r}; {near_matches(name, names)}", snapshot=name)
            deleted = self._hidden(name, _DELETED)
            self._disk.remove_tree(deleted)
            self._disk.rename(self.path(name), deleted)
            self._disk.sync_directory(self._directory)
            self._disk.step("snapshot.deleted")
            self._disk.remove_tree(deleted)

    @contextmanager
    def _pinned(self, partial: Path, report: Report) -> Iterator[CopiedCatalog]:
        """A copy of the catalog in ``partial``, every file it names held in place until the block ends."""
        with self._store.pins.pinned(lambda: report(0, 0)), ExitStack() as views:
            held: set[int] = set()
            for _ in range(_PIN_ATTEMPTS):
                report(0, 0)
                self._hold(held, views)
                self._disk.step("snapshot.pinned")
                catalog = self._copy_catalog(partial)
                if all(collection.id in held for collection in catalog.plan.collections):
                    self._disk.step("snapshot.catalog_copied")
                    yield catalog
                    return
            raise Unavailable("collections are made faster than they can be held in place; try again")

    def _hold(self, held: set[int], views: ExitStack) -> None:
        """Takes a view of every collection, so that it cannot be deleted. Raises Corrupt for a damaged one."""
        for collection in self._store.collections():
            if collection.record.id not in held:
                try:
                    views.enter_context(collection.reading())
                except Unavailable:
                    if collection in self._store.collections():
                        raise
                else:
                    held.add(collection.record.id)

    def _copy_catalog(self, partial: Path) -> CopiedCatalog:
        self._disk.remove_tree(partial)
        self._disk.make_directory(partial)
        self._space.check()
        self._store.catalog.copy_to(partial / CATALOG)
        return open_copy(partial / CATALOG, self._disk)

    def _fill(self, name: str, partial: Path, catalog: CopiedCatalog, report: Report) -> SnapshotRecord:
        created_at_s = int(time.time())
        self._space.check(catalog.plan.copied_bytes)
        size_bytes = FilesCopier(self._store.data, partial, self._disk, report).copy(catalog.plan)
        self._disk.step("snapshot.copied")
        record = SnapshotRecord(
            name=name,
            created_at_s=created_at_s,
            row_count=sum(collection.row_count for collection in catalog.plan.collections),
            size_bytes=size_bytes + catalog.size_bytes,
            format_version=catalog.format_version,
            collections=[asdict(collection) for collection in catalog.plan.collections],
        )
        self._disk.replace_json(partial / SNAPSHOT_FILE, asdict(record))
        self._disk.step("snapshot.synced")
        return record

    def _drop(self, partial: Path) -> None:
        with suppress(OSError):  # it goes at the next start
            self._disk.remove_tree(partial)

    def _hidden(self, name: str, why: str) -> Path:
        return self._directory / f".{name}.{why}"

    def _remove_leftovers(self) -> None:
        for why in (_PARTIAL, _DELETED):
            for path in self._directory.glob(f".*.{why}"):
                self._disk.remove_tree(path)


def read_record(snapshot: Path) -> SnapshotRecord:
    """What a snapshot says of itself. Raises OSError, ValueError or TypeError."""
    return SnapshotRecord.decode((snapshot / SNAPSHOT_FILE).read_bytes())


def _read_or_named(snapshot: Path) -> SnapshotRecord:
    try:
        return read_record(snapshot)
    except (OSError, ValueError, TypeError) as error:
        _log.warning("%s cannot be read: %s", snapshot / SNAPSHOT_FILE, error)
        return SnapshotRecord(snapshot.name)
