"""The one thread that changes the store: it takes batches in groups through the commit order of design.md, section 4.

1. look up writer and sequence; 2. write rows and columns at their places; 3. sync every file the group touched;
4. one synchronous catalog transaction, the only commit point; 5. acknowledge; 6. seal what is full.

Whatever else changes the store (making a collection, publishing) runs on this thread too, between two groups, so that
nothing ever needs to be locked against it.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from covector.errors import CovectorError, Internal, Unavailable
from covector_server.ingest.batch import Batch, Outcome, WriterSpec
from covector_server.ingest.draft import CollectionDraft
from covector_server.limits import Limits
from covector_server.metadata.catalog import Reader
from covector_server.storage.store import Store

GROUP_BYTES = 64 << 20
T = TypeVar("T")
_log = logging.getLogger(__name__)


def _begun_future() -> Future[Any]:
    """A future that its waiter cannot cancel: a client that leaves must not reach into this thread."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


@dataclass(frozen=True, slots=True)
class _Entry:
    spec: WriterSpec
    batch: Batch
    answer: Future[Outcome] = field(default_factory=_begun_future)


@dataclass(frozen=True, slots=True)
class _Call:
    work: Callable[[], Any]
    answer: Future[Any] = field(default_factory=_begun_future)


class _Stop:
    pass


def _no_step(step: str) -> None:
    """What a committer calls between its steps outside of tests."""


class Committer:
    """Owns every change of a store. Start it once; ``submit`` and ``call`` may come from any thread."""

    def __init__(self, store: Store, limits: Limits, on_step: Callable[[str], None] = _no_step) -> None:
        self._store = store
        self._limits = limits
        self._on_step = on_step  # for tests: called by name between the steps of the commit order
        self._queue: queue.SimpleQueue[_Entry | _Call | _Stop] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._thread.start()

    def submit(self, spec: WriterSpec, batch: Batch) -> Future[Outcome]:
        """Queues a batch. The answer comes when it is on stable storage, or with the reason why it is not."""
        entry = _Entry(spec, batch)
        self._queue.put(entry)
        return entry.answer

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Queues other work on the store."""
        entry = _Call(work)
        self._queue.put(entry)
        return entry.answer

    def stop(self) -> None:
        """Commits what is queued and ends the thread."""
        self._queue.put(_Stop())
        self._thread.join()

    def _run(self) -> None:
        pending: _Entry | _Call | _Stop | None = None
        while True:
            entry = pending or self._queue.get()
            pending = None
            if isinstance(entry, _Stop):
                return
            if isinstance(entry, _Call):
                _answer(entry.answer, entry.work)
                continue
            group, pending = self._collect(entry)
            self._commit(group)

    def _collect(self, first: _Entry) -> tuple[list[_Entry], _Entry | _Call | _Stop | None]:
        """The batches that wait now, up to a group's size, and what came after them."""
        group, size_bytes = [first], first.batch.size_bytes
        while size_bytes < GROUP_BYTES:
            try:
                entry = self._queue.get_nowait()
            except queue.Empty:
                break
            if not isinstance(entry, _Entry):
                return group, entry
            group.append(entry)
            size_bytes += entry.batch.size_bytes
        return group, None

    def _commit(self, group: list[_Entry]) -> None:
        drafts: dict[str, CollectionDraft] = {}
        try:
            with self._store.catalog.read() as reader:
                written = [(entry, outcome) for entry in group if (outcome := self._write(entry, drafts, reader))]
            self._step("written")
            self._sync(drafts)
            self._step("synced")
            self._commit_catalog(drafts)
            self._step("committed")
        except Exception as error:  # noqa: BLE001 - whatever it was, the group is not stored and its writers must hear
            _log.exception("a group of %d batches was not stored", len(group))
            for draft in drafts.values():
                draft.discard()
            _refuse(group, _explain(error))
            return
        try:
            for draft in drafts.values():
                draft.install()
        except Exception as error:  # noqa: BLE001 - committed, but not in memory: nobody may build on it
            _refuse(group, self._out_of_step(drafts, error))
            return
        for entry, outcome in written:
            entry.answer.set_result(outcome)
        self._step("acknowledged")
        self._seal(drafts)
        self._step("sealed")

    def _out_of_step(self, drafts: dict[str, CollectionDraft], error: Exception) -> Unavailable:
        """Closes the collections of a group that is committed on disk but could not be installed in memory."""
        _log.exception("a committed group could not be installed")
        reason = Unavailable(f"rows were committed, but memory could not follow ({error!r}); restart the server")
        for draft in drafts.values():
            draft.collection.fault = draft.collection.read_only = reason
        return reason

    def _step(self, name: str) -> None:
        self._on_step(name)
        self._store.disk.step(f"commit.{name}")

    def _write(self, entry: _Entry, drafts: dict[str, CollectionDraft], reader: Reader) -> Outcome | None:
        """Steps 1 and 2 for one batch. A batch that is refused is answered here and leaves no trace."""
        name = entry.spec.collection
        try:
            draft = drafts.get(name)
            if draft is None:
                draft = drafts[name] = CollectionDraft(self._store, self._store.collection(name), self._limits)
            return draft.add(entry.spec, entry.batch, reader)
        except CovectorError as error:
            entry.answer.set_exception(error)
            return None

    def _sync(self, drafts: dict[str, CollectionDraft]) -> None:
        for draft in drafts.values():
            try:
                draft.sync()
            except OSError as error:
                name = draft.collection.record.name
                draft.collection.read_only = Unavailable(
                    f"collection {name!r} is read-only: the disk failed to store rows ({error}); look at the disk, "
                    "then restart the server. What was acknowledged is safe"
                )
                raise draft.collection.read_only from error

    def _commit_catalog(self, drafts: dict[str, CollectionDraft]) -> None:
        with self._store.catalog.write() as writer:
            for draft in drafts.values():
                draft.commit(writer)

    def _seal(self, drafts: dict[str, CollectionDraft]) -> None:
        for draft in drafts.values():
            try:
                for checkpoint in draft.sealable():
                    self._store.seal_full_shards(draft.collection, checkpoint)
            except Exception as error:  # noqa: BLE001 - the rows are safe; the thread must live
                _log.exception("a full shard could not be sealed")
                draft.collection.read_only = Unavailable(
                    f"collection {draft.collection.record.name!r} is read-only: a full shard could not be sealed "
                    f"({error}); free space or look at the disk, then restart the server"
                )


def _answer(answer: Future[Any], work: Callable[[], Any]) -> None:
    try:
        answer.set_result(work())
    except Exception as error:  # noqa: BLE001 - the caller's thread gets it
        answer.set_exception(error if isinstance(error, CovectorError) else _explain(error))


def _refuse(group: list[_Entry], error: CovectorError) -> None:
    for entry in group:
        if not entry.answer.done():
            entry.answer.set_exception(error)


def _explain(error: Exception) -> CovectorError:
    if isinstance(error, CovectorError):
        return error
    if isinstance(error, MemoryError):
        return Unavailable("the server is out of memory; send again, in smaller batches or from fewer writers")
    if isinstance(error, OSError):
        return Unavailable(f"the rows could not be written ({error}); free space or look at the disk, then send again")
    return Internal(f"{type(error).__name__}: {error}")
