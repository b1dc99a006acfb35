"""From keys to row ids: recent keys in memory, the rest in sorted runs on disk, everything derived from the row log.

A lookup hashes a batch of keys, gathers candidates from the recent table and, through their filters, from the runs, and
compares the candidates' keys themselves in the row log. So it is exact, and a batch of new keys reads no log at all.
Where a key was deleted and written again, the newest row has it.

The recent table is frozen when it is large; ``flush`` writes a frozen one as a run, ``merge`` joins runs, both in the
maintenance thread. Runs are registered in the catalog; rows that no run speaks for are replayed when the store opens.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from covector.blocks import Column
from covector.errors import Corrupt
from covector_server.metadata.catalog import Reader, Writer, number, numbers
from covector_server.metadata.records import KeyRunRecord
from covector_server.storage.disk import Disk
from covector_server.storage.key_hash import Hashes, hash_keys
from covector_server.storage.key_runs import KeyRun, Source, Without, write_run
from covector_server.storage.recent_keys import Candidates, RecentKeys, RowIds

FROZEN_MAX = 2  # frozen tables that may wait to be written
MERGED_RUNS = 8  # neighbours of about one size that become one run
REPLAYED_SHARE = 8  # an orderly stop leaves at most recent_keys / REPLAYED_SHARE keys to be replayed

KeysOf = Callable[[RowIds], list[bytes]]
Replay = Callable[[int, int], Iterator[tuple[int, Column]]]  # rows [start, stop) -> (first row id, keys) runs
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NumberedRun:
    """A run and its number in the catalog."""

    number: int
    run: KeyRun


@dataclass(frozen=True, slots=True)
class Change:
    """Runs to take out and a run to put in their place, ready to be committed."""

    added: NumberedRun
    removed: tuple[NumberedRun, ...]
    frozen: RecentKeys | None


class KeyTable:
    """The key table of one collection, below ``directory``. One thread adds, one maintains, any may look up.

    ``recent_keys``: keys in memory before they are frozen.
    """

    def __init__(self, directory: Path, disk: Disk, recent_keys: int) -> None:
        self.directory = directory
        self._disk = disk
        self._recent_keys = recent_keys
        self._runs: tuple[NumberedRun, ...] = ()  # by row id; replaced whole
        self._frozen: tuple[RecentKeys, ...] = ()  # oldest first; replaced whole
        self._recent = RecentKeys(0)
        self._damaged: tuple[int, ...] = ()  # numbers of damaged runs that the catalog still names
        self._next_number = 0
        self._changing = threading.Lock()  # held while a table or run is replaced
        self.maintaining = threading.Lock()  # held from ``flush``, ``merge`` or ``rewrite`` to ``install``

    @property
    def run_paths(self) -> list[Path]:
        """The files of the runs."""
        return [numbered.run.path for numbered in self._runs]

    def load(self, reader: Reader, collection_id: int, row_count: int, replay: Replay) -> list[Path]:
        """Opens the runs that the catalog names and replays the rows that none speaks for. Returns the files of
        damaged runs, which were passed over."""
        damaged: list[int] = []
        runs: list[NumberedRun] = []
        for key, value in reader.scan("key_runs", number(collection_id)):
            record = KeyRunRecord.decode(value)
            run_number = numbers(key)[1]
            self._next_number = max(self._next_number, run_number + 1)
            path = self._path(run_number)
            try:
                runs.append(NumberedRun(run_number, _opened(path, record)))
            except (Corrupt, OSError) as error:
                _log.warning("%s: %s; its keys are read from the row log", path, error)
                damaged.append(run_number)
        self._runs = tuple(sorted(runs, key=lambda numbered: numbered.run.first_row_id))
        for start, stop in self._uncovered(row_count):
            self._replay(start, stop, replay)
        if self._recent.stop_row_id != row_count:  # a run speaks for the last rows
            if len(self._recent):
                self._freeze_recent()
            self._recent = RecentKeys(row_count)
        self._damaged = tuple(damaged)
        return [self._path(run_number) for run_number in damaged]

    def find(self, keys: Column, hashes: Hashes, stop_row_id: int, keys_of: KeysOf) -> RowIds:
        """int64[keys]: the newest row below ``stop_row_id`` of each key, -1 for none. ``keys_of`` reads the keys of
        rows from the row log."""
        found = np.full(len(keys), -1, dtype=np.int64)
        candidates = self._candidates(hashes)
        here = np.flatnonzero(candidates.row_ids < stop_row_id)
        if not len(here):
            return found
        places, row_ids = candidates.places[here], candidates.row_ids[here]
        asked = _picked(keys, places)
        same = [one == other for one, other in zip(asked, keys_of(row_ids), strict=True)]
        kept = np.flatnonzero(same)
        np.maximum.at(found, places[kept], row_ids[kept])
        return found

    def add(self, hashes: Hashes, row_ids: RowIds) -> None:
        """Adds new rows; their ids follow those of the rows before."""
        self._recent.add(hashes, row_ids)
        if len(self._recent) >= self._recent_keys:
            self._freeze_recent()

    def forget_from(self, row_id: int) -> None:
        """Takes rows from ``row_id`` on back out: they were not committed."""
        with self._changing:
            self._frozen = tuple(table.without(row_id) for table in self._frozen)
            self._recent = self._recent.without(row_id)

    def is_behind(self) -> bool:
        """Whether frozen tables wait that should be written before more rows are taken in."""
        return len(self._frozen) > FROZEN_MAX

    # The maintenance thread

    def freeze(self) -> None:
        """Freezes what is recent, if it is worth a run: for an orderly stop, when nobody adds."""
        if len(self._recent) * REPLAYED_SHARE > self._recent_keys:
            self._freeze_recent()

    def flush(self, committed_row_count: int) -> Change | None:
        """Writes the oldest frozen table as a run, if all its rows are committed."""
        if not self._frozen or self._frozen[0].stop_row_id > committed_row_count:
            return None
        table = self._frozen[0]
        return Change(self._write([table.entries()], (table.first_row_id, table.stop_row_id)), (), table)

    def merge(self) -> Change | None:
        """Joins neighbouring runs of about one size, if there are enough of them."""
        for tier in sorted({_tier(numbered.run) for numbered in self._runs}):
            chosen = self._neighbours(tier)
            if chosen:
                rows = (chosen[0].run.first_row_id, chosen[-1].run.stop_row_id)
                return Change(self._write([numbered.run for numbered in chosen], rows), chosen, None)
        return None

    def drop_recent(self, gone: RowIds) -> None:
        """Takes rows that were deleted, sorted, out of the tables in memory. For the commit thread, when nobody adds;
        hold ``maintaining``."""
        with self._changing:
            self._frozen = tuple(table.without_rows(gone) for table in self._frozen)
            self._recent = self._recent.without_rows(gone)

    def holding(self, gone: RowIds) -> list[int]:
        """The numbers of the runs with an entry of one of some rows; they are sorted."""
        return [numbered.number for numbered in self._runs if numbered.run.holds_any(gone)]

    def rewrite(self, run_number: int, gone: RowIds) -> Change | None:
        """Writes a run anew without some rows; None if it was merged into another meanwhile. Hold ``maintaining``."""
        for numbered in self._runs:
            if numbered.number == run_number:
                rows = (numbered.run.first_row_id, numbered.run.stop_row_id)
                return Change(self._write([Without(numbered.run, gone)], rows), (numbered,), None)
        return None

    def remove_orphans(self) -> None:
        """Removes files that the catalog does not name: of a change that was not committed, or whose old runs a crash
        left. Call it once, after ``load``."""
        named = {*self.run_paths, *map(self._path, self._damaged)}
        for path in self.directory.glob("*.run*"):
            if path not in named:
                path.unlink()

    def commit(self, writer: Writer, collection_id: int, change: Change) -> None:
        """Puts a change into a transaction. Damaged runs go out with it: their rows were replayed."""
        for run_number in (*self._damaged, *(numbered.number for numbered in change.removed)):
            writer.delete("key_runs", number(collection_id, run_number))
        run = change.added.run
        record = KeyRunRecord(run.first_row_id, run.stop_row_id, run.count, run.size_bytes)
        writer.put("key_runs", number(collection_id, change.added.number), record.encode())

    def install(self, change: Change) -> list[Path]:
        """Makes a committed change visible; returns files that nobody needs any more."""
        with self._changing:
            kept = [numbered for numbered in self._runs if numbered not in change.removed]
            self._runs = tuple(sorted([*kept, change.added], key=lambda numbered: numbered.run.first_row_id))
            self._frozen = tuple(table for table in self._frozen if table is not change.frozen)
            damaged, self._damaged = self._damaged, ()
        return [*(self._path(number_) for number_ in damaged), *(numbered.run.path for numbered in change.removed)]

    # Inside

    def _replay(self, start: int, stop: int, replay: Replay) -> None:
        """Reads the keys of rows [start, stop) into tables of their own."""
        if len(self._recent):
            self._freeze_recent()
        self._recent = RecentKeys(start)
        for first, keys in replay(start, stop):
            present = np.flatnonzero(np.diff(keys.ends, prepend=np.uint32(0)))  # an erased row has no key
            self.add(hash_keys(keys)[present], first + present)
            self._recent.cover(first + len(keys))

    def _freeze_recent(self) -> None:
        with self._changing:
            self._frozen = (*self._frozen, self._recent)
            self._recent = RecentKeys(self._recent.stop_row_id)

    def _write(self, sources: Sequence[Source | Without], rows: tuple[int, int]) -> NumberedRun:
        run_number = self._next_number
        self._next_number += 1
        self._disk.make_directories(self.directory)
        path = self._path(run_number)
        write_run(self._disk, path, sources, rows)
        return NumberedRun(run_number, KeyRun(path))

    def _candidates(self, hashes: Hashes) -> Candidates:
        # Recent first: a table that is frozen, or becomes a run, meanwhile is then found in its new place.
        parts = [self._recent.find(hashes)]
        parts += [table.find(hashes) for table in self._frozen]
        parts += [numbered.run.find(hashes) for numbered in self._runs]
        return Candidates.joined(parts)

    @property
    def covered_until(self) -> int:
        """The row id up to which runs speak for all rows."""
        return max((numbered.run.stop_row_id for numbered in self._runs), default=0)

    def _uncovered(self, row_count: int) -> Iterator[tuple[int, int]]:
        start = 0
        for numbered in self._runs:
            if numbered.run.first_row_id > start:
                yield start, numbered.run.first_row_id
            start = max(start, numbered.run.stop_row_id)
        if start < row_count:
            yield start, row_count

    def _neighbours(self, tier: int) -> tuple[NumberedRun, ...]:
        """The first MERGED_RUNS runs in a row that are of this tier or below."""
        chosen: list[NumberedRun] = []
        for numbered in self._runs:
            chosen = [*chosen, numbered] if _tier(numbered.run) <= tier else []
            if len(chosen) == MERGED_RUNS:
                return tuple(chosen)
        return ()

    def _path(self, run_number: int) -> Path:
        return self.directory / f"{run_number:08d}.run"


def _opened(path: Path, record: KeyRunRecord) -> KeyRun:
    run = KeyRun(path)
    found = KeyRunRecord(run.first_row_id, run.stop_row_id, run.count, run.size_bytes)
    if found != record:
        raise Corrupt(f"the file holds {found}, the catalog says {record}")
    return run


def _tier(run: KeyRun) -> int:
    """Runs of one tier differ in size by less than a factor of MERGED_RUNS."""
    return int(math.log(max(run.count, 1), MERGED_RUNS))


def _picked(keys: Column, places: RowIds) -> list[bytes]:
    ends = keys.ends
    starts = np.where(places > 0, ends[places - 1], 0)
    data = keys.data
    return [bytes(data[a:b]) for a, b in zip(starts.tolist(), ends[places].tolist(), strict=True)]
