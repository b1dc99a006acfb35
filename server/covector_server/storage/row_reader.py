"""Keys, texts and metadata of rows, read from the row log: blocks of new rows, and the supplements that came later.

Each section of a block has its own checksum, and only the sections that are asked for count: a damaged text does not
keep a key from being read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.blocks import Column
from covector.errors import Corrupt
from covector_server.metadata.records import BlockRecord
from covector_server.storage.damage import Damage, DamageReporter, OnDamage
from covector_server.storage.row_block import Block, Section
from covector_server.storage.row_blocks import RowBlocks
from covector_server.storage.row_log import RowLog
from covector_server.storage.view import NO_KEY, RowDetails, RowIds

Metadata = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RowReader:
    """Reads rows as of some commit; ``supplements(low, high)``: the supplements of then that may tell of rows
    [low, high], in order of arrival."""

    log: RowLog
    blocks: RowBlocks
    supplements: Callable[[int, int], Sequence[BlockRecord]]
    damages: DamageReporter

    def keys_of(self, row_ids: RowIds, on_damage: OnDamage | None = None) -> list[bytes]:
        """The encoded keys of rows, in this order; NO_KEY for one that is damaged."""
        keys: list[bytes] = [NO_KEY] * len(row_ids)
        for record, places in self.blocks.holding(row_ids):
            column = self._read(record, ("keys",), row_ids[places], on_damage).keys
            offsets = (row_ids[places] - record.first).tolist()
            for place, offset in zip(places.tolist(), offsets, strict=True):
                keys[place] = _value(column, offset) or NO_KEY
        return keys

    def details_of(self, row_ids: RowIds, on_damage: OnDamage | None = None) -> list[RowDetails]:
        """Key, text and metadata of rows, in this order; of a damaged row, what can be read."""
        found: dict[int, RowDetails] = {}
        for record, places in self.blocks.holding(row_ids):
            block = self._read(record, ("keys", "texts", "metadata"), row_ids[places], on_damage)
            for row_id in row_ids[places].tolist():
                key, text, metadata = (
                    _value(column, row_id - record.first) for column in (block.keys, block.texts, block.metadata)
                )
                found[row_id] = RowDetails(key or NO_KEY, _text(text), metadata)
        for record in self._supplements(row_ids):
            block = self._read(record, ("row_ids", "texts", "metadata"), row_ids, on_damage)
            for at in np.flatnonzero(np.isin(block.row_ids, row_ids)).tolist():
                row_id = int(block.row_ids[at])
                found[row_id] = _with_supplement(found[row_id], _value(block.texts, at), _value(block.metadata, at))
        return [found[int(row_id)] for row_id in row_ids]

    def metadata(
        self, start: int, stop: int, on_damage: OnDamage | None = None
    ) -> Iterator[tuple[int, list[Metadata | None]]]:
        """The metadata of rows [start, stop), in order, as (first row id, one entry a row) runs; a run is cut where
        damaged rows lie."""
        for record in self.blocks.between(start, stop):
            first, last = max(start, record.first), min(stop - 1, record.last)
            row_ids = np.arange(first, last + 1)
            bad: dict[str, str] = {}
            column = self._read(record, ("metadata",), row_ids, on_damage, bad).metadata
            if "metadata" in bad:
                continue
            run = [_object(_value(column, row_id - record.first)) for row_id in range(first, last + 1)]
            damaged = self._supplement_metadata(row_ids, run, on_damage)
            yield from _sound_runs(first, run, damaged)

    def keys_between(self, start: int, stop: int) -> Iterator[tuple[int, Column]]:
        """The keys of rows from ``start`` to ``stop``, both at the edge of a block, as (first row id, keys) runs."""
        for record in self.blocks.between(start, stop):
            keys = self._read(record, ("keys",), np.arange(record.first, record.last + 1), None).keys
            if keys is None:
                raise Corrupt(
                    f"the block of rows {record.first} to {record.last} lacks keys; restore it from a snapshot"
                )
            yield record.first, keys

    def same_details(self, row_ids: RowIds, texts: Section, metadata: Section) -> bool:
        """Whether rows are just those of one block, in its order, with these texts and metadata and no later ones. A
        quick look: False may also mean that it takes a closer one."""
        first, last = int(row_ids[0]), int(row_ids[-1])
        is_run = first >= 0 and last - first + 1 == len(row_ids) and bool((np.diff(row_ids) == 1).all())
        if not is_run or self.supplements(first, last):
            return False
        [(record, _)] = self.blocks.holding(row_ids[:1])
        return (record.first, record.last) == (first, last) and self.log.read(record).holds(texts, metadata)

    def _supplement_metadata(
        self, row_ids: RowIds, run: list[Metadata | None], on_damage: OnDamage | None
    ) -> npt.NDArray[np.bool_]:
        """Puts later metadata in place in the run of consecutive rows, and returns which of them are damaged."""
        first = int(row_ids[0])
        damaged = np.zeros(len(run), dtype=bool)
        for record in self._supplements(row_ids):
            bad: dict[str, str] = {}
            block = self._read(record, ("row_ids", "metadata"), row_ids[~damaged], on_damage, bad)
            if bad:
                damaged |= _touched(record, block, bad, row_ids)
                continue
            for at in np.flatnonzero(np.isin(block.row_ids, row_ids)).tolist():
                value = _value(block.metadata, at)
                if value is not None:
                    run[int(block.row_ids[at]) - first] = _object(value)
        return damaged

    def _read(
        self,
        record: BlockRecord,
        sections: tuple[str, ...],
        row_ids: RowIds,
        on_damage: OnDamage | None,
        bad: dict[str, str] | None = None,
    ) -> Block:
        """A block of which these sections are needed, for these rows. Tells of damage to them, and notes it in ``bad``;
        a damaged section then has no values."""
        bad = {} if bad is None else bad
        block = self.log.read(record).readable(sections, bad)
        if bad:
            what = ", ".join(section for section in sections if section in bad)
            message = (
                f"collection {self.damages.collection!r}, {what} of rows with ids {record.first} to {record.last}: "
                f"{next(iter(bad.values()))} (at byte {record.offset_bytes})"
            )
            damage = Damage("", str(self.log.path(record.file)), message, record.row_count)
            left_out = int(np.count_nonzero(_touched(record, block, bad, np.unique(row_ids))))
            self.damages.meet(damage, on_damage, left_out)
        return block

    def _supplements(self, row_ids: RowIds) -> Sequence[BlockRecord]:
        return self.supplements(int(row_ids.min()), int(row_ids.max())) if len(row_ids) else ()


def _touched(record: BlockRecord, block: Block, bad: dict[str, str], row_ids: RowIds) -> npt.NDArray[np.bool_]:
    """Which of the rows a damaged block speaks of; of all in its range, if its own row ids cannot be read."""
    if "row_ids" in bad:
        return np.asarray((row_ids >= record.first) & (row_ids <= record.last))
    return np.isin(row_ids, block.row_ids)


def _sound_runs(
    first: int, run: list[Metadata | None], damaged: npt.NDArray[np.bool_]
) -> Iterator[tuple[int, list[Metadata | None]]]:
    """The stretches of a run without damaged rows."""
    if not damaged.any():
        yield first, run
        return
    edges = np.flatnonzero(np.diff(np.concatenate([[True], damaged, [True]])))
    for start, stop in edges.reshape(-1, 2).tolist():
        yield first + start, run[start:stop]


def _with_supplement(row: RowDetails, text: bytes | None, metadata: bytes | None) -> RowDetails:
    return RowDetails(
        row.key,
        row.text if text is None else _text(text),
        row.metadata_json if metadata is None else metadata,
    )


def _value(column: Column | None, row: int) -> bytes | None:
    return None if column is None else column.value(row)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _object(value: bytes | None) -> Metadata | None:
    return None if value is None else json.loads(value)
