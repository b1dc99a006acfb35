"""The keys of the newest rows, in memory: a table of (hash, row id) with open addressing, a batch at a time.

Entries are only added, so readers need no lock: a reader that sees half of an entry sees a row id that its view does
not hold yet, or none. Two rows may have one hash: their keys collide, or a key was deleted and written again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from covector_server.kernels import keys as kernels
from covector_server.storage.key_filter import KEYS_PER_WORD, Words, add_to, may_hold
from covector_server.storage.key_hash import Hashes
from covector_server.storage.positions import is_among

RowIds = npt.NDArray[np.int64]
Places = npt.NDArray[np.int64]

_SLOTS_MIN = 1 << 14
_SLOTS_PER_KEY = 2
_NO_ROW = -1


@dataclass(frozen=True, slots=True)
class Candidates:
    """Rows whose key may be the one asked for: ``row_ids[i]`` for the question at ``places[i]``."""

    places: Places
    row_ids: RowIds

    @staticmethod
    def joined(parts: list[Candidates]) -> Candidates:
        """All of them."""
        if len(parts) == 1:
            return parts[0]
        none = np.empty(0, dtype=np.int64)
        return Candidates(
            np.concatenate([none, *(part.places for part in parts)]),
            np.concatenate([none, *(part.row_ids for part in parts)]),
        )


class RecentKeys:
    """Rows from ``first_row_id`` on. One thread adds, any may look up."""

    def __init__(self, first_row_id: int) -> None:
        self.first_row_id = first_row_id
        self.stop_row_id = first_row_id
        self._count = 0
        self._slots = _Slots.of(_SLOTS_MIN)

    def __len__(self) -> int:
        return self._count

    def add(self, hashes: Hashes, row_ids: RowIds) -> None:
        """Adds rows; their ids are new."""
        if not len(row_ids):
            return
        self._count += len(row_ids)
        if self._count * _SLOTS_PER_KEY > len(self._slots.row_ids):
            grown = _Slots.of(1 << (4 * _SLOTS_PER_KEY * self._count - 1).bit_length())
            grown.put(*self._slots.entries())
            grown.put(hashes, row_ids)
            self._slots = grown
        else:
            self._slots.put(hashes, row_ids)
        self.stop_row_id = max(self.stop_row_id, int(row_ids.max()) + 1)

    def find(self, hashes: Hashes) -> Candidates:
        """The rows with these hashes."""
        slots = self._slots
        passed = may_hold(slots.filter, hashes)
        if not len(passed):
            return Candidates(passed, passed)
        found = slots.find(hashes[passed])
        return Candidates(passed[found.places], found.row_ids)

    def entries(self) -> tuple[Hashes, RowIds]:
        """All hashes and row ids, in order of row id: runs do not depend on how a table was filled."""
        hashes, row_ids = self._slots.entries()
        order = np.argsort(row_ids, kind="stable")
        return hashes[order], row_ids[order]

    def cover(self, stop_row_id: int) -> None:
        """Speaks for rows up to ``stop_row_id``, also for those without a key."""
        self.stop_row_id = max(self.stop_row_id, stop_row_id)

    def without_rows(self, gone: RowIds) -> RecentKeys:
        """The same keys but those of some rows; they are sorted. It speaks for the same rows."""
        hashes, row_ids = self.entries()
        kept = ~is_among(gone, row_ids)
        if kept.all():
            return self
        fewer = RecentKeys(self.first_row_id)
        fewer.add(hashes[kept], row_ids[kept])
        fewer.cover(self.stop_row_id)
        return fewer

    def without(self, stop_row_id: int) -> RecentKeys:
        """The same keys but those of rows from ``stop_row_id`` on. The same table if it has none of them, so that one
        that is being written meanwhile is known again."""
        if self.stop_row_id <= stop_row_id:
            return self
        hashes, row_ids = self.entries()
        kept = row_ids < stop_row_id
        fewer = RecentKeys(min(self.first_row_id, stop_row_id))
        fewer.add(hashes[kept], row_ids[kept])
        fewer.stop_row_id = min(self.stop_row_id, stop_row_id)
        return fewer


@dataclass(frozen=True, slots=True)
class _Slots:
    """A power of two of slots; a key's own is given by the low bits of its hash, the next ones serve collisions."""

    hashes: Hashes
    row_ids: RowIds
    filter: Words  # most keys that are asked for are new, and need not be looked up

    @staticmethod
    def of(count: int) -> _Slots:
        words = np.zeros(max(1, count // (_SLOTS_PER_KEY * KEYS_PER_WORD)), dtype=np.uint64)
        return _Slots(np.zeros(count, dtype=np.uint64), np.full(count, _NO_ROW, dtype=np.int64), words)

    def put(self, hashes: Hashes, row_ids: RowIds) -> None:
        if kernels.IS_COMPILED:
            kernels.slots_put((self.hashes, self.row_ids, self.filter), hashes, row_ids)
            return
        asked = hashes
        mask = len(self.row_ids) - 1
        slots = (hashes & np.uint64(mask)).astype(np.int64)
        while len(row_ids):
            free = self.row_ids[slots] == _NO_ROW
            wanted = slots[free]
            self.hashes[wanted] = hashes[free]
            self.row_ids[wanted] = row_ids[free]  # where several want one slot, the last gets both halves
            lost = np.flatnonzero(self.row_ids[slots] != row_ids)
            hashes, row_ids, slots = hashes[lost], row_ids[lost], (slots[lost] + 1) & mask
        add_to(self.filter, asked)  # last: whoever passes finds the row

    def find(self, hashes: Hashes) -> Candidates:
        if kernels.IS_COMPILED:
            return Candidates(*kernels.slots_find(self.hashes, self.row_ids, hashes))
        mask = len(self.row_ids) - 1
        slots = (hashes & np.uint64(mask)).astype(np.int64)
        places = np.arange(len(hashes))
        found: list[Candidates] = []
        while len(places):
            row_ids = self.row_ids[slots]
            used = np.flatnonzero(row_ids != _NO_ROW)
            places, slots, hashes, row_ids = places[used], slots[used], hashes[used], row_ids[used]
            same = np.flatnonzero(self.hashes[slots] == hashes)
            if len(same):
                found.append(Candidates(places[same], row_ids[same]))
            slots = (slots + 1) & mask
        return Candidates.joined(found)

    def entries(self) -> tuple[Hashes, RowIds]:
        used = self.row_ids != _NO_ROW
        return self.hashes[used], self.row_ids[used]
