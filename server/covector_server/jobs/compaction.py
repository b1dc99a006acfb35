"""Compacting one collection: dead rows leave its arrays, deleted rows its row log and key table, old entries the
catalog.

In order: each checkpoint gets a new generation (erased in place, or without its dead rows where these are a large
share), and its indexes follow; texts and keys of deleted rows leave the row log; once every reader has left that began
before, the key runs and what else derives from rows; the marks of what is erased; the catalog. Every step can be
repeated, and a cancelled or crashed compaction is continued by the next.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from covector.errors import Unavailable
from covector_server.jobs.fit_carrying import FitCarrier
from covector_server.jobs.followers import Followers
from covector_server.jobs.holding_snapshots import snapshots_holding
from covector_server.jobs.index_carrying import Forget, IndexCarrier, forget_nothing
from covector_server.jobs.operations import Progress
from covector_server.storage.checkpoint import StoredCheckpoint
from covector_server.storage.collection import DELETED_RANGE_BITS, NO_ROWS, StoredCollection
from covector_server.storage.compaction import CompactingCopy, Unsound
from covector_server.storage.erased import counts_by, erased_in_ranges, erased_in_shards, put_erased_in_ranges
from covector_server.storage.erasure import ErasingCopy
from covector_server.storage.generation import (
    Check,
    Exclusive,
    check_alive,
    check_not_deleted,
    next_generation,
    take_over,
)
from covector_server.storage.layout import position_bytes
from covector_server.storage.orphans import empty_logs, forget_logs, retired_logs
from covector_server.storage.positions import is_among
from covector_server.storage.store import Store
from covector_server.storage.text_erasure import TextErasure
from covector_server.storage.view import RowIds

RANGE_ROWS = 1 << DELETED_RANGE_BITS
_STAGES_AFTER = 4  # texts, readers, keys, catalog
_CHECK_S = 0.05  # between two looks whether the work should stop, while it waits for readers

Eraser = Callable[[StoredCollection, RowIds, Check], None]
"""Takes deleted rows, sorted, out of files that derive from them. Doing it again changes nothing."""


@dataclass(frozen=True, slots=True)
class Rules:
    """``share``: of dead positions from which a checkpoint's rows move together; 0: never. ``readers_wait_s``: how long
    readers are waited for that began before."""

    share: float = 0.2
    readers_wait_s: float = 600.0


@dataclass(slots=True)
class _Report:
    rows_erased: int = 0
    blocks_rewritten: int = 0
    key_runs_rewritten: int = 0
    bytes_freed: int = 0
    checkpoints: dict[str, dict[str, Any]] = field(default_factory=dict)
    unsound: list[str] = field(default_factory=list)


class Compaction:
    """The work on one collection. ``run`` may be called once."""

    def __init__(
        self,
        store: Store,
        collection: StoredCollection,
        exclusive: Exclusive,
        rules: Rules,
        erasers: Sequence[Eraser] = (),
        forget: Forget = forget_nothing,
    ) -> None:
        self._store = store
        self._indexes = IndexCarrier(store, collection, exclusive, forget)
        self._fits = FitCarrier(store, collection, forget)
        self._followers = Followers([self._indexes, self._fits])
        self._collection = collection
        self._exclusive = exclusive
        self._rules = rules
        self._erasers = erasers
        self._report = _Report()
        self._done = 0

    def run(self, progress: Progress) -> dict[str, Any]:
        """Does all of it, and returns what the operation says in the end. Raises Unavailable if readers that began
        before do not leave: what was done stays done, and the next compaction goes on."""
        try:
            return self._run(progress)
        except OSError as error:
            raise Unavailable(
                f"collection {self._collection.record.name!r} was not compacted ({error}); it goes on as it was: free "
                "space or look at the disk, then start it again"
            ) from error

    def _run(self, progress: Progress) -> dict[str, Any]:
        collection = self._collection
        check_alive(collection)
        names = list(collection.checkpoints)
        total = len(names) + _STAGES_AFTER + len(self._erasers)

        def check() -> None:
            progress.report(self._done, total)

        for name in names:
            check()
            with collection.readers.reading():
                self._compact_checkpoint(name, check)
            self._done += 1
        check()
        self._indexes.blank(check)
        self._erase_rows(check)
        check()
        self._report.bytes_freed += self._exclusive(lambda: self._store.catalog.compact(self._store.disk.step))
        self._done += 1
        progress.report(total, total)
        return self._result()

    # Checkpoints

    def _compact_checkpoint(self, name: str, check: Check) -> None:
        old = self._collection.checkpoints[name]
        dead, row_count = old.dead, old.counters.row_count
        with self._store.catalog.read() as reader:
            erased = erased_in_shards(reader, self._collection.record.id, old.record.id)
        report = {"dead_rows": len(dead), "action": "none"}
        if self._rules.share and len(dead) and len(dead) >= self._rules.share * row_count:
            report |= self._compact_or_erase(old, erased, check)
        elif counts_by(dead, old.record.shard_rows) != erased:
            report |= self._erase(old, erased, check)
        self._report.checkpoints[name] = report

    def _compact_or_erase(self, old: StoredCheckpoint, erased: dict[int, int], check: Check) -> dict[str, Any]:
        try:
            with self._followers, next_generation(self._store, self._collection, old) as new:
                copy = CompactingCopy(old, new, self._store.disk)
                take_over(self._store, self._collection, copy, self._exclusive, check, self._followers)
        except Unsound:
            if counts_by(old.dead, old.record.shard_rows) == erased:
                return {"action": "none"}
            return self._erase(old, erased, check)
        dropped_count = copy.row_count - copy.states()["gradients"].row_count
        self._report.bytes_freed += dropped_count * position_bytes(self._collection.space.dim)
        return {
            "action": "compacted",
            "generation": new.record.generation,
            "shards_rewritten": len(copy.rewritten_shards),
        }

    def _erase(self, old: StoredCheckpoint, erased: dict[int, int], check: Check) -> dict[str, Any]:
        with self._followers, next_generation(self._store, self._collection, old) as new:
            copy = ErasingCopy(old, new, self._store.disk, erased)
            take_over(self._store, self._collection, copy, self._exclusive, check, self._followers)
        self._report.unsound += copy.unsound
        return {
            "action": "erased",
            "generation": new.record.generation,
            "shards_rewritten": len(copy.rewritten_shards),
        }

    # Rows

    def _erase_rows(self, check: Check) -> None:
        collection = self._collection
        with self._store.catalog.read() as reader:
            marks = erased_in_ranges(reader, collection.record.id)
        deleted = collection.deleted
        gone = unerased(deleted, marks)
        texts = TextErasure(self._store, collection, gone, self._exclusive)
        with collection.readers.reading():
            texts.erase(check)
        self._report.blocks_rewritten = texts.block_count
        self._report.bytes_freed += texts.freed_bytes
        self._report.unsound += texts.unsound
        self._done += 1
        self._wait_for_readers(check)
        self._done += 1
        empty = empty_logs(collection, retired_logs(collection))
        self._exclusive(lambda: forget_logs(collection, empty))
        if len(gone):
            self._erase_keys(gone, check)
        self._done += 1
        for erase in self._erasers:
            check()
            if len(gone):
                erase(collection, gone, check)
            self._done += 1
        erased = deleted[~is_among(texts.kept, deleted)]
        if len(gone):
            self._exclusive(lambda: self._mark(erased))
        self._report.rows_erased = max(0, len(erased) - sum(marks.values()))

    def _wait_for_readers(self, check: Check) -> None:
        """Returns when every reader has left that began before: then nothing of the old files is needed, or there."""
        left = threading.Event()
        self._collection.remove_later(left.set)
        deadline = time.monotonic() + self._rules.readers_wait_s
        while not left.wait(_CHECK_S):
            check()
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"queries that began more than {self._rules.readers_wait_s:g} s ago still read what is to be "
                    "erased; start the compaction again when they have ended"
                )

    def _erase_keys(self, gone: RowIds, check: Check) -> None:
        keys = self._collection.keys
        with keys.maintaining:
            self._exclusive(lambda: keys.drop_recent(gone))
        with self._store.pins.replacing(
            check
        ):  # a run that a snapshot still names would keep the hash of an erased key
            for run_number in keys.holding(gone):
                check()
                self._erase_in_run(run_number, gone)

    def _erase_in_run(self, run_number: int, gone: RowIds) -> None:
        keys = self._collection.keys
        with keys.maintaining:
            change = keys.rewrite(run_number, gone)
            if change is not None:
                self._exclusive(partial(self._store.register_keys, self._collection, change))
                self._report.key_runs_rewritten += 1
                self._report.bytes_freed += change.removed[0].run.size_bytes - change.added.run.size_bytes

    def _mark(self, erased: RowIds) -> None:
        """On the commit thread."""
        counts = counts_by(erased, RANGE_ROWS)
        with self._store.catalog.write() as writer:
            check_not_deleted(writer, self._collection)
            put_erased_in_ranges(writer, self._collection.record.id, counts)
        self._store.disk.step("compact.marked")
        self._collection.erased_row_count = len(erased)

    def _result(self) -> dict[str, Any]:
        report, collection = self._report, self._collection
        has_erased = report.rows_erased or any(one["action"] != "none" for one in report.checkpoints.values())
        return {
            "rows_erased": report.rows_erased,
            "bytes_freed": max(0, report.bytes_freed),
            "checkpoints": report.checkpoints,
            "blocks_rewritten": report.blocks_rewritten,
            "key_runs_rewritten": report.key_runs_rewritten,
            "indexes_dropped": [*self._indexes.dropped, *self._fits.dropped_indexes],
            "fits_dropped": self._fits.dropped,
            "fits_influenced": self._fits.influenced(),
            "unverified": report.unsound,
            "snapshots": snapshots_holding(self._store.data, collection.record.id) if has_erased else [],
        }


def unerased(deleted: RowIds, marks: dict[int, int]) -> RowIds:
    """The deleted rows, sorted, of those ranges of row ids in which not all are marked erased."""
    counts = counts_by(deleted, RANGE_ROWS)
    due = np.array([range_ for range_, count in counts.items() if marks.get(range_, 0) != count], dtype=np.int64)
    return deleted[np.isin(deleted // RANGE_ROWS, due)] if len(due) else NO_ROWS
