"""Indexes follow their checkpoint: when its rows move together, and when dead ones are erased.

*Compaction* moves rows to other positions. Before the switch each index is written anew without the rows that are
dropped, and the transaction of the switch lists the new files for the new generation. *Erasure* leaves every row where
it was: the transaction says the new generation, no file changes. Either way, codes of dead rows are blanked afterwards:
a record counts the dead positions that hold nothing, and where that is not all of them the files are written anew, so
what a crash left undone is done the next time. An index that cannot follow, because its kind cannot leave rows out or
its files are damaged, is dropped, and the operation's result says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Self

import numpy as np

from covector.errors import Corrupt, CovectorError
from covector_server.index.contract import Changes
from covector_server.index.kinds import backend_of
from covector_server.metadata.catalog import Writer
from covector_server.metadata.records import IndexPart, IndexRecord
from covector_server.storage.checkpoint import StoredCheckpoint
from covector_server.storage.collection import StoredCollection
from covector_server.storage.generation import Check, Exclusive, GenerationCopy, check_not_deleted
from covector_server.storage.index_files import (
    INDEXES,
    Draft,
    drafting,
    index_key,
    listed,
    open_files,
    put_index,
    remove_index,
)
from covector_server.storage.positions import NO_POSITIONS
from covector_server.storage.store import Store
from covector_server.storage.view import Positions

_log = logging.getLogger(__name__)
Forget = Callable[[Path], None]  # lets go of what is open of an index's directory


def forget_nothing(directory: Path) -> None:
    """``Forget`` where nobody has indexes open."""


class IndexCarrier:
    """``generation.Follower`` for one collection, and the blanking afterwards. ``dropped``: ids of indexes that had to
    go."""

    def __init__(self, store: Store, collection: StoredCollection, exclusive: Exclusive, forget: Forget) -> None:
        self.dropped: list[str] = []
        self._store = store
        self._collection = collection
        self._exclusive = exclusive
        self._forget = forget
        self._held = ExitStack()  # the drafts of the switch under way
        self._drafts: list[Draft] = []
        self._carried: dict[str, IndexRecord] = {}  # by directory as it was
        self._retired: list[str] = []

    # The switch

    def __enter__(self) -> Self:
        self._carried, self._retired, self._drafts = {}, [], []
        self._held = ExitStack()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._held.__exit__(kind, error, None)
        for directory in self._retired if kind is None else ():
            self.remove_later(directory)

    def prepare(self, copy: GenerationCopy, check: Check) -> None:
        """Writes the indexes without the rows that were dropped."""
        dropped = copy.dropped()
        if not len(dropped):
            return
        for record in self._of(copy.old):
            (part,) = record.covered
            row_count = min(part.row_count, copy.row_count)
            left_out = dropped[dropped < row_count]
            changes = Changes(row_count - len(left_out), left_out, NO_POSITIONS)
            written = self._rewritten(record, changes, check, self._held)
            if written is not None:
                moved = replace(part, generation=copy.new.record.generation, row_count=changes.row_count, blank_count=0)
                self._carried[record.directory] = replace(written, parts=[asdict(moved)])

    def commit(self, writer: Writer, copy: GenerationCopy) -> None:
        """Lists what was written, or the old files where no row moved; what cannot follow goes."""
        id_, has_moved = self._collection.record.id, bool(len(copy.dropped()))
        for draft in self._drafts:
            draft.may_be_listed = True
        for record in [record for record in listed(writer, id_) if _touches(record, copy.old)]:
            if _is_of(record, copy.old) and not has_moved:
                (part,) = record.covered
                kept = replace(part, generation=copy.new.record.generation)
                put_index(writer, id_, replace(record, parts=[asdict(kept)]))
                continue
            carried = self._carried.get(record.directory)
            self._retired.append(record.directory)
            if carried is None:
                remove_index(writer, id_, record.id)
                self.dropped.append(record.id)
            else:
                put_index(writer, id_, carried)

    # Blanking

    def blank(self, check: Check) -> None:
        """Takes the codes of dead rows out of every index."""
        for checkpoint in list(self._collection.checkpoints.values()):
            for record in self._of(checkpoint):
                check()
                dead = checkpoint.dead[checkpoint.dead < record.covered[0].row_count]
                if len(dead) != record.covered[0].blank_count:
                    self._blank(record, dead, check)

    def _blank(self, record: IndexRecord, dead: Positions, check: Check) -> None:
        (part,) = record.covered
        self._drafts = []
        with ExitStack() as held:
            written = self._rewritten(record, Changes(part.row_count, NO_POSITIONS, dead), check, held)
            if written is not None:
                blanked = replace(part, blank_count=len(dead))
                written = replace(written, parts=[asdict(blanked)])
            self._store.disk.step("index.blanked")
            for draft in self._drafts:
                draft.may_be_listed = True
            is_switched = self._exclusive(lambda: self._switch(record, written))
            self._store.disk.step("index.switched")
        if is_switched or written is None:
            self.remove_later(record.directory)
        else:  # another index took its place meanwhile
            self.remove_later(written.directory)

    def _switch(self, record: IndexRecord, written: IndexRecord | None) -> bool:
        """On the commit thread: lists the new files, None for none. False if the index was replaced meanwhile."""
        id_ = self._collection.record.id
        with self._store.catalog.write() as writer:
            check_not_deleted(writer, self._collection)
            if writer.get("indexes", index_key(id_, record.id)) != record.encode():
                return False
            if written is None:
                remove_index(writer, id_, record.id)
                self.dropped.append(record.id)
            else:
                put_index(writer, id_, written)
        return True

    # Both

    def _of(self, checkpoint: StoredCheckpoint) -> list[IndexRecord]:
        with self._store.catalog.read() as reader:
            return [record for record in listed(reader, self._collection.record.id) if _is_of(record, checkpoint)]

    def _rewritten(self, record: IndexRecord, changes: Changes, check: Check, held: ExitStack) -> IndexRecord | None:
        """The record of the index with some changes, its parts as they were, its files durable in a directory that is
        removed if ``held`` ends with an exception; None if it cannot follow."""
        directory = self._collection.directory / INDEXES
        backend = backend_of(record.kind)
        try:
            files = open_files(directory / record.directory, record, check)
        except Corrupt as error:
            _log.warning("index %s is dropped: %s", record.id, error.message)
            return None
        draft = held.enter_context(drafting(self._collection.directory, record.kind, self._store.disk))
        parameters = backend.rewrite(files, changes, draft, check)
        if parameters is None:
            self._discard(draft)
            return None
        sizes, checksum = draft.add_manifest(record.kind, parameters)
        self._drafts.append(draft)
        return replace(record, directory=draft.directory.name, parameters=parameters, files=sizes, checksum=checksum)

    def _discard(self, draft: Draft) -> None:
        self._store.disk.remove_tree(draft.directory)

    def remove_later(self, directory: str) -> None:
        """Has a directory removed that is not listed any more, after its last reader."""
        retire_directory(self._store, self._collection, directory, self._forget)


def retire_directory(store: Store, collection: StoredCollection, directory: str, forget: Forget) -> None:
    """Removes the directory of an index that is not listed any more, after the last reader that may need it."""
    path = collection.directory / INDEXES / directory

    def remove() -> None:
        forget(path)
        try:
            with store.catalog.read() as reader:
                if any(record.directory == directory for record in listed(reader, collection.record.id)):
                    return
        except CovectorError:
            return
        store.disk.remove_tree(path)

    collection.remove_later(remove)


def _touches(record: IndexRecord, checkpoint: StoredCheckpoint) -> bool:
    """Whether an index has rows of a checkpoint."""
    return any(part.checkpoint_id == checkpoint.record.id for part in record.covered)


def _is_of(record: IndexRecord, checkpoint: StoredCheckpoint) -> bool:
    """Whether an index is of this generation of a checkpoint."""
    parts = record.covered
    found = [(part.checkpoint_id, part.generation) for part in parts]
    return found == [(checkpoint.record.id, checkpoint.record.generation)]


def part_of(checkpoint_id: int, generation: int, row_count: int, dead: Positions) -> dict[str, int]:
    """What a new index covers, as its record says it."""
    return asdict(IndexPart(checkpoint_id, generation, row_count, int(np.searchsorted(dead, row_count))))
