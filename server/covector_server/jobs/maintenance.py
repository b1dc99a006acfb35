"""What a store does by itself: seals full shards, writes and joins runs of the key table, and whatever is added to it.

One thread, one piece of work at a time, the urgent before the rest. A piece does its reading and writing beside the
commit thread, and hands over the transaction that makes it count.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from covector.errors import CovectorError
from covector_server.ingest.committer import Committer
from covector_server.storage.checkpoint import StoredCheckpoint
from covector_server.storage.collection import StoredCollection
from covector_server.storage.key_table import Change
from covector_server.storage.layout import load_zarr
from covector_server.storage.store import Store

IDLE_S = 0.25  # between two looks for work, while nobody calls
_log = logging.getLogger(__name__)

Step = Callable[[], bool]  # does one bounded piece of work; False when there is none


def _nothing() -> bool:
    return False


class Maintenance:
    """The thread. ``steps``: further work, in order of urgency."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._full: deque[tuple[StoredCollection, StoredCheckpoint]] = deque()
        self._changed = threading.Event()
        self._stopping = False
        self._steps: Sequence[Step] = ()
        self._idle_step: Step = _nothing
        self._committer: Committer | None = None
        self._thread = threading.Thread(target=self._run, name="maintenance", daemon=True)

    def start(self, committer: Committer, steps: Sequence[Step] = (), idle_step: Step = _nothing) -> None:
        """Begins; ``committer`` makes its work count. ``idle_step`` is called about four times a second, while there is
        nothing else to do."""
        self._committer = committer
        self._idle_step = idle_step
        self._steps = (self._seal_next, self._maintain_keys, *steps)
        self._thread.start()

    def seal(self, collection: StoredCollection, checkpoint: StoredCheckpoint) -> None:
        """Has the full shards of a checkpoint sealed. From any thread."""
        self._full.append((collection, checkpoint))
        self._changed.set()

    def stop(self) -> None:
        """Ends the thread after the piece under way, and seals what is full still. Call it before the committer's."""
        self._stopping = True
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join()
        while self._do(self._seal_next):
            pass

    def _run(self) -> None:
        load_zarr()
        while not self._stopping:
            if not any(self._do(step) for step in self._steps):
                self._do(self._idle_step)
                self._changed.wait(IDLE_S)
                self._changed.clear()

    def _do(self, step: Step) -> bool:
        try:
            return step()
        except (CovectorError, OSError):
            _log.exception("a piece of maintenance failed; it is tried again later")
            return False

    def _call(self, work: Callable[[], None]) -> None:
        assert self._committer is not None
        self._committer.call(work).result()

    def _seal_next(self) -> bool:
        if not self._full:
            return False
        collection, checkpoint = self._full.popleft()
        try:
            sealed = self._store.seal_full_shards(collection, checkpoint)
        except OSError as error:
            if not self._stopping:
                self._full.append((collection, checkpoint))
            _log.warning("collection %r: a full shard is not sealed yet (%s)", collection.record.name, error)
            return False
        if sealed is not None:
            self._call(lambda: self._store.mark_sealed(collection, checkpoint, sealed))
        return True

    def _maintain_keys(self) -> bool:
        for collection in self._store.collections():
            with collection.keys.maintaining:
                change = collection.keys.flush(collection.counters.next_row_id) or collection.keys.merge()
                if change is not None:
                    self._register(collection, change)
                    return True
        return False

    def _register(self, collection: StoredCollection, change: Change) -> None:
        self._call(lambda: self._store.register_keys(collection, change))
