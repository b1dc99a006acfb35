"""What a group of batches would change in one collection: decided, written and synced before anything is committed.

A draft starts from the committed state and changes none of it. ``add`` decides about one batch and writes its rows;
if it raises InvalidInput or Conflict the draft is as before and the batch alone is refused. ``sync`` makes
the bytes durable, ``commit`` puts the new state into a catalog transaction, ``install`` makes it the collection's.
Dropping a draft is all that a rollback takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from covector.blocks import column_of, decode_key
from covector.errors import Conflict, Internal, InvalidInput
from covector_server.ingest.batch import Batch, Outcome, WriterSpec
from covector_server.ingest.checkpoint_draft import CheckpointDraft, commit_checkpoint, merged, same_content
from covector_server.ingest.checks import check_writer
from covector_server.limits import Limits
from covector_server.metadata.catalog import Reader, Writer, number
from covector_server.metadata.fields import Value, canonical, new_fields
from covector_server.metadata.records import (
    BlockRecord,
    CheckpointRecord,
    CollectionCounters,
    WriterRecord,
)
from covector_server.storage.checkpoint import StoredCheckpoint
from covector_server.storage.collection import StoredCollection
from covector_server.storage.contract import Rows
from covector_server.storage.row_log import NEW, SUPPLEMENT, Block
from covector_server.storage.store import Store
from covector_server.storage.view import RowDetails, RowIds


@dataclass(frozen=True, slots=True)
class News:
    """What a batch tells of one of its rows that was not known: ``row`` is its place in the batch."""

    row: int
    text: bytes | None
    metadata: Mapping[str, Value] | None


class CollectionDraft:
    """One collection with the group's rows."""

    def __init__(self, store: Store, collection: StoredCollection, limits: Limits) -> None:
        self.collection = collection
        self._store = store
        self._limits = limits
        self._counters = collection.counters
        self._row_ids: dict[bytes, int] = {}
        self._details: dict[int, RowDetails] = {}  # of the group's new rows
        self._fields: dict[str, str] = {}
        self._blocks: list[tuple[int, int, BlockRecord]] = []  # kind, number, place
        self._checkpoints: dict[str, CheckpointDraft] = {}
        self._writers: dict[str, WriterRecord] = {}

    def add(self, spec: WriterSpec, batch: Batch, reader: Reader) -> Outcome:
        """Decides about a batch and writes its rows. A batch stored before is answered as it was."""
        known = self._stored_before(spec, batch, reader)
        if known is not None:
            return known
        check_writer(spec, self.collection)
        _check_dim(batch, self.collection)
        row_ids = self._find_keys(batch.keys)
        is_new = row_ids < 0
        supplement = self._check_details(batch, row_ids, spec)
        new_rows = _news(batch, is_new)
        fields = self._check_fields([*new_rows, *supplement])
        checkpoint = None if spec.checkpoint is None else self._checkpoint(spec, spec.checkpoint)
        row_ids[is_new] = self._counters.next_row_id + np.arange(is_new.sum())
        chosen = np.ones(len(batch), dtype=bool)
        if checkpoint is not None:
            chosen = self._choose_rows(checkpoint, spec, batch, row_ids)
        self._fields.update(fields)
        self._write_new_rows(batch, row_ids, new_rows)
        self._write_supplement(batch, row_ids, supplement)
        if checkpoint is None:
            stored, zero_rows = int(is_new.sum()), 0
        else:
            zero_rows = self._write_gradients(checkpoint, batch, row_ids, chosen)
            stored = int(chosen.sum())
        outcome = Outcome(stored, len(batch) - stored, zero_rows)
        self._writers[spec.writer_id] = WriterRecord(
            batch.sequence, batch.digest, stored, outcome.duplicate_row_count, zero_rows
        )
        return outcome

    def sync(self) -> None:
        """Returns when every byte the group wrote is on stable storage."""
        self.collection.log.sync()
        for draft in self._checkpoints.values():
            for array in draft.stored.arrays.values():
                array.sync()

    def commit(self, writer: Writer) -> None:
        """Puts the group's state into a transaction, after checking that the catalog says what the draft began from."""
        id_ = self.collection.record.id
        if writer.get("collections", number(id_)) is None:
            raise Conflict(f"collection {self.collection.record.name!r} was deleted")
        self._check_counters(writer)
        writer.put("collection_counters", number(id_), self._counters.encode())
        for name, type_ in self._fields.items():
            writer.put("fields", number(id_) + name.encode(), type_.encode())
        for kind, block_number, record in self._blocks:
            writer.put("row_blocks", number(id_, kind, block_number), record.encode())
        for writer_id, mark in self._writers.items():
            writer.put("writers", number(id_) + writer_id.encode(), mark.encode())
        for draft in self._checkpoints.values():
            commit_checkpoint(writer, id_, draft)

    def _check_counters(self, reader: Reader) -> None:
        committed = CollectionCounters.decode(
            reader.get("collection_counters", number(self.collection.record.id)) or b"{}"
        )
        if committed != self.collection.counters:
            raise Internal(f"the catalog says {committed}, memory {self.collection.counters}; restart the server")

    def install(self) -> None:
        """Makes the committed state the collection's, in one step for those who take a view."""
        with self.collection.changing:
            self._install()

    def _install(self) -> None:
        collection = self.collection
        collection.row_ids.update(self._row_ids)
        collection.fields.update(self._fields)
        for kind, _, record in self._blocks:
            (collection.blocks.new if kind == NEW else collection.blocks.supplements).append(record)
        for draft in self._checkpoints.values():
            row_ids = np.fromiter(draft.positions.keys(), dtype=np.int64, count=len(draft.positions))
            positions = np.fromiter(draft.positions.values(), dtype=np.int64, count=len(draft.positions))
            draft.stored.dead = merged(draft.stored.dead, draft.dead)
            draft.stored.positions = draft.stored.positions.with_rows(row_ids, positions)
            draft.stored.counters = draft.counters()
            collection.checkpoints[draft.stored.record.name] = draft.stored
        collection.counters = self._counters

    def discard(self) -> None:
        """Closes what the draft alone had opened."""
        for draft in self._checkpoints.values():
            if draft.is_new:
                draft.stored.close()

    def sealable(self) -> Iterable[StoredCheckpoint]:
        """The checkpoints the group wrote to."""
        return [draft.stored for draft in self._checkpoints.values()]

    def _stored_before(self, spec: WriterSpec, batch: Batch, reader: Reader) -> Outcome | None:
        mark = self._writers.get(spec.writer_id) or last_batch(reader, self.collection, spec.writer_id)
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

    def _find_keys(self, keys: list[bytes]) -> RowIds:
        committed, own = self.collection.row_ids, self._row_ids
        found = (committed.get(key, -1) if key not in own else own[key] for key in keys)
        return np.fromiter(found, dtype=np.int64, count=len(keys))

    def _check_fields(self, news: Sequence[News]) -> dict[str, str]:
        known = {**self.collection.fields, **self._fields}
        added = new_fields(known, ((one.row, one.metadata) for one in news if one.metadata))
        for name in added:
            self._limits.check("field_name_bytes", len(name.encode()), f"bytes of the name of field {name[:40]!r}")
        self._limits.check("metadata_fields", len(known) + len(added), "metadata fields of the collection")
        return added

    def _check_details(self, batch: Batch, row_ids: RowIds, spec: WriterSpec) -> list[News]:
        """The texts and metadata that are new to rows that stand. What is given twice must agree."""
        given = [
            row
            for row in np.flatnonzero(row_ids >= 0).tolist()
            if batch.texts[row] is not None or batch.metadata[row] is not None
        ]
        news = []
        for row, known in zip(given, self._details_of(row_ids[given]), strict=True):
            text, metadata = batch.texts[row], batch.metadata[row]
            old_text = None if known.text is None else known.text.encode()
            if spec.on_conflict != "ignore":
                _check_agreement("text", old_text, text, batch.keys[row])
                _check_agreement("metadata", known.metadata, metadata, batch.keys[row])
            new_text = text if old_text is None else None
            new_metadata = metadata if known.metadata is None else None
            if new_text is not None or new_metadata is not None:
                news.append(News(row, new_text, new_metadata))
        return news

    def _details_of(self, row_ids: RowIds) -> list[RowDetails]:
        stored = [row_id for row_id in row_ids.tolist() if row_id not in self._details]
        if stored:
            with self.collection.reading() as view:
                found = dict(zip(stored, view.details_of(np.array(stored, dtype=np.int64)), strict=True))
        return [self._details.get(row_id) or found[row_id] for row_id in row_ids.tolist()]

    def _checkpoint(self, spec: WriterSpec, name: str) -> CheckpointDraft:
        draft = self._checkpoints.get(name)
        if draft is None:
            stored = self.collection.checkpoints.get(name)
            is_new = stored is None
            if stored is None:
                stored = self._create_checkpoint(spec, name)
            else:
                stored.unpublish_tail()
            draft = CheckpointDraft(stored, is_new, stored.states(), stored.counters.zero_row_count, {}, [])
            self._checkpoints[name] = draft
        elif draft.is_new:
            check_writer(spec, self.collection, draft.stored.record)
        return draft

    def _create_checkpoint(self, spec: WriterSpec, name: str) -> StoredCheckpoint:
        self._limits.check("checkpoints", len(self.collection.checkpoints) + 1, "checkpoints of the collection")
        chunk_rows, shard_rows = self._store.new_checkpoint_rows(self.collection.space.dim)
        kind = {"function": spec.kind.function, "reduction": spec.kind.reduction, "correction": spec.kind.correction}
        record = CheckpointRecord(
            id=self._counters.next_checkpoint_id,
            name=name,
            eta=spec.eta,
            weights_digest=spec.weights_digest,
            kind=kind,  # type: ignore[arg-type]
            chunk_rows=chunk_rows,
            shard_rows=shard_rows,
        )
        stored = self.collection.checkpoint_at(record)
        stored.create()
        self._counters = replace(self._counters, next_checkpoint_id=record.id + 1)
        return stored

    def _choose_rows(
        self, draft: CheckpointDraft, spec: WriterSpec, batch: Batch, row_ids: RowIds
    ) -> npt.NDArray[np.bool_]:
        """Which rows of the batch are to be written: not those that stand with the same content, nor, with
        ``ignore``, those that stand with other content."""
        positions = draft.find(row_ids)
        chosen = positions < 0
        for row in np.flatnonzero(~chosen).tolist():
            if same_content(draft, int(positions[row]), batch, row) or spec.on_conflict == "ignore":
                continue
            if spec.on_conflict == "error":
                key = decode_key(batch.keys[row])
                raise Conflict(
                    f"key {key!r} has another gradient at checkpoint {spec.checkpoint!r}; "
                    "on_conflict='replace' takes the new one, 'ignore' keeps the old",
                    key=key,
                )
            chosen[row] = True
        return chosen

    def _write_new_rows(self, batch: Batch, row_ids: RowIds, news: list[News]) -> None:
        if not news:
            return
        self._append(NEW, batch, row_ids, news)
        self._counters = replace(self._counters, next_row_id=self._counters.next_row_id + len(news))
        for one in news:
            key, row_id = batch.keys[one.row], int(row_ids[one.row])
            text = None if one.text is None else one.text.decode()
            self._row_ids[key] = row_id
            self._details[row_id] = RowDetails(key, text, None if one.metadata is None else dict(one.metadata))

    def _write_supplement(self, batch: Batch, row_ids: RowIds, news: list[News]) -> None:
        if not news:
            return
        news = sorted(news, key=lambda one: int(row_ids[one.row]))
        self._append(SUPPLEMENT, batch, row_ids, news)
        self._counters = replace(self._counters, next_supplement=self._counters.next_supplement + 1)
        for one, known in zip(news, self._details_of(row_ids[[one.row for one in news]]), strict=True):
            self._details[int(row_ids[one.row])] = RowDetails(
                known.key,
                known.text if one.text is None else one.text.decode(),
                known.metadata if one.metadata is None else dict(one.metadata),
            )

    def _append(self, kind: int, batch: Batch, row_ids: RowIds, news: Sequence[News]) -> None:
        rows = [one.row for one in news]
        keys = column_of(batch.keys[row] for row in rows) if kind == NEW else None
        texts = [one.text for one in news]
        metadata = [None if one.metadata is None else canonical(one.metadata) for one in news]
        block = Block(
            kind,
            row_ids[rows],
            keys,
            column_of(texts) if any(text is not None for text in texts) else None,
            column_of(metadata) if any(value is not None for value in metadata) else None,
        )
        counters = self._counters
        record = self.collection.log.append(block, counters.log_file, counters.log_offset_bytes)
        block_number = record.first if kind == NEW else counters.next_supplement
        self._blocks.append((kind, block_number, record))
        self._counters = replace(
            counters, log_file=record.file, log_offset_bytes=record.offset_bytes + record.size_bytes
        )

    def _write_gradients(
        self, draft: CheckpointDraft, batch: Batch, row_ids: RowIds, chosen: npt.NDArray[np.bool_]
    ) -> int:
        """Writes the chosen rows of the batch and returns how many of them are all zero."""
        if not chosen.any() or batch.rows is None:
            return 0
        replaced = draft.find(row_ids[chosen])
        draft.dead.extend(replaced[replaced >= 0].tolist())
        first = draft.row_count
        columns: dict[str, Rows] = {
            "gradients": batch.rows,
            "scales": batch.scales,
            "row_ids": row_ids.astype(np.uint64),
            "trak_q": batch.trak_q,
        }
        for name, array in draft.stored.arrays.items():
            rows = columns[name] if chosen.all() else columns[name][chosen]
            draft.states[name] = array.write(draft.states[name], rows)
        draft.positions.update(zip(row_ids[chosen].tolist(), range(first, draft.row_count), strict=True))
        zero_rows = int((batch.scales[chosen] == 0).sum())
        draft.zero_row_count += zero_rows
        return zero_rows


