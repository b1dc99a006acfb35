"""Directories that no list names, of indexes or of fits: removed now and then while the store is open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from covector.errors import CovectorError
from covector_server.jobs.index_carrying import Forget
from covector_server.metadata.catalog import Catalog
from covector_server.storage.collection import StoredCollection
from covector_server.storage.disk import Disk
from covector_server.storage.store import Store

SWEEP_S = 30.0  # between two looks for directories that nothing lists

Unlisted = Callable[[Path, int, Catalog], list[Path]]
RemoveUnlisted = Callable[[Path, int, Catalog, Disk], int]


class Sweeper:
    """What another process replaced, or left when it died. ``unlisted`` finds directories of one sort, some of which
    may be being filled; ``remove_unlisted`` removes those that nobody fills."""

    def __init__(
        self,
        store: Store,
        unlisted: Unlisted,
        remove_unlisted: RemoveUnlisted,
        forget: Forget,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._unlisted = unlisted
        self._remove_unlisted = remove_unlisted
        self._forget = forget
        self._clock = clock
        self._sweep_at_s = clock() + SWEEP_S

    def step(self) -> bool:
        """Sweeps if it is time to. For the maintenance thread; returns False, for there is no hurry."""
        if self._clock() < self._sweep_at_s:
            return False
        self._sweep_at_s = self._clock() + SWEEP_S
        for collection in self._store.collections():
            try:
                self._sweep(collection)
            except CovectorError:
                continue  # told when the list is read
        return False

    def _sweep(self, collection: StoredCollection) -> None:
        store, id_ = self._store, collection.record.id
        if not self._unlisted(collection.directory, id_, store.catalog):
            return

        def remove() -> None:
            for path in self._unlisted(collection.directory, id_, store.catalog):
                self._forget(path)
            self._remove_unlisted(collection.directory, id_, store.catalog, store.disk)

        collection.remove_later(remove)
