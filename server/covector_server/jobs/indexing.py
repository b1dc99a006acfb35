"""Indexes of an open store: built as operations, listed, dropped, and swept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from covector.errors import Conflict, NotFound, near_matches
from covector_server.fit.cache import FitCache
from covector_server.index.contract import Spec
from covector_server.ingest.committer import Committer
from covector_server.jobs.index_building import ATTEMPTS, Place, build_index, check_spec, summary
from covector_server.jobs.index_carrying import Forget, forget_nothing, retire_directory
from covector_server.jobs.index_rules import check_fit, rule_of
from covector_server.jobs.operations import Operations, Progress
from covector_server.jobs.sweeping import Sweeper
from covector_server.limits import Limits
from covector_server.metadata.catalog import Writer
from covector_server.metadata.records import IndexRecord, OperationRecord
from covector_server.query.checkpoints import find_checkpoint
from covector_server.storage.checkpoint import StoredCheckpointView
from covector_server.storage.collection import StoredCollection
from covector_server.storage.index_files import (
    Moved,
    list_index,
    listed,
    remove_index,
    remove_unlisted,
    unlisted,
)
from covector_server.storage.store import Store


@dataclass(frozen=True, slots=True)
class IndexStatus:
    """An index, the names of its checkpoints, and how many of their live rows it does not cover yet."""

    record: IndexRecord
    checkpoints: list[str]
    fresh_row_count: int


class Indexer:
    """The indexes of one store. Safe to use from any thread but the committer's."""

    def __init__(
        self,
        store: Store,
        committer: Committer,
        operations: Operations,
        limits: Limits,
        *,
        fits: FitCache | None = None,
        forget: Forget = forget_nothing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fits = fits or FitCache(limits.fit_cache_bytes)
        self._store = store
        self._committer = committer
        self._operations = operations
        self._limits = limits
        self._forget = forget
        self._sweeper = Sweeper(store, unlisted, remove_unlisted, forget, clock)

    def start(self, name: str, checkpoint: str, spec: Spec, request_id: str = "") -> OperationRecord:
        """Starts a build; the same request id again returns the operation it started. ``checkpoint`` may be empty if
        there is only one. A scorer that learns is meant by its fit as it is now. Raises NotFound and InvalidInput for
        what cannot be built."""
        collection = self._store.collection(name)
        with collection.reading() as view:
            checkpoint = find_checkpoint(view, checkpoint).name
            spec = check_fit(view, checkpoint, spec, self._fits, lambda: None)
        check_spec(spec, collection.space.dim)

        def work(progress: Progress) -> dict[str, Any]:
            for _ in range(ATTEMPTS):
                try:
                    return summary(self._build(collection, checkpoint, spec, progress), checkpoint)
                except Moved:
                    continue
            raise Conflict(f"checkpoint {checkpoint!r} was compacted {ATTEMPTS} times while it was indexed; try again")

        return self._operations.start("index", name, work, request_id)

    def indexes(self, name: str) -> list[IndexStatus]:
        """The indexes of a collection, oldest first."""
        collection = self._store.collection(name)
        by_id = {checkpoint.record.id: checkpoint for checkpoint in list(collection.checkpoints.values())}
        found = []
        for record in sorted(self._listed(collection), key=lambda record: record.built_at_s):
            covered = [(by_id[part.checkpoint_id], part) for part in record.covered if part.checkpoint_id in by_id]
            fresh = sum(
                checkpoint.view(collection.damages).since(part.row_count).row_count for checkpoint, part in covered
            )
            found.append(IndexStatus(record, [checkpoint.record.name for checkpoint, _ in covered], fresh))
        return found

    def drop(self, name: str, index_id: str) -> None:
        """Takes an index off the list, durably; its files go with their last reader. Raises NotFound."""
        collection = self._store.collection(name)

        def drop() -> str:
            with self._store.catalog.write() as writer:
                directory = drop_listed(writer, collection.record.id, index_id)
            self._store.disk.step("index.dropped")
            return directory

        retire_directory(self._store, collection, self._committer.call(drop).result(), self._forget)

    def step(self) -> bool:
        """As ``Sweeper.step``."""
        return self._sweeper.step()

    def _build(self, collection: StoredCollection, name: str, spec: Spec, progress: Progress) -> IndexRecord:
        with collection.reading() as view:
            checkpoint = view.checkpoints[name]

            def report(done: int, total: int) -> None:
                progress.report(done, total)
                check_current(collection, checkpoint)

            place = Place(collection.directory, collection.space.dim, self._store.disk)
            rule = rule_of(view, checkpoint, spec, self._fits, lambda: report(0, 0))
            return build_index(place, checkpoint, rule, report, lambda record: self._list(collection, record))

    def _list(self, collection: StoredCollection, record: IndexRecord) -> None:
        def work() -> list[IndexRecord]:
            with self._store.catalog.write() as writer:
                replaced = list_index(writer, collection.record.id, record, self._limits.indexes)
                self._store.disk.step("index.registered")
            return replaced

        for replaced in self._committer.call(work).result():
            retire_directory(self._store, collection, replaced.directory, self._forget)

    def _listed(self, collection: StoredCollection) -> list[IndexRecord]:
        with self._store.catalog.read() as reader:
            return listed(reader, collection.record.id)


def drop_listed(writer: Writer, collection_id: int, index_id: str) -> str:
    """Takes an index off the list, and returns its directory. Raises NotFound."""
    known = {record.id: record for record in listed(writer, collection_id)}
    if index_id not in known:
        raise NotFound(f"no index {index_id!r}; {near_matches(index_id, known)}", index=index_id)
    remove_index(writer, collection_id, index_id)
    return known[index_id].directory


def check_current(collection: StoredCollection, checkpoint: StoredCheckpointView) -> None:
    """Raises Moved if a checkpoint has another generation by now, and why the collection may not be read."""
    if collection.fault is not None:
        raise collection.fault
    standing = collection.checkpoints.get(checkpoint.name)
    if standing is None or standing.record.generation != checkpoint.generation:
        raise Moved(f"checkpoint {checkpoint.name!r} was compacted while it was indexed")