def _news(batch: Batch, is_new: npt.NDArray[np.bool_]) -> list[News]:
    """All that the batch tells of its new rows."""
    return [News(row, batch.texts[row], batch.metadata[row]) for row in np.flatnonzero(is_new).tolist()]


def _check_dim(batch: Batch, collection: StoredCollection) -> None:
    """The collection may have been made anew, with another dim, since the batch was received."""
    if batch.rows is not None and batch.rows.shape[1] != collection.space.dim:
        raise InvalidInput(f"rows have dim {batch.rows.shape[1]}, the collection {collection.space.dim}", field="dim")


def last_batch(reader: Reader, collection: StoredCollection, writer_id: str) -> WriterRecord | None:
    """The last batch stored for a writer, None for none."""
    stored = reader.get("writers", number(collection.record.id) + writer_id.encode())
    return None if stored is None else WriterRecord.decode(stored)


def _check_agreement(what: str, known: object, given: object, key: bytes) -> None:
    if known is not None and given is not None and known != given:
        raise Conflict(
            f"key {decode_key(key)!r} has another {what}: {_short(known)} is stored, {_short(given)} was sent; "
            "a row's text and metadata are given once",
            key=decode_key(key),
        )


def _short(value: object) -> str:
    text = repr(value.decode() if isinstance(value, bytes) else value)
    return text if len(text) <= 60 else text[:57] + "..."
