"""What a group of batches would change in one collection: decided, written and synced before anything is committed.

A draft starts from the committed state, or from the end of the draft before it, which is being synced meanwhile, and
changes neither. ``add`` decides about one batch and writes its rows; if it raises InvalidInput or Conflict the draft is
as before and the batch alone is refused. ``syncs`` make the bytes durable, ``commit`` puts the new state into a catalog
transaction, ``install`` makes it the collection's. Dropping a draft, and the keys that it added, is all that a rollback
takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from covector.blocks import column_of
from covector.errors import Conflict, Internal, InvalidInput
from covector_server.ingest.batch import Batch, Outcome, WriterSpec
from covector_server.ingest.checkpoint_draft import CheckpointDraft, Choice
from covector_server.ingest.checks import check_open, check_writer
from covector_server.ingest.details import News, news_of_new_rows, news_of_standing_rows, rows_with_details
from covector_server.kernels.pages import Losses
from covector_server.limits import Limits
from covector_server.metadata.catalog import Reader, Writer, number
from covector_server.metadata.fields import canonical, new_fields
from covector_server.metadata.records import BlockRecord, CheckpointRecord, CollectionCounters, WriterRecord
from covector_server.storage.checkpoint import StoredCheckpoint
from covector_server.storage.collection import StoredCollection
from covector_server.storage.positions import is_among
from covector_server.storage.row_block import Section, new_block, supplement_block
from covector_server.storage.row_log import NEW, SUPPLEMENT
from covector_server.storage.row_reader import RowReader
from covector_server.storage.store import Store
from covector_server.storage.syncs import Syncs
from covector_server.storage.view import RowIds

Blocks = list[tuple[int, BlockRecord]]  # number in the catalog, place


class CollectionDraft:
    """One collection with the group's rows. ``base``: the draft of the group before, if that is not committed yet."""

    def __init__(
        self, store: Store, collection: StoredCollection, limits: Limits, base: CollectionDraft | None = None
    ) -> None:
        self.collection = collection
        self.syncs = Syncs()
        self._store = store
        self._limits = limits
        self._base = base
        self._began: CollectionCounters = collection.counters if base is None else base.counters
        self.counters: CollectionCounters = self._began
        self._fields: dict[str, str] = {}
        self._new_blocks: Blocks = []
        self._supplements: Blocks = []
        self._checkpoints: dict[str, CheckpointDraft] = {}
        self._writers: dict[str, WriterRecord] = {}
        self._fitting: dict[str, WriterSpec] = {}  # by writer, of those that were looked at
        self._losses = Losses()

    def add(self, spec: WriterSpec, batch: Batch, reader: Reader) -> Outcome:
        """Decides about a batch and writes its rows. A batch stored before is answered as it was."""
        known = self._stored_before(spec, batch, reader)
        if known is not None:
            return known
        self._check_writer(spec)
        _check_dim(batch, self.collection)
        row_ids = self._find_keys(batch)
        is_new = row_ids < 0
        new_count = int(np.count_nonzero(is_new))
        supplement = [] if new_count == len(batch) else self._check_details(batch, row_ids, spec)
        fields = self._check_fields(batch, is_new, supplement)
        checkpoint = self._checkpoint_for(spec)
        row_ids[is_new] = np.arange(self.counters.next_row_id, self.counters.next_row_id + new_count)
        choice = Choice(is_new) if checkpoint is None else self._choice(checkpoint, spec, batch, row_ids, is_new)
        # Decided. From here on only the disk can fail, and then the whole group does.
        self._fields.update(fields)
        self._write_new_rows(batch, row_ids, is_new, new_count)
        self._write_supplement(batch, row_ids, supplement)
        zero_rows = 0
        if checkpoint is not None:
            zero_rows = checkpoint.write(batch, row_ids, choice)
        stored = int(np.count_nonzero(choice.rows))
        outcome = Outcome(stored, len(batch) - stored, zero_rows)
        self._writers[spec.writer_id] = WriterRecord(
            batch.sequence, batch.digest, stored, outcome.duplicate_row_count, zero_rows
        )
        return outcome

    def finish(self) -> None:
        """Writes what waited for the whole group; no batch comes after it."""
        self.collection.log.write_held(self.syncs)
        for draft in self._checkpoints.values():
            draft.write_held()

    def commit(self, writer: Writer) -> None:
        """Puts the group's state into a transaction, after checking that the catalog says what the draft began from."""
        id_ = self.collection.record.id
        if writer.get("collections", number(id_)) is None:
            raise Conflict(f"collection {self.collection.record.name!r} was deleted")
        committed = CollectionCounters.decode(writer.get("collection_counters", number(id_)) or b"{}")
        if committed != self._began:
            raise Internal(f"the catalog says {committed}, the group began from {self._began}; restart the server")
        writer.put("collection_counters", number(id_), self.counters.encode())
        for name, type_ in self._fields.items():
            writer.put("fields", number(id_) + name.encode(), type_.encode())
        for kind, blocks in ((NEW, self._new_blocks), (SUPPLEMENT, self._supplements)):
            for block_number, record in blocks:
                writer.put("row_blocks", number(id_, kind, block_number), record.encode())
        for writer_id, mark in self._writers.items():
            writer.put("writers", number(id_) + writer_id.encode(), mark.encode())
        for draft in self._checkpoints.values():
            draft.commit(writer, id_)

    def install(self) -> None:
        """Makes the committed state the collection's, in one step for those who take a view."""
        collection = self.collection
        with collection.changing:
            collection.fields.update(self._fields)
            for _, record in self._supplements:
                collection.supplements.append(record)
            for draft in self._checkpoints.values():
                draft.install()
                collection.checkpoints[draft.stored.record.name] = draft.stored
            collection.counters = self.counters
        self._base = None

    def discard(self) -> None:
        """Takes the draft's keys back out of the key table, and closes what it alone had opened."""
        counters = self.collection.counters
        self.collection.keys.forget_from(counters.next_row_id)
        self.collection.log.close_after(counters.log_file)
        for draft in self._checkpoints.values():
            draft.stored.positions.forget()
            for array in draft.stored.arrays.values():
                array.close_after(draft.stored.counters.row_count)
            if draft.is_new:
                draft.stored.close()

    def sealable(self) -> list[StoredCheckpoint]:
        """The checkpoints the group wrote to."""
        return [draft.stored for draft in self._checkpoints.values()]

    # Step 1: deciding

    def _stored_before(self, spec: WriterSpec, batch: Batch, reader: Reader) -> Outcome | None:
        mark = self._mark_of(spec.writer_id) or last_batch(reader, self.collection, spec.writer_id)
        last = 0 if mark is None else mark.sequence
        if batch.sequence > last + 1 or batch.sequence < 1:
            raise InvalidInput(f"batch {batch.sequence} came after batch {last}; the writer's next is {last + 1}")
        if mark is None or batch.sequence > last:
            return None
        if batch.sequence == last and batch.digest != mark.digest:
            raise Conflict(f"batch {last} of this writer is stored with other content; use a new writer id")
        if batch.sequence == last:
            return Outcome(mark.stored_row_count, mark.duplicate_row_count, mark.zero_row_count)
        return Outcome(0, len(batch), 0)

    def _mark_of(self, writer_id: str) -> WriterRecord | None:
        mark = self._writers.get(writer_id)
        return mark if mark is not None or self._base is None else self._base._writers.get(writer_id)

    def _find_keys(self, batch: Batch) -> RowIds:
        """The row ids of the batch's keys, the group's own included, -1 for a new key."""
        found = self.collection.keys.find(batch.keys, batch.hashes, self.counters.next_row_id, self._keys_of)
        if len(self.collection.deleted):
            found[is_among(self.collection.deleted, found)] = -1
        return found

    def _keys_of(self, row_ids: RowIds) -> list[bytes]:
        return self._rows().keys_of(row_ids)

    def _rows(self) -> RowReader:
        """Reads rows as the draft has them: what the group wrote can be read back from the files."""
        drafts = [self] if self._base is None else [self._base, self]
        return self.collection.rows(
            [record for draft in drafts for _, record in draft._new_blocks],
            [record for draft in drafts for _, record in draft._supplements],
        )

    def _check_details(self, batch: Batch, row_ids: RowIds, spec: WriterSpec) -> list[News]:
        given = rows_with_details(batch, row_ids)
        rows = self._rows()
        if not given or rows.same_details(row_ids, batch.packed.texts, batch.packed.metadata):
            return []  # a job that is run again sends the same batches
        known = rows.details_of(row_ids[given])
        return news_of_standing_rows(batch, given, known, must_agree=spec.on_conflict != "ignore")

    def _choice(
        self,
        checkpoint: CheckpointDraft,
        spec: WriterSpec,
        batch: Batch,
        row_ids: RowIds,
        is_new: npt.NDArray[np.bool_],
    ) -> Choice:
        """What of the batch is to be written. Raises Unavailable, rather than a Conflict, where stored rows that it was
        compared with could not be read."""
        try:
            return checkpoint.choose(spec, batch, row_ids, is_new)
        finally:
            self._losses.check()

    def _check_fields(self, batch: Batch, is_new: npt.NDArray[np.bool_], supplement: Sequence[News]) -> dict[str, str]:
        """The fields that the batch adds. Raises InvalidInput where a value is not of its field's type."""
        known = self.collection.fields if self._base is None else {**self.collection.fields, **self._base._fields}
        known = {**known, **self._fields} if self._fields else known
        if batch.fields is not None and all(known.get(name) == type_ for name, type_ in batch.fields.items()):
            return {}
        news = [*news_of_new_rows(batch, np.flatnonzero(is_new).tolist()), *supplement]
        added = new_fields(known, ((one.row, one.metadata) for one in news if one.metadata))
        for name in added:
            self._limits.check("field_name_bytes", len(name.encode()), f"bytes of the name of field {name[:40]!r}")
        self._limits.check("metadata_fields", len(known) + len(added), "metadata fields of the collection")
        return added

    def _check_writer(self, spec: WriterSpec) -> None:
        """Whether a writer fits is looked at with its first batch of a group: what it is compared with does not change
        meanwhile."""
        if self._fitting.get(spec.writer_id) is spec:
            check_open(self.collection)
        else:
            check_writer(spec, self.collection)

    def _checkpoint_for(self, spec: WriterSpec) -> CheckpointDraft | None:
        if spec.checkpoint is None:
            draft = None
        elif self._fitting.get(spec.writer_id) is spec:
            draft = self._checkpoints[spec.checkpoint]
        else:
            draft = self._checkpoint(spec, spec.checkpoint)
        self._fitting[spec.writer_id] = spec
        return draft

    def _checkpoint(self, spec: WriterSpec, name: str) -> CheckpointDraft:
        draft = self._checkpoints.get(name)
        if draft is not None:
            check_writer(spec, self.collection, draft.stored.record)
            return draft
        base = None if self._base is None else self._base._checkpoints.get(name)
        stored = self.collection.checkpoints.get(name) if base is None else base.stored
        is_new = stored is None
        if stored is None:
            stored = self._create_checkpoint(spec, name)
        else:
            check_writer(spec, self.collection, stored.record)
            stored.unpublish_tail()
        draft = self._checkpoints[name] = CheckpointDraft.after(stored, self.syncs, is_new=is_new, base=base)
        return draft

    def _create_checkpoint(self, spec: WriterSpec, name: str) -> StoredCheckpoint:
        known = set(self.collection.checkpoints) | set(self._checkpoints)
        self._limits.check("checkpoints", len(known) + 1, "checkpoints of the collection")
        chunk_rows, shard_rows = self._store.new_checkpoint_rows(self.collection.space.dim)
        kind = {"function": spec.kind.function, "reduction": spec.kind.reduction, "correction": spec.kind.correction}
        record = CheckpointRecord(
            id=self.counters.next_checkpoint_id,
            name=name,
            eta=spec.eta,
            weights_digest=spec.weights_digest,
            kind=kind,  # type: ignore[arg-type]
            chunk_rows=chunk_rows,
            shard_rows=shard_rows,
        )
        stored = self.collection.checkpoint_at(record)
        stored.create()
        self.counters = replace(self.counters, next_checkpoint_id=record.id + 1)
        return stored

    # Step 2: writing

    def _write_new_rows(self, batch: Batch, row_ids: RowIds, is_new: npt.NDArray[np.bool_], count: int) -> None:
        if not count:
            return
        first = self.counters.next_row_id
        packed = batch.packed
        if count == len(batch):
            data = new_block(first, count, packed.keys, packed.texts, packed.metadata)
        else:
            rows = np.flatnonzero(is_new).tolist()
            news = news_of_new_rows(batch, rows)
            keys = Section.of_column(column_of(batch.keys.value(row) for row in rows))
            data = new_block(first, count, keys, *_packed(news))
        record = self._append(data, first, first + count - 1, count)
        self._new_blocks.append((first, record))
        self.collection.keys.add(batch.hashes[is_new], row_ids[is_new])

    def _write_supplement(self, batch: Batch, row_ids: RowIds, news: list[News]) -> None:
        if not news:
            return
        news = sorted(news, key=lambda one: int(row_ids[one.row]))
        ids = row_ids[[one.row for one in news]]
        record = self._append(supplement_block(ids, *_packed(news)), int(ids[0]), int(ids[-1]), len(ids))
        self._supplements.append((self.counters.next_supplement, record))
        self.counters = replace(self.counters, next_supplement=self.counters.next_supplement + 1)

    def _append(self, data: bytes, first: int, last: int, row_count: int) -> BlockRecord:
        log, counters = self.collection.log, self.counters
        file, offset_bytes = log.place(len(data), counters.log_file, counters.log_offset_bytes)
        log.append(data, file, offset_bytes)
        self.counters = counters.after_block(last, file, offset_bytes + len(data))
        return BlockRecord(file, offset_bytes, len(data), first, last, row_count)


def _packed(news: Sequence[News]) -> tuple[Section, Section]:
    """The texts and the metadata of some rows, as a block holds them."""
    texts = [one.text for one in news]
    metadata = [None if one.metadata is None else canonical(one.metadata) for one in news]
    return (
        Section.of_column(column_of(texts) if any(text is not None for text in texts) else None),
        Section.of_column(column_of(metadata) if any(value is not None for value in metadata) else None),
    )


def _check_dim(batch: Batch, collection: StoredCollection) -> None:
    """The collection may have been made anew, with another dim, since the batch was received."""
    if batch.rows is not None and batch.rows.shape[1] != collection.space.dim:
        raise InvalidInput(f"rows have dim {batch.rows.shape[1]}, the collection {collection.space.dim}", field="dim")


def last_batch(reader: Reader, collection: StoredCollection, writer_id: str) -> WriterRecord | None:
    """The last batch stored for a writer, None for none."""
    stored = reader.get("writers", number(collection.record.id) + writer_id.encode())
    return None if stored is None else WriterRecord.decode(stored)
