"""A group of batches on its way through the commit order: its drafts, and the writers that wait for it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

from covector.errors import CovectorError, Internal, Unavailable
from covector_server.ingest.batch import Batch, Outcome, WriterSpec
from covector_server.ingest.draft import CollectionDraft
from covector_server.limits import Limits
from covector_server.metadata.catalog import Reader
from covector_server.storage.store import Store


def begun_future() -> Future[Any]:
    """A future that its waiter cannot cancel: a client that leaves must not reach into the commit thread."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


@dataclass(frozen=True, slots=True)
class Entry:
    """A batch that waits to be stored."""

    spec: WriterSpec
    batch: Future[Batch]  # it may be being checked still
    answer: Future[Outcome] = field(default_factory=begun_future)


class Group:
    """Batches that share their syncs and their transaction. ``base``: the group before, if it is not done yet; what it
    wrote is built upon, so if it fails this one does."""

    def __init__(self, store: Store, limits: Limits, base: Group | None) -> None:
        self.size_bytes = 0
        self.failure: CovectorError | None = None
        self.drafts: dict[str, CollectionDraft] = {}
        self._base = base
        self._store = store
        self._limits = limits
        self._written: list[tuple[Entry, Outcome]] = []

    def __len__(self) -> int:
        return len(self._written)

    def write(self, entry: Entry, reader: Reader, check_space: Callable[[int], None] = lambda size_bytes: None) -> None:
        """Steps 1 and 2 for one batch. A batch that is refused is answered here and leaves no trace; any other error
        leaves the group unfit to be committed."""
        failure = entry.batch.exception()  # waits until it is checked
        if failure is not None:
            entry.answer.set_exception(explain(failure))
            return
        batch = entry.batch.result()
        try:
            check_space(batch.size_bytes)
            outcome = self._draft(entry.spec.collection).add(entry.spec, batch, reader)
        except CovectorError as error:
            entry.answer.set_exception(error)
            return
        except BaseException:
            self._written.append((entry, Outcome(0, 0, 0)))  # so that it is refused with the group
            raise
        self._written.append((entry, outcome))
        self.size_bytes += batch.size_bytes

    def finish(self) -> None:
        """The last of step 2: what waited for the whole group is written."""
        for draft in self.drafts.values():
            draft.finish()

    def check_base(self) -> None:
        """Raises Unavailable if the group that this one builds upon has failed. Call it when that one is done."""
        if self._base is not None and self._base.failure is not None:
            raise Unavailable(f"the batches before were not stored ({self._base.failure.message}); send again")
        self._base = None  # committed: it need not be kept

    def sync(self, pool: Executor) -> None:
        """Step 3. Raises Unavailable after a failed sync; the collection is read-only then."""
        for draft in self.drafts.values():
            try:
                draft.syncs.run(self._store.disk, pool)
            except OSError as error:
                name = draft.collection.record.name
                draft.collection.read_only = Unavailable(
                    f"collection {name!r} is read-only: the disk failed to store rows ({error}); look at the disk, "
                    "then restart the server. What was acknowledged is safe",
                    final="true",
                )
                raise draft.collection.read_only from error

    def commit(self) -> None:
        """Step 4."""
        with self._store.catalog.write() as writer:
            for draft in self.drafts.values():
                draft.commit(writer)

    def install(self) -> None:
        """Makes memory follow."""
        for draft in self.drafts.values():
            draft.install()

    def close_collections(self, error: Exception) -> None:
        """Refuses the group, and closes its collections until a restart: they were committed, but memory could not
        follow."""
        reason = Unavailable(
            f"rows were committed, but memory could not follow ({error!r}); restart the server", final="true"
        )
        for draft in self.drafts.values():
            draft.collection.fault = draft.collection.read_only = reason
        self.refuse(reason)

    def acknowledge(self) -> None:
        """Step 5."""
        for entry, outcome in self._written:
            entry.answer.set_result(outcome)

    def refuse(self, error: CovectorError) -> None:
        """Answers every batch of the group with ``error``."""
        self.failure = error
        for entry, _ in self._written:
            entry.answer.set_exception(error)

    def roll_back(self) -> None:
        """Takes a refused group back out of memory, and the refused ones that it was built upon. Call it when no group
        builds on this one any more."""
        for draft in self.drafts.values():
            draft.discard()
        if self._base is not None and self._base.failure is not None:
            self._base.roll_back()

    def _draft(self, name: str) -> CollectionDraft:
        draft = self.drafts.get(name)
        if draft is None:
            collection = self._store.collection(name)
            draft = self.drafts[name] = CollectionDraft(self._store, collection, self._limits, self._base_of(name))
        return draft

    def _base_of(self, name: str) -> CollectionDraft | None:
        """The draft of the group before. If that is committed already, what it says is what the collection says."""
        return None if self._base is None else self._base.drafts.get(name)


def explain(error: BaseException) -> CovectorError:
    """The covector error for a failure of the store."""
    if isinstance(error, CovectorError):
        return error
    if isinstance(error, MemoryError):
        return Unavailable("the server is out of memory; send again, in smaller batches or from fewer writers")
    if isinstance(error, OSError):
        return Unavailable(f"the rows could not be written ({error}); free space or look at the disk, then send again")
    return Internal(f"{type(error).__name__}: {error}")
