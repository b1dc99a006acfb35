"""Keys, texts and metadata of rows, read from the row log: a block of new rows, and the supplements that came later."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from covector.blocks import Column
from covector.errors import Corrupt
from covector_server.metadata.records import BlockRecord
from covector_server.storage.row_block import Section
from covector_server.storage.row_blocks import RowBlocks
from covector_server.storage.row_log import RowLog
from covector_server.storage.view import RowDetails, RowIds


@dataclass(frozen=True, slots=True)
class RowReader:
    """Reads rows as of some commit; ``supplements(low, high)``: the supplements of then that may tell of rows
    [low, high], in order of arrival."""

    log: RowLog
    blocks: RowBlocks
    supplements: Callable[[int, int], Sequence[BlockRecord]]

    def keys_of(self, row_ids: RowIds) -> list[bytes]:
        """The encoded keys of rows, in this order."""
        keys: list[bytes] = [b""] * len(row_ids)
        for record, places in self.blocks.holding(row_ids):
            column = self.keys_in(record)
            for place, offset in zip(places.tolist(), (row_ids[places] - record.first).tolist(), strict=True):
                keys[place] = column.value(offset) or b""
        return keys

    def details_of(self, row_ids: RowIds) -> list[RowDetails]:
        """Key, text and metadata of rows, in this order."""
        found: dict[int, RowDetails] = {}
        for record, places in self.blocks.holding(row_ids):
            block = self.log.read(record)
            for row_id in row_ids[places].tolist():
                key, text, metadata = (
                    None if column is None else column.value(row_id - record.first)
                    for column in (block.keys, block.texts, block.metadata)
                )
                found[row_id] = RowDetails(key or b"", _text(text), _object(metadata))
        for row_id, text, metadata in self._supplements(row_ids):
            old = found[row_id]
            found[row_id] = RowDetails(
                old.key,
                old.text if text is None else _text(text),
                old.metadata if metadata is None else _object(metadata),
            )
        return [found[int(row_id)] for row_id in row_ids]

    def same_details(self, row_ids: RowIds, texts: Section, metadata: Section) -> bool:
        """Whether rows are just those of one block, in its order, with these texts and metadata and no later ones. A
        quick look: False may also mean that it takes a closer one."""
        first, last = int(row_ids[0]), int(row_ids[-1])
        if last - first + 1 != len(row_ids) or (np.diff(row_ids) != 1).any() or self.supplements(first, last):
            return False
        record, _ = next(self.blocks.holding(row_ids[:1]))
        return (record.first, record.last) == (first, last) and self.log.read(record).holds(texts, metadata)

    def metadata(self, start: int, stop: int) -> Iterator[tuple[int, list[dict[str, Any] | None]]]:
        """The metadata of rows [start, stop), in order, as (first row id, one entry a row) runs."""
        for record in self.blocks.between(start, stop):
            first, last = max(start, record.first), min(stop - 1, record.last)
            column = self.log.read(record).metadata
            values = [None] * record.row_count if column is None else column.values()
            run = [_object(value) for value in values[first - record.first : last + 1 - record.first]]
            for row_id, _, metadata in self._supplements(np.arange(first, last + 1)):
                if metadata is not None:
                    run[row_id - first] = _object(metadata)
            yield first, run

    def keys_between(self, start: int, stop: int) -> Iterator[tuple[int, Column]]:
        """The keys of rows from ``start`` to ``stop``, both at the edge of a block, as (first row id, keys) runs."""
        for record in self.blocks.between(start, stop):
            yield record.first, self.keys_in(record)

    def keys_in(self, record: BlockRecord) -> Column:
        """The keys of a block of new rows. Raises Corrupt if it has not one a row."""
        keys = self.log.read(record).keys
        if keys is None or len(keys) != record.row_count:
            raise Corrupt(f"the block of rows {record.first} to {record.last} lacks keys; restore it from a snapshot")
        return keys

    def _supplements(self, row_ids: RowIds) -> Iterator[tuple[int, bytes | None, bytes | None]]:
        if not len(row_ids):
            return
        for record in self.supplements(int(row_ids.min()), int(row_ids.max())):
            block = self.log.read(record)
            for place in np.flatnonzero(np.isin(block.row_ids, row_ids)).tolist():
                text = None if block.texts is None else block.texts.value(place)
                metadata = None if block.metadata is None else block.metadata.value(place)
                yield int(block.row_ids[place]), text, metadata


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _object(value: bytes | None) -> dict[str, Any] | None:
    return None if value is None else json.loads(value)
