"""Where the blocks of the row log lie: looked up in the catalog when they are needed, so that opening a store of many
rows costs no more than one of few."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from covector.errors import Corrupt
from covector_server.metadata.catalog import Catalog, Reader, number
from covector_server.metadata.records import BlockRecord
from covector_server.storage.row_log import NEW, SUPPLEMENT
from covector_server.storage.view import RowIds

_SCANNED = 512  # records read in one transaction
_decoded = lru_cache(maxsize=8192)(BlockRecord.decode)  # the keys of hits are looked up in the same blocks again


def _where_it_is(record: BlockRecord) -> BlockRecord:
    """The place of a block for those who want it as it is now."""
    return record


@dataclass(frozen=True, slots=True)
class RowBlocks:
    """The blocks of new rows: those committed, and ``pending`` ones that are not yet, both by row id. ``place_of``:
    where a reader of some time ago finds a block that was moved since."""

    catalog: Catalog
    collection_id: int
    pending: Sequence[BlockRecord] = ()
    place_of: Callable[[BlockRecord], BlockRecord] = _where_it_is

    def holding(self, row_ids: RowIds) -> list[tuple[BlockRecord, RowIds]]:
        """The blocks that hold rows, each with the places in ``row_ids`` of its rows. Raises Corrupt for a row that no
        block holds."""
        order = np.argsort(row_ids, kind="stable")
        ordered = row_ids[order]
        found: list[tuple[BlockRecord, RowIds]] = []
        with self.catalog.read() as reader:
            start = 0
            while start < len(ordered):
                record = self._holding(reader, int(ordered[start]))
                stop = int(np.searchsorted(ordered, record.last, side="right"))
                found.append((record, order[start:stop]))
                start = stop
        return found

    def between(self, start: int, stop: int) -> Iterator[BlockRecord]:
        """The committed blocks with rows in [start, stop), in order."""
        prefix = number(self.collection_id, NEW)
        while start < stop:
            with self.catalog.read() as reader:
                floor = reader.floor("row_blocks", number(self.collection_id, NEW, start), prefix)
                records: list[BlockRecord] = []
                for _, value in reader.scan("row_blocks", prefix, floor[0] if floor else prefix):
                    record = BlockRecord.decode(value)
                    if record.first >= stop or len(records) == _SCANNED:
                        break
                    if record.last >= start:
                        records.append(record)
            if not records:
                return
            yield from map(self.place_of, records)
            start = records[-1].last + 1

    def _holding(self, reader: Reader, row_id: int) -> BlockRecord:
        for pending in reversed(self.pending):
            if pending.first <= row_id <= pending.last:
                return pending
        prefix = number(self.collection_id, NEW)
        found = reader.floor("row_blocks", number(self.collection_id, NEW, row_id), prefix)
        record = None if found is None else _decoded(found[1])
        if record is None or record.last < row_id:
            raise Corrupt(f"no block of the row log holds row id {row_id}; run covector fsck")
        return self.place_of(record)


@dataclass(slots=True)
class Supplements:
    """The blocks of texts and metadata that came after their rows, in order of arrival. It only grows, so a view of it
    is a count."""

    records: list[BlockRecord] = field(default_factory=list)
    _firsts: array[int] = field(default_factory=lambda: array("q"))
    _lasts: array[int] = field(default_factory=lambda: array("q"))

    @staticmethod
    def load(reader: Reader, collection_id: int) -> Supplements:
        """Those in the catalog."""
        found = Supplements()
        for _, value in reader.scan("row_blocks", number(collection_id, SUPPLEMENT)):
            found.append(BlockRecord.decode(value))
        return found

    def append(self, record: BlockRecord) -> None:
        self.records.append(record)
        self._firsts.append(record.first)
        self._lasts.append(record.last)

    def moved(self, places: Mapping[int, BlockRecord]) -> Supplements:
        """The same ones, some of them at another place: by number."""
        found = Supplements()
        for place, record in enumerate(self.records):
            found.append(places.get(place, record))
        return found

    def overlapping(self, low: int, high: int, count: int) -> list[BlockRecord]:
        """Those of the first ``count`` that may tell of rows [low, high], in order of arrival."""
        if not count:
            return []
        firsts = np.array(self._firsts[:count], dtype=np.int64)
        lasts = np.array(self._lasts[:count], dtype=np.int64)
        return [self.records[place] for place in np.flatnonzero((firsts <= high) & (lasts >= low)).tolist()]
