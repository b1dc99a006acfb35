"""Operations: long work in threads, with progress, cancel and a result that outlives the client's connection.

The state of every operation is in the catalog, so that a list of them survives a restart; one that was running when
the server ended is FAILED then, and says so. Of those that have ended, the oldest beyond a limit are forgotten.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from covector.errors import CovectorError, NotFound, Unavailable
from covector_server.ingest.committer import Committer
from covector_server.limits import Limits
from covector_server.metadata.records import OperationRecord
from covector_server.storage.store import Store

RUNNING, SUCCEEDED, FAILED, CANCELLED = "running", "succeeded", "failed", "cancelled"
_log = logging.getLogger(__name__)


class Cancelled(Exception):
    """The operation was asked to stop, and did."""


class Progress:
    """What an operation's work is given: to say how far it is, and to learn that it should stop."""

    def __init__(self, update: Callable[[int, int], None]) -> None:
        self._update = update
        self._cancelled = threading.Event()

    def report(self, steps_done: int, steps_total: int) -> None:
        """Says how far the work is. Raises Cancelled if it should stop; call it at safe points only."""
        if self._cancelled.is_set():
            raise Cancelled
        self._update(steps_done, steps_total)

    def cancel(self) -> None:
        """Asks the work to stop at its next report."""
        self._cancelled.set()


Work = Callable[[Progress], dict[str, Any]]


class Operations:
    """Runs and remembers operations. Safe to call from any thread."""

    def __init__(self, store: Store, committer: Committer, threads: int = 2, limits: Limits | None = None) -> None:
        self._kept = (limits or Limits()).operations_kept
        self._store = store
        self._committer = committer
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="operation")
        self._changed = threading.Condition()
        self._running: dict[str, Progress] = {}
        self._records = self._load()

    def start(
        self,
        kind: str,
        collection: str,
        work: Work,
        request_id: str = "",
        *,
        metadata: dict[str, Any] | None = None,
    ) -> OperationRecord:
        """Starts work and returns its record; the same request id again returns the operation it started.
        ``metadata``: what is known of it before it begins."""
        operation_id = request_id or str(uuid.uuid4())
        with self._changed:
            if operation_id in self._records:
                return self._records[operation_id]
            record = OperationRecord(
                operation_id, kind, collection, RUNNING, started_at_s=time.time(), metadata=metadata or {}
            )
            self._records[operation_id] = record
            progress = self._running[operation_id] = Progress(
                lambda done, total: self._change(operation_id, steps_done=done, steps_total=total)
            )
        try:
            self._save(record)
        except CovectorError:
            with self._changed:
                del self._records[operation_id], self._running[operation_id]
            raise
        self._pool.submit(self._run, operation_id, work, progress)
        return record

    def get(self, operation_id: str) -> OperationRecord:
        """The operation as it stands. Raises NotFound."""
        with self._changed:
            if operation_id not in self._records:
                raise NotFound(f"no operation {operation_id!r}", operation=operation_id)
            return self._records[operation_id]

    def knows(self, operation_id: str) -> bool:
        """Whether there is such an operation: whether a request was seen before, as its id is the operation's."""
        with self._changed:
            return operation_id in self._records

    def list(self) -> list[OperationRecord]:
        """All operations, newest first."""
        with self._changed:
            return list(reversed(self._records.values()))

    def cancel(self, operation_id: str) -> OperationRecord:
        """Asks an operation to stop; one that has ended stays as it is."""
        record = self.get(operation_id)
        with self._changed:
            progress = self._running.get(operation_id)
        if progress is not None:
            progress.cancel()
        return record

    def wait(self, operation_id: str, timeout_s: float) -> OperationRecord:
        """Returns when the operation has ended, or the time has passed."""
        with self._changed:
            self._changed.wait_for(lambda: self.get(operation_id).state != RUNNING, timeout_s)
            return self.get(operation_id)

    def stop(self) -> None:
        """Cancels what runs and waits for it."""
        with self._changed:
            running = list(self._running.values())
        for progress in running:
            progress.cancel()
        self._pool.shutdown(wait=True)

    def _run(self, operation_id: str, work: Work, progress: Progress) -> None:
        try:
            result = work(progress)
            self._finish(operation_id, state=SUCCEEDED, result=result)
        except Cancelled:
            self._finish(operation_id, state=CANCELLED)
        except CovectorError as error:
            self._finish(operation_id, state=FAILED, error_kind=error.kind, error_message=error.message)
        except Exception as error:  # noqa: BLE001 - the operation's record says what it was
            _log.exception("operation %s failed", operation_id)
            message = f"{type(error).__name__}: {error}"
            self._finish(operation_id, state=FAILED, error_kind="internal", error_message=message)

    def _finish(self, operation_id: str, **changes: Any) -> None:
        try:
            self._save(replace(self.get(operation_id), **changes))
        except CovectorError:
            _log.exception(
                "the end of operation %s is known until the server stops, but could not be stored", operation_id
            )
        self._change(operation_id, **changes)
        with self._changed:
            self._running.pop(operation_id, None)
        self._forget_old()

    def _forget_old(self) -> None:
        with self._changed:
            ended = [record.id for record in self._records.values() if record.state != RUNNING]
            forgotten = ended[: max(len(ended) - self._kept, 0)]
            for operation_id in forgotten:
                del self._records[operation_id]
        if forgotten and self._committer.call(lambda: self._delete(forgotten)).exception() is not None:
            _log.warning("%d old operations could not be forgotten; they come back with a restart", len(forgotten))

    def _delete(self, operation_ids: Sequence[str]) -> None:
        with self._store.catalog.write() as writer:
            for operation_id in operation_ids:
                writer.delete("operations", operation_id.encode())

    def _change(self, operation_id: str, **changes: Any) -> None:
        with self._changed:
            self._records[operation_id] = replace(self._records[operation_id], **changes)
            self._changed.notify_all()

    def _save(self, record: OperationRecord) -> None:
        def save() -> None:
            with self._store.catalog.write() as writer:
                writer.put("operations", record.id.encode(), record.encode())

        self._committer.call(save).result()

    def _load(self) -> dict[str, OperationRecord]:
        with self._store.catalog.read() as reader:
            records = [OperationRecord.decode(value) for _, value in reader.scan("operations")]
        records.sort(key=lambda record: record.started_at_s)
        interrupted = Unavailable("the server stopped while this ran; start it again")
        return {
            record.id: record
            if record.state != RUNNING
            else replace(record, state=FAILED, error_kind=interrupted.kind, error_message=interrupted.message)
            for record in records
        }
