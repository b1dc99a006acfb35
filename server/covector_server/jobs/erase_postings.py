"""Erasure of filter postings: files that cover deleted rows go, and are built again from what is left."""

from __future__ import annotations

import numpy as np

from covector_server.jobs.compaction import Eraser
from covector_server.storage.collection import StoredCollection
from covector_server.storage.generation import Check, Exclusive, check_not_deleted
from covector_server.storage.postings_files import unregister
from covector_server.storage.store import Store
from covector_server.storage.view import RowIds


def postings_eraser(store: Store, exclusive: Exclusive) -> Eraser:
    """Takes files of postings with deleted rows out of a collection; until new ones are built, their rows are filtered
    one by one. It waits for snapshots under way, which name them."""

    def erase(collection: StoredCollection, gone: RowIds, check: Check) -> None:
        with store.pins.replacing(check):
            collection.postings.remove(exclusive(lambda: _forget(store, collection, gone)))

    return erase


def _forget(store: Store, collection: StoredCollection, gone: RowIds) -> list[int]:
    """On the commit thread: takes the files off the list, and returns their numbers."""
    touched = [
        file.number
        for file in collection.postings.files
        if np.diff(np.searchsorted(gone, (file.first, file.first + file.row_count)))[0]
    ]
    if touched:
        with store.catalog.write() as writer:
            check_not_deleted(writer, collection)
            unregister(writer, collection.record.id, touched)
        with collection.changing:
            collection.postings.forget(touched)
    return touched
