"""Fits follow their checkpoints: when rows move together, and when dead ones are erased.

A, the map of a fit, is made of sums over all rows: a row that is erased keeps its part in them, and the list of fits
says of how many rows that is so. Weights that are stored by row go with the row: the part is written anew without them,
and the transaction of the switch lists the new files for the new generation. Weights are kept by row id, which outlives
a compaction, so nothing else changes. A fit on its way that had begun with the checkpoint loses its state, in which
single rows may wait to be added: asked for again it begins anew.

A part that cannot follow because its files are damaged takes the fit and its indexes with it, and the operation's
result says so.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any, Self

import numpy as np

from covector.errors import Corrupt
from covector_server.fit.stored import ROW_FACTORS
from covector_server.jobs.fit_building import lost_count
from covector_server.jobs.fitting import retire_fit_directory
from covector_server.jobs.index_carrying import Forget, retire_directory
from covector_server.metadata.catalog import Writer
from covector_server.metadata.records import FilesRecord, FitPart, FitRecord, IndexRecord
from covector_server.storage.checkpoint import StoredCheckpoint
from covector_server.storage.collection import StoredCollection
from covector_server.storage.drafts import Draft
from covector_server.storage.fit_files import (
    FITS,
    array_directory,
    arrays_of,
    fit_draft,
    listed_fits,
    open_fit_files,
    put_fit,
    remove_fit,
    write_fit_files,
)
from covector_server.storage.generation import Check, GenerationCopy
from covector_server.storage.index_files import remove_fitless
from covector_server.storage.positions import NO_POSITIONS
from covector_server.storage.store import Store
from covector_server.storage.strips import live_mask
from covector_server.storage.view import RowIds

_log = logging.getLogger(__name__)
COLUMN_ROWS = 1 << 18  # whose ids are looked at at once


class FitCarrier:
    """``generation.Follower`` for one collection. ``dropped``: ids of fits that had to go, ``dropped_indexes``: of the
    indexes for them."""

    def __init__(self, store: Store, collection: StoredCollection, forget: Forget) -> None:
        self.dropped: list[str] = []
        self.dropped_indexes: list[str] = []
        self._store = store
        self._collection = collection
        self._forget = forget
        self._held = ExitStack()  # the drafts of the switch under way
        self._drafts: list[Draft] = []
        self._written: dict[str, FitPart] = {}  # by directory as it was
        self._damaged: set[str] = set()
        self._retired: list[str] = []
        self._retired_indexes: list[IndexRecord] = []
        self._dead = NO_POSITIONS  # when the parts were written

    def __enter__(self) -> Self:
        self._written, self._retired, self._drafts, self._damaged = {}, [], [], set()
        self._retired_indexes = []
        self._held = ExitStack()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._held.__exit__(kind, error, None)
        for directory in self._retired if kind is None else ():
            retire_fit_directory(self._store, self._collection, directory, self._forget)
        for index in self._retired_indexes if kind is None else ():
            self.dropped_indexes.append(index.id)
            retire_directory(self._store, self._collection, index.directory, self._forget)

    def prepare(self, copy: GenerationCopy, check: Check) -> None:
        """Writes the parts without the weights of rows that died since these were written."""
        with self._store.catalog.read() as reader:
            records = listed_fits(reader, self._collection.record.id)
        dead = self._dead = copy.old.dead
        for part in [part for record in records for part in record.covered if _is_of(part, copy.old)]:
            if not _has_weights(part) or int(np.searchsorted(dead, part.row_count)) == part.blank_count:
                continue
            try:
                self._written[part.stored.directory] = self._without_dead(part, copy.old, check)
            except Corrupt as error:
                _log.warning("a fit is dropped: %s", error.message)
                self._damaged.add(part.stored.directory)

    def commit(self, writer: Writer, copy: GenerationCopy) -> None:
        """Lists what was written for the new generation, and what stays as it is."""
        id_ = self._collection.record.id
        for draft in self._drafts:
            draft.may_be_listed = True
        for record in listed_fits(writer, id_):
            if any(self._is_left_behind(part, copy) for part in record.covered):
                remove_fit(writer, id_, record.id)
                self.dropped.append(record.id)
                self._retired += [one.directory for one in record.stored]
                continue
            followed = self._followed(record, copy)
            if followed != record:
                kept = {one.directory for one in followed.stored}
                self._retired += [one.directory for one in record.stored if one.directory not in kept]
                put_fit(writer, id_, followed)
        self._retired_indexes += remove_fitless(writer, id_)

    def influenced(self) -> dict[str, int]:
        """By id of a fit, how many rows that are gone still have a part in it."""
        with self._store.catalog.read() as reader:
            records = listed_fits(reader, self._collection.record.id)
        by_id = {one.record.id: one for one in list(self._collection.checkpoints.values())}
        counts = {
            record.id: sum(
                lost_count(part, by_id[part.checkpoint_id].dead)
                for part in record.covered
                if part.checkpoint_id in by_id
            )
            for record in records
        }
        return {fit: count for fit, count in counts.items() if count}

    def _is_left_behind(self, part: FitPart, copy: GenerationCopy) -> bool:
        """Whether a part cannot follow: it is damaged, or has weights of rows that died and were dropped at the last
        moment."""
        if part.stored.directory in self._damaged:
            return True
        late = np.setdiff1d(copy.dropped(), self._dead)
        return _is_of(part, copy.old) and _has_weights(part) and bool(len(late)) and int(late[0]) < part.row_count

    def _followed(self, record: FitRecord, copy: GenerationCopy) -> FitRecord:
        parts: list[dict[str, Any]] = []
        for part in record.covered:
            is_here = part.checkpoint_id == copy.old.record.id
            parts.append(asdict(self._moved(part, copy) if is_here else part))
        if record.state_checkpoint_id == copy.old.record.id:
            record = replace(record, state=None, state_checkpoint_id=0)
        return replace(record, parts=parts)

    def _moved(self, part: FitPart, copy: GenerationCopy) -> FitPart:
        """A part for the new generation; one that was of another than the old stays so, and is not used."""
        if not _is_of(part, copy.old):
            return part
        part = self._written.get(part.stored.directory, part)
        dropped_count = int(np.searchsorted(copy.dropped(), part.row_count))
        return replace(
            part,
            generation=copy.new.record.generation,
            row_count=part.row_count - dropped_count,
            blank_count=max(0, part.blank_count - dropped_count),
        )

    def _without_dead(self, part: FitPart, checkpoint: StoredCheckpoint, check: Check) -> FitPart:
        files = open_fit_files(self._collection.directory / FITS, part.stored, check)
        arrays, dead_count = arrays_of(files), int(np.searchsorted(checkpoint.dead, part.row_count))
        factors = np.array(arrays[ROW_FACTORS])
        gone = self._gone(part, checkpoint, check)
        factors[gone[gone < len(factors)]] = np.nan
        method = part.stored.directory.partition("-")[0]
        draft = self._held.enter_context(fit_draft(self._collection.directory, method, self._store.disk))
        facts = files.parameters
        stored: FilesRecord = write_fit_files(draft, facts, {**arrays, ROW_FACTORS: factors}, check)
        self._drafts.append(draft)
        return replace(part, files=asdict(stored), blank_count=dead_count)

    def _gone(self, part: FitPart, checkpoint: StoredCheckpoint, check: Check) -> RowIds:
        """Ids at dead positions that the part covers, and at no live one: what stands by such an id is of a row that is
        no more."""
        view = checkpoint.view(self._collection.damages)
        found: dict[bool, list[RowIds]] = {True: [], False: []}
        for start in range(0, part.row_count, COLUMN_ROWS):
            check()
            stop = min(start + COLUMN_ROWS, part.row_count)
            row_ids, live = view.columns(start, stop).row_ids, live_mask(view.dead, start, stop)
            for is_live in (True, False):
                found[is_live].append(row_ids[live == is_live])
        none = np.empty(0, dtype=np.int64)
        alive, dead = (np.concatenate([none, *found[is_live]]) for is_live in (True, False))
        return np.setdiff1d(dead, alive)


def _is_of(part: FitPart, checkpoint: StoredCheckpoint) -> bool:
    record = checkpoint.record
    return (part.checkpoint_id, part.generation) == (record.id, record.generation)


def _has_weights(part: FitPart) -> bool:
    return f"{array_directory(ROW_FACTORS)}/zarr.json" in part.stored.files
