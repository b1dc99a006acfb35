"""Fits of an open store: learnt as operations, listed, dropped, and swept."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from covector.errors import Conflict, CovectorError, InvalidInput
from covector_server.fit.columns import check_q, fresh_q
from covector_server.fit.spec import FitSpec
from covector_server.ingest.committer import Committer
from covector_server.jobs.fit_building import (
    ATTEMPTS,
    FitBuild,
    FitPlace,
    Report,
    lost_count,
    plan_facts,
    plans_of,
    summary,
)
from covector_server.jobs.index_carrying import Forget, forget_nothing, retire_directory
from covector_server.jobs.indexing import check_current
from covector_server.jobs.operations import Operations, Progress
from covector_server.jobs.sweeping import Sweeper
from covector_server.limits import Limits
from covector_server.metadata.records import FitRecord, IndexRecord, OperationRecord
from covector_server.query.checkpoints import find_checkpoint
from covector_server.storage.checkpoint import StoredCheckpointView
from covector_server.storage.collection import StoredCollection
from covector_server.storage.drafts import Moved
from covector_server.storage.fit_files import (
    FITS,
    advance_fit,
    drop_fit,
    listed_fits,
    remove_unlisted_fits,
    unlisted_fits,
)
from covector_server.storage.index_files import remove_fitless
from covector_server.storage.store import Store
from covector_server.storage.view import CollectionView


@dataclass(frozen=True, slots=True)
class FitStatus:
    """A fit, with how many live rows of its checkpoints it has not learnt from, and how many that it has learnt from
    are there no more."""

    record: FitRecord
    fresh_row_count: int
    lost_row_count: int


@dataclass(frozen=True, slots=True)
class Retired:
    """What is not listed any more: directories below ``fits/``, and the indexes of fits."""

    fits: list[str]
    indexes: list[IndexRecord]


class Fitter:
    """The fits of one store. Safe to use from any thread but the committer's. ``memory_bytes_max``: of one fit."""

    def __init__(
        self,
        store: Store,
        committer: Committer,
        operations: Operations,
        limits: Limits,
        memory_bytes_max: int,
        *,
        forget: Forget = forget_nothing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._committer = committer
        self._operations = operations
        self._limits = limits
        self._memory_bytes_max = memory_bytes_max
        self._forget = forget
        self._sweeper = Sweeper(store, unlisted_fits, remove_unlisted_fits, forget, clock)
        self._running: dict[str, str] = {}  # operation by what is asked of it
        self._changing = threading.Lock()

    def start(self, name: str, spec: FitSpec, request_id: str = "") -> OperationRecord:
        """Starts a fit, of all checkpoints if it names none; the same request again returns the operation it started,
        and so does one for the same fit while it runs. Raises NotFound, InvalidInput and LimitExceeded for what cannot
        be learnt: memory is checked before anything is read."""
        if request_id and self._operations.knows(request_id):
            return self._operations.get(request_id)
        collection = self._store.collection(name)
        with collection.reading() as view:
            views = _views(view, spec.checkpoints)
            place = self._place(collection, view)
            facts = plan_facts(place, views, plans_of(place, spec, views))
        names = [checkpoint.name for checkpoint in views]
        asked = json.dumps([name, spec.parameters(names)], sort_keys=True)
        with self._changing:
            if asked in self._running:
                return self._operations.get(self._running[asked])
            work = lambda progress: self._run(collection, names, spec, progress, asked)  # noqa: E731
            record = self._operations.start("fit", name, work, request_id, metadata=facts)
            self._running[asked] = record.id
        return record

    def fits(self, name: str) -> list[FitStatus]:
        """The fits of a collection, oldest first, those on their way included."""
        collection = self._store.collection(name)
        by_id = {one.record.id: one for one in list(collection.checkpoints.values())}
        found = []
        for record in sorted(_Ledger(self, collection).listed(), key=lambda record: record.started_at_s):
            covered = [(by_id[part.checkpoint_id], part) for part in record.covered if part.checkpoint_id in by_id]
            fresh = sum(one.view(collection.damages).since(part.row_count).row_count for one, part in covered)
            lost = sum(lost_count(part, one.dead) for one, part in covered)
            found.append(FitStatus(record, fresh, lost))
        return found

    def drop(self, name: str, fit_id: str) -> None:
        """Takes a fit and its indexes off the list, durably; files go with their last reader. Raises NotFound."""
        collection = self._store.collection(name)

        def drop() -> Retired:
            with self._store.catalog.write() as writer:
                directories = drop_fit(writer, collection.record.id, fit_id)
                retired = Retired(directories, remove_fitless(writer, collection.record.id))
            self._store.disk.step("fit.dropped")
            return retired

        self._retire(collection, self._committer.call(drop).result())

    def _retire(self, collection: StoredCollection, retired: Retired) -> None:
        for directory in retired.fits:
            retire_fit_directory(self._store, collection, directory, self._forget)
        for index in retired.indexes:
            retire_directory(self._store, collection, index.directory, self._forget)

    def step(self) -> bool:
        """As ``Sweeper.step``."""
        return self._sweeper.step()

    def _run(
        self, collection: StoredCollection, names: Sequence[str], spec: FitSpec, progress: Progress, asked: str
    ) -> dict[str, Any]:
        try:
            for _ in range(ATTEMPTS):
                try:
                    return self._build(collection, names, spec, progress)
                except Moved:
                    continue
            raise Conflict(
                f"rows of {', '.join(map(repr, names))} were compacted {ATTEMPTS} times meanwhile; try again"
            )
        finally:
            with self._changing:
                self._running.pop(asked, None)

    def _build(
        self, collection: StoredCollection, names: Sequence[str], spec: FitSpec, progress: Progress
    ) -> dict[str, Any]:
        with collection.reading() as view:
            views = _views(view, names)

            def report(done: int, total: int) -> None:
                progress.report(done, total)
                for checkpoint in views:
                    check_current(collection, checkpoint)

            if spec.method == "trak":
                _check_q(view, views, report)
            build = FitBuild(self._place(collection, view), spec, _Ledger(self, collection), report)
            return summary(*build.run(views))

    def _place(self, collection: StoredCollection, view: CollectionView) -> FitPlace:
        return FitPlace(
            collection_directory=collection.directory,
            space=collection.space,
            row_id_count=view.row_id_count,
            disk=self._store.disk,
            save_s=self._limits.fit_save_s,
            memory_bytes_max=self._memory_bytes_max,
        )

    def advance(
        self, collection: StoredCollection, record: FitRecord, before: FitRecord | None, generations: Mapping[int, int]
    ) -> None:
        """``Ledger.advance`` of a collection. The indexes of a fit that is replaced go with it."""

        def work() -> Retired:
            with self._store.catalog.write() as writer:
                gone = advance_fit(
                    writer,
                    collection.record.id,
                    record,
                    before,
                    generations=generations,
                    fits_max=self._limits.fits,
                )
                retired = Retired(gone, remove_fitless(writer, collection.record.id))
                self._store.disk.step("fit.registered")
            return retired

        self._retire(collection, self._committer.call(work).result())

    def listed(self, collection: StoredCollection) -> list[FitRecord]:
        """``Ledger.listed`` of a collection."""
        with self._store.catalog.read() as reader:
            return listed_fits(reader, collection.record.id)


@dataclass(frozen=True, slots=True)
class _Ledger:
    """``fit_building.Ledger`` of a collection of an open store."""

    fitter: Fitter
    collection: StoredCollection

    def listed(self) -> list[FitRecord]:
        return self.fitter.listed(self.collection)

    def advance(self, record: FitRecord, before: FitRecord | None, generations: Mapping[int, int]) -> None:
        self.fitter.advance(self.collection, record, before, generations)


def retire_fit_directory(store: Store, collection: StoredCollection, directory: str, forget: Forget) -> None:
    """Removes a directory of a fit that is not listed any more, after the last reader that may need it."""
    path = collection.directory / FITS / directory

    def remove() -> None:
        forget(path)
        try:
            if path not in unlisted_fits(collection.directory, collection.record.id, store.catalog):
                return
        except CovectorError:
            return
        store.disk.remove_tree(path)

    collection.remove_later(remove)


def _views(view: CollectionView, names: Sequence[str]) -> list[StoredCheckpointView]:
    """The checkpoints of a fit. Raises NotFound, or InvalidInput for one that is named twice."""
    if len(set(names)) < len(names):
        raise InvalidInput("a checkpoint is named twice; name each once", field="checkpoints")
    wanted = list(names) or list(view.checkpoints) or [""]
    return [cast("StoredCheckpointView", find_checkpoint(view, name)) for name in wanted]


def _check_q(view: CollectionView, views: Sequence[StoredCheckpointView], report: Report) -> None:
    """Raises InvalidInput, naming the first row without the Q that trak needs: before any pass."""
    for checkpoint in views:
        for _ in check_q(view, checkpoint.name, fresh_q(checkpoint, 0, None, lambda: report(0, 0))):
            pass
