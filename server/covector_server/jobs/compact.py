"""Starting compactions: asked for, or by itself where many rows are dead; one at a time for a collection."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from covector.errors import Conflict, CovectorError, NotFound
from covector_server.ingest.committer import Committer
from covector_server.jobs.compaction import Compaction, Eraser, Rules
from covector_server.jobs.index_carrying import Forget, forget_nothing
from covector_server.jobs.operations import Operations, Progress
from covector_server.metadata.records import OperationRecord
from covector_server.storage.collection import StoredCollection
from covector_server.storage.store import Store


class Compactor:
    """Compactions of one store. Safe to use from any thread but the committer's."""

    def __init__(
        self,
        store: Store,
        committer: Committer,
        operations: Operations,
        rules: Rules,
        *,
        erasers: Sequence[Eraser] = (),
        dead_bytes_min: int = 64 << 20,
        forget: Forget = forget_nothing,
    ) -> None:
        """``dead_bytes_min``: bytes of dead rows, before a collection is compacted by itself. ``forget`` hears of
        directories of indexes and fits that go."""
        self._store = store
        self._committer = committer
        self._operations = operations
        self._rules = rules
        self._erasers = erasers
        self._dead_bytes_min = dead_bytes_min
        self._forget = forget
        self._leased: set[int] = set()  # ids of collections that are being compacted
        self._leasing = threading.Lock()
        self._looked: dict[int, int] = {}  # dead bytes of collections when they were last compacted by themselves

    def start(self, name: str, request_id: str = "") -> OperationRecord:
        """Starts the operation. The same request id again returns the operation it started. Raises Conflict while the
        collection is being compacted."""
        collection = self._store.collection(name)
        id_ = collection.record.id

        def work(progress: Progress) -> dict[str, Any]:
            try:
                compaction = Compaction(
                    self._store, collection, self._exclusive, self._rules, self._erasers, self._forget
                )
                return compaction.run(progress)
            finally:
                self._leased.discard(id_)

        with self._leasing:
            if self._is_known(request_id):
                return self._operations.get(request_id)
            self._check_free(collection)
            self._leased.add(id_)
            try:
                return self._operations.start("compact", name, work, request_id)
            except BaseException:
                self._leased.discard(id_)
                raise

    def step(self) -> bool:
        """Starts the compaction of a collection in which dead rows are a large share, one at a time, and says whether
        there was one. For the maintenance thread."""
        if not self._rules.share or self._leased:
            return False
        for collection in self._store.collections():
            dead_bytes = self._dead_bytes(collection)
            if dead_bytes - self._looked.get(collection.record.id, 0) >= self._dead_bytes_min:
                self._looked[collection.record.id] = dead_bytes  # what this does not take out is not tried for ever
                try:
                    self.start(collection.record.name)
                except CovectorError:
                    continue
                return True
        return False

    def _dead_bytes(self, collection: StoredCollection) -> int:
        """Bytes of the dead rows of those checkpoints in which they are a large share."""
        if collection.fault is not None or collection.read_only is not None:
            return 0
        dead_counts = [
            len(checkpoint.dead)
            for checkpoint in list(collection.checkpoints.values())
            if len(checkpoint.dead) >= self._rules.share * checkpoint.counters.row_count
        ]
        dead_bytes = 2 * collection.space.dim * sum(dead_counts)
        if dead_bytes < self._looked.get(collection.record.id, 0):
            self._looked[collection.record.id] = dead_bytes
        return dead_bytes

    def _exclusive(self, work: Any) -> Any:
        return self._committer.call(work).result()

    def _is_known(self, request_id: str) -> bool:
        try:
            return bool(request_id) and self._operations.get(request_id) is not None
        except NotFound:
            return False

    def _check_free(self, collection: StoredCollection) -> None:
        if collection.record.id in self._leased:
            raise Conflict(
                f"collection {collection.record.name!r} is being compacted; wait for that operation, or cancel it",
                collection=collection.record.name,
            )
