"""Deletes: rows become tombstones at every checkpoint in one transaction, and no read sees them afterwards.

Their bytes stay where they are until the collection is compacted. All of this runs on the commit thread.
"""

from __future__ import annotations

import numpy as np

from covector_server.ingest.checkpoint_draft import CheckpointDraft, put_tombstones
from covector_server.metadata.catalog import number
from covector_server.storage.collection import DELETED_RANGE_BITS, StoredCollection, deleted_by_range
from covector_server.storage.positions import is_among, merged
from covector_server.storage.store import Store
from covector_server.storage.syncs import Syncs
from covector_server.storage.view import RowIds


def delete_rows(store: Store, collection: StoredCollection, row_ids: RowIds, request_id: str = "") -> int:
    """Deletes rows, durably, and returns how many there were; rows that are deleted already count as none. The same
    request sent again has no second effect and is answered as it was."""
    answered = store.answered(request_id)
    if answered is not None:
        return answered
    if collection.read_only is not None:
        raise collection.read_only
    gone = np.unique(row_ids[(row_ids >= 0) & ~is_among(collection.deleted, row_ids)])
    drafts = [_without(CheckpointDraft.after(stored, Syncs()), gone) for stored in collection.checkpoints.values()]
    deleted = merged(collection.deleted, gone)
    id_ = collection.record.id
    with store.catalog.write() as writer:
        for range_, offsets in deleted_by_range(deleted, np.unique(gone >> DELETED_RANGE_BITS)):
            writer.put("deleted_rows", number(id_, range_), offsets)
        for draft in drafts:
            writer.put("checkpoint_counters", number(id_, draft.stored.record.id), draft.counters().encode())
            put_tombstones(writer, id_, draft.stored, draft.dead, draft.died)
        store.remember(writer, request_id, len(gone))
        store.disk.step("delete.written")
    store.disk.step("delete.committed")
    with collection.changing:
        collection.deleted = deleted
        for draft in drafts:
            draft.install()
    return len(gone)


def _without(draft: CheckpointDraft, row_ids: RowIds) -> CheckpointDraft:
    """The draft with the positions of some rows dead."""
    positions = draft.stored.positions.find(row_ids, draft.row_count, draft.dead)
    died = np.sort(positions[positions >= 0])
    draft.zero_row_count -= draft.zero_rows_at(died)
    draft.dead, draft.died = merged(draft.dead, died), died
    return draft
