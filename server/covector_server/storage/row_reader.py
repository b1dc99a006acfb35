"""Keys, texts and metadata as a view reads them from the row log: blocks of new rows, and the supplements over them.

Each section of a block has its own checksum, and only the sections that are asked for count: a damaged text does not
keep a key from being read.
"""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.blocks import Column
from covector_server.metadata.records import BlockRecord
from covector_server.storage.damage import Damage, DamageReporter, OnDamage
from covector_server.storage.row_log import Block, RowLog
from covector_server.storage.view import NO_KEY, RowDetails, RowIds

Metadata = dict[str, Any]


@dataclass(slots=True)
class RowBlocks:
    """Where the blocks of the row log lie: rows by their first id, and supplements in order of arrival. Both only grow,
    so a view of them is a count."""

    new: list[BlockRecord] = field(default_factory=list)
    supplements: list[BlockRecord] = field(default_factory=list)

    def block_of(self, row_id: int) -> BlockRecord:
        """The block with a row's key."""
        return self.new[bisect.bisect_right(self.new, row_id, key=lambda block: block.first) - 1]


@dataclass(frozen=True, slots=True)
class RowReader:
    """Reads the rows of one view: ``view.CollectionView`` says what the methods promise."""

    log: RowLog
    blocks: RowBlocks
    row_id_count: int
    supplement_count: int
    damages: DamageReporter

    def keys_of(self, row_ids: RowIds, on_damage: OnDamage | None = None) -> list[bytes]:
        """The encoded keys of rows, in this order."""
        keys = [NO_KEY] * len(row_ids)
        for record, places in self._by_block(row_ids):
            block = self._read(record, ("keys",), row_ids[places], on_damage)
            values = _values(block.keys, record.row_count)
            for place in places:
                keys[place] = values[int(row_ids[place]) - record.first] or NO_KEY
        return keys

    def details_of(self, row_ids: RowIds, on_damage: OnDamage | None = None) -> list[RowDetails]:
        """Key, text and metadata of rows, in this order."""
        found: dict[int, RowDetails] = {}
        for record, places in self._by_block(row_ids):
            block = self._read(record, ("keys", "texts", "metadata"), row_ids[places], on_damage)
            columns = [_values(column, record.row_count) for column in (block.keys, block.texts, block.metadata)]
            for place in places:
                row_id = int(row_ids[place])
                key, text, metadata = (values[row_id - record.first] for values in columns)
                found[row_id] = RowDetails(key or NO_KEY, _text(text), _object(metadata))
        for record in self._supplements(row_ids):
            block = self._read(record, ("row_ids", "texts", "metadata"), row_ids, on_damage)
            added = _values(block.texts, record.row_count), _values(block.metadata, record.row_count)
            for at in np.flatnonzero(np.isin(block.row_ids, row_ids)).tolist():
                row_id = int(block.row_ids[at])
                found[row_id] = _with_supplement(found[row_id], added[0][at], added[1][at])
        return [found[int(row_id)] for row_id in row_ids]

    def metadata(self, on_damage: OnDamage | None = None) -> Iterator[tuple[int, list[Metadata | None]]]:
        """The metadata of all rows in order of row id, block by block; a block is cut where damaged rows lie."""
        for record in itertools.takewhile(lambda block: block.first < self.row_id_count, self.blocks.new):
            row_ids = np.arange(record.first, record.last + 1)
            bad: dict[str, str] = {}
            block = self._read(record, ("metadata",), row_ids, on_damage, bad)
            if "metadata" in bad:
                continue
            run = [_object(value) for value in _values(block.metadata, record.row_count)]
            damaged = self._supplement_metadata(record.first, run, on_damage)
            yield from _sound_runs(record.first, run, damaged)

    def _supplement_metadata(
        self, first: int, run: list[Metadata | None], on_damage: OnDamage | None
    ) -> npt.NDArray[np.bool_]:
        """Puts later metadata in place in a run, and returns which of its rows are damaged: bool[rows]."""
        row_ids = np.arange(first, first + len(run))
        damaged = np.zeros(len(run), dtype=bool)
        for record in self._supplements(row_ids):
            bad: dict[str, str] = {}
            block = self._read(record, ("row_ids", "metadata"), row_ids[~damaged], on_damage, bad)
            if bad.keys() & {"row_ids", "metadata"}:
                damaged |= _touched(record, block, bad, row_ids)
                continue
            for row_id, value in zip(block.row_ids.tolist(), _values(block.metadata, record.row_count), strict=True):
                if value is not None and first <= row_id < first + len(run):
                    run[row_id - first] = _object(value)
        return damaged

    def _read(
        self,
        record: BlockRecord,
        sections: tuple[str, ...],
        row_ids: RowIds,
        on_damage: OnDamage | None,
        bad: dict[str, str] | None = None,
    ) -> Block:
        """A block of which these sections are needed, for these rows. Tells of damage to them."""
        bad = {} if bad is None else bad
        block = self.log.read(record, bad)
        if reasons := [bad[section] for section in sections if section in bad]:
            what = ", ".join(section for section in sections if section in bad)
            message = (
                f"collection {self.damages.collection!r}, {what} of rows with ids {record.first} to {record.last}: "
                f"{reasons[0]} (at byte {record.offset_bytes})"
            )
            damage = Damage("", str(self.log.path(record.file)), message, record.row_count)
            left_out = int(np.count_nonzero(_touched(record, block, bad, np.unique(row_ids))))
            self.damages.meet(damage, on_damage, left_out)
        return block

    def _by_block(self, row_ids: RowIds) -> Iterator[tuple[BlockRecord, list[int]]]:
        places: dict[int, list[int]] = {}
        blocks: dict[int, BlockRecord] = {}
        for place, row_id in enumerate(row_ids.tolist()):
            block = self.blocks.block_of(row_id)
            blocks[block.first] = block
            places.setdefault(block.first, []).append(place)
        for first in sorted(blocks):
            yield blocks[first], places[first]

    def _supplements(self, row_ids: RowIds) -> Iterator[BlockRecord]:
        """The supplements that may have something of these rows, in order of arrival."""
        if not len(row_ids) or not self.supplement_count:
            return
        low, high = int(row_ids.min()), int(row_ids.max())
        for record in self.blocks.supplements[: self.supplement_count]:
            if record.first <= high and record.last >= low:
                yield record


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
        row.metadata if metadata is None else _object(metadata),
    )


def _values(column: Column | None, row_count: int) -> list[bytes | None]:
    return [None] * row_count if column is None else column.values()


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _object(value: bytes | None) -> Metadata | None:
    return None if value is None else json.loads(value)
