"""The two threads that change the store: they take batches in groups through the commit order of design.md, section 4.

1. look up writer and sequence; 2. write rows and columns at their places; 3. sync every file the group touched;
4. one synchronous catalog transaction, the only commit point; 5. acknowledge; 6. seal what is full.

The *write* thread does 1 and 2 and goes on adding batches to its group until the *commit* thread, which does 3 to 5,
has done with the group before. So writing overlaps syncing, and the longer a sync takes the more share the next one.
Sealing is left to the maintenance thread.

A group builds on the one before, which may fail: then it fails too, and the write thread begins again from what is
committed. Whatever else changes the store (making a collection, publishing, deleting rows) runs on the commit thread
while the write thread waits, so that nothing ever needs to be locked against it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeVar

from covector.errors import CovectorError
from covector_server.ingest.batch import Batch, Outcome, WriterSpec
from covector_server.ingest.fair_queue import FairQueue
from covector_server.ingest.group import Entry, Group, begun_future, explain
from covector_server.limits import Limits
from covector_server.storage.checkpoint import StoredCheckpoint
from covector_server.storage.collection import StoredCollection
from covector_server.storage.store import Store

GROUP_BYTES = 32 << 20  # a group is not larger
GROUP_BYTES_MIN = 4 << 20  # while more waits, the commit thread is not given less
SYNC_THREADS = 4
KEYS_WAIT_S = 0.5  # between two looks whether the key table has caught up
T = TypeVar("T")
OnFull = Callable[[StoredCollection, StoredCheckpoint], None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Call:
    work: Callable[[], Any]
    answer: Future[Any] = field(default_factory=begun_future)
    done: threading.Event = field(default_factory=threading.Event)


class _Stop:
    pass


class Committer:
    """Owns every change of a store. ``submit`` and ``call`` may come from any thread.

    ``on_full`` is called, on the commit thread, with a checkpoint that has full shards to seal; without it they are
    sealed right there. ``check_space(bytes)`` raises Unavailable where a batch of so many bytes is not to be taken now.
    """

    def __init__(
        self,
        store: Store,
        limits: Limits,
        on_full: OnFull | None = None,
        check_space: Callable[[int], None] = lambda size_bytes: None,
    ) -> None:
        self._store = store
        self._limits = limits
        self._check_space = check_space
        self._on_full: OnFull = on_full or (lambda collection, checkpoint: store.seal(collection))
        self._step = store.disk.step
        self._queue: FairQueue[Entry, _Call] = FairQueue()
        self._handed: SimpleQueue[Group | _Call | _Stop] = SimpleQueue()
        self._idle = threading.Event()  # whether the commit thread has nothing to do
        self._idle.set()
        self._last: Group | None = None  # the last group that was handed over
        self._syncing = ThreadPoolExecutor(SYNC_THREADS, thread_name_prefix="sync")
        self._writer = threading.Thread(target=self._write_all, name="writer", daemon=True)
        self._committer = threading.Thread(target=self._commit_all, name="committer", daemon=True)
        self._writer.start()
        self._committer.start()

    def submit(self, spec: WriterSpec, batch: Batch | Future[Batch]) -> Future[Outcome]:
        """Queues a batch, which may be being checked still. The answer comes when it is on stable storage, or with the
        reason why it is not."""
        entry = Entry(spec, batch if isinstance(batch, Future) else _done(batch))
        self._queue.put(spec.writer_id, entry)
        return entry.answer

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Queues other work on the store, to run between two groups."""
        call = _Call(work)
        self._queue.put_call(call)
        return call.answer

    def stop(self) -> None:
        """Commits what is queued and ends the threads."""
        self._queue.close()
        self._writer.join()
        self._committer.join()
        self._syncing.shutdown(wait=True)

    # The write thread

    def _write_all(self) -> None:
        group: Group | None = None
        while self._wait(group):
            if group is not None and (self._idle.is_set() or group.size_bytes >= GROUP_BYTES):
                self._hand_over(group)
                group = None
            elif (call := self._queue.take_call()) is not None:
                self._hand_over(group)
                self._hand_over(call)
                group = None
                call.done.wait()
            elif self._keys_are_behind():
                self._hand_over(group)
                group = None
                self._queue.wait_for_call(KEYS_WAIT_S)
            else:
                group = self._written(group or self._begin())
        self._hand_over(group)
        self._handed.put(_Stop())

    def _wait(self, group: Group | None) -> bool:
        """Returns when there is something to do: False when that is to stop."""
        return self._queue.wait(otherwise=lambda: group is not None and self._idle.is_set())

    def _begin(self) -> Group:
        """A new group, on what is committed or on the group under way."""
        if self._idle.is_set():
            self._forget_last()
        return Group(self._store, self._limits, self._last)

    def _forget_last(self) -> None:
        """Lets go of the last group, which is done: if it failed, what it wrote is taken back out of memory."""
        if self._last is not None and self._last.failure is not None:
            self._last.roll_back()
        self._last = None

    def _written(self, group: Group) -> Group | None:
        """The group with what waits, until it is time to hand it over; None if nothing of it is left."""
        try:
            with self._store.catalog.read() as reader:
                while not self._is_large(group) and (entry := self._queue.take()) is not None:
                    group.write(entry, reader, self._check_space)
        except Exception as error:  # noqa: BLE001 - whatever it was, the group is not stored and its writers must hear
            self._give_up(group, error)
            return None
        return group if len(group) else None

    def _is_large(self, group: Group) -> bool:
        """Whether a group should not wait for more: a commit thread that has nothing to do takes less."""
        return group.size_bytes >= (GROUP_BYTES_MIN if self._idle.is_set() else GROUP_BYTES)

    def _is_finished(self, group: Group) -> bool:
        """Writes the last of a group; False if that failed, and the group with it."""
        try:
            group.finish()
        except Exception as error:  # noqa: BLE001 - as above
            self._give_up(group, error)
            return False
        return True

    def _give_up(self, group: Group, error: Exception) -> None:
        _log.error("a group of %d batches was not written", len(group), exc_info=error)
        self._idle.wait()
        group.refuse(explain(error))
        group.roll_back()

    def _keys_are_behind(self) -> bool:
        return any(collection.keys.is_behind() for collection in self._store.collections())

    def _hand_over(self, work: Group | _Call | None) -> None:
        """Gives work to the commit thread, once it has done with what it has."""
        if work is None or (isinstance(work, Group) and not self._is_finished(work)):
            return
        self._idle.wait()
        if isinstance(work, Group):
            self._last = work
        else:
            self._forget_last()  # what the call changes, the drafts of the group before do not know
        self._idle.clear()
        self._handed.put(work)

    # The commit thread

    def _commit_all(self) -> None:
        while not isinstance(work := self._handed.get(), _Stop):
            try:
                if isinstance(work, Group):
                    self._commit(work)
                else:
                    _answer(work.answer, work.work)
                    work.done.set()
            finally:
                self._idle.set()
                self._queue.wake()

    def _commit(self, group: Group) -> None:
        try:
            self._step("commit.written")
            group.check_base()
            group.sync(self._syncing)
            self._step("commit.synced")
            group.commit()
        except Exception as error:  # noqa: BLE001 - whatever it was, the writers must hear
            _log.exception("a group of %d batches was not stored", len(group))
            group.refuse(explain(error))
            return
        try:
            self._step("commit.committed")
            group.install()
        except Exception as error:  # noqa: BLE001 - committed, but not in memory: nobody may build on it
            _log.exception("a committed group could not be installed")
            group.close_collections(error)
            return
        group.acknowledge()
        self._step("commit.acknowledged")
        for draft in group.drafts.values():
            for checkpoint in draft.sealable():
                if checkpoint.full_shard_count() > checkpoint.counters.sealed_shard_count:
                    self._on_full(draft.collection, checkpoint)


def _done(batch: Batch) -> Future[Batch]:
    found: Future[Batch] = Future()
    found.set_result(batch)
    return found


def _answer(answer: Future[Any], work: Callable[[], Any]) -> None:
    try:
        answer.set_result(work())
    except Exception as error:  # noqa: BLE001 - the caller's thread gets it
        answer.set_exception(error if isinstance(error, CovectorError) else explain(error))
