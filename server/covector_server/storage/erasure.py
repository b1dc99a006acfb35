"""Erasure: the next generation of a checkpoint with every row at the same position, and nothing at the dead ones.

Sealed shards without anything to erase are hard links. Others are copied chunk by chunk: at dead positions gradients
and scales become zero and TRAK's Q not given. Row ids stay: they are numbers that the server gave. A chunk that does
not match its checksum is copied as it is, checksum and all, so that it is found bad as before; it is reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from crc32c import crc32c

from covector_server.metadata.records import CheckpointCounters
from covector_server.storage.array import ZarrArray
from covector_server.storage.checkpoint import StoredCheckpoint
from covector_server.storage.chunks import Chunk, ShardFile
from covector_server.storage.contract import ArrayState
from covector_server.storage.disk import Disk
from covector_server.storage.erased import counts_by
from covector_server.storage.generation import Check, GenerationCopy, array_files
from covector_server.storage.layout import ArrayLayout
from covector_server.storage.positions import NO_POSITIONS
from covector_server.storage.syncs import Syncs
from covector_server.storage.view import Positions

BLANKS: Mapping[str, float] = {"gradients": 0.0, "scales": 0.0, "trak_q": np.nan}


class ErasingCopy(GenerationCopy):
    """``erased``: by shard of the old arrays, how many dead positions hold nothing already."""

    def __init__(self, old: StoredCheckpoint, new: StoredCheckpoint, disk: Disk, erased: Mapping[int, int]) -> None:
        super().__init__(old, new)
        self._disk = disk
        self._erased = erased
        self._linked: dict[int, int] = {}  # shard -> how many dead positions of it are erased
        self._blank: dict[str, list[Positions]] = {name: [NO_POSITIONS] for name in BLANKS}  # in copied shards
        self._checksums: dict[str, int] = {}
        self._old_files, self._new_files = array_files(old), array_files(new)

    def advance(self, counters: CheckpointCounters, dead: Positions, check: Check) -> None:
        shard_rows = self.old.record.shard_rows
        dead_counts = counts_by(dead, shard_rows)
        for shard in range(self.row_count // shard_rows, -(-counters.row_count // shard_rows)):
            check()
            is_fresh = self.row_count <= shard * shard_rows
            is_sealed = is_fresh and shard < counters.sealed_shard_count
            if is_sealed and dead_counts.get(shard, 0) == self._erased.get(shard, 0):
                self._link(shard, list(self._old_files))
                self._linked[shard] = self._erased.get(shard, 0)
            else:
                self._copy(shard, is_sealed, counters, dead)
        if counters.row_count % shard_rows == 0:
            self._checksums = {}
        self.row_count = counters.row_count

    def states(self) -> dict[str, ArrayState]:
        return {name: ArrayState(self.row_count, self._checksums.get(name, 0)) for name in self._new_files}

    def dead(self, dead: Positions) -> Positions:
        return dead

    def erased(self) -> Mapping[int, int]:
        everywhere, *others = [np.unique(np.concatenate(pieces)) for pieces in self._blank.values()]
        for positions in others:
            everywhere = np.intersect1d(everywhere, positions, assume_unique=True)
        return {**self._linked, **counts_by(everywhere, self.old.record.shard_rows)}

    def _link(self, shard: int, names: list[str]) -> None:
        syncs = Syncs()
        for name in names:
            source = self._old_files[name].shard_path(shard)
            if source.exists():
                self._new_files[name].link_shard(shard, source, syncs)
            else:
                self._report(source, "is missing")
        syncs.run_alone(self._disk)

    def _copy(self, shard: int, is_sealed: bool, counters: CheckpointCounters, dead: Positions) -> None:
        """Copies the rows of a shard that were not copied before, from the edge of their chunks on."""
        shard_rows = self.old.record.shard_rows
        rows = min(counters.row_count - shard * shard_rows, shard_rows)
        low, high = np.searchsorted(dead, (shard * shard_rows, shard * shard_rows + rows))
        dead_here = dead[low:high] - shard * shard_rows
        syncs = Syncs()
        names = [name for name in self._old_files if not (is_sealed and name not in BLANKS)]
        for name in names:
            path = self._old_files[name].shard_path(shard)
            if not path.exists():
                self._report(path, "is missing")
                continue
            with ShardFile(path, self._old_files[name].layout, rows, counters.checksums.get(name, 0)) as file:
                first = max(self.row_count - shard * shard_rows, 0)
                self._copy_chunks(shard, name, file, (first, dead_here), syncs)
        syncs.run_alone(self._disk)
        if rows == shard_rows:
            for name in names:
                if self._old_files[name].shard_path(shard).exists():
                    self._new_files[name].seal(shard)
        if is_sealed:
            self._link(shard, [name for name in self._old_files if name not in BLANKS])
        self.rewritten_shards.add(shard)

    def _copy_chunks(self, shard: int, name: str, file: ShardFile, which: tuple[int, Positions], syncs: Syncs) -> None:
        """``which``: the first row to copy, and the dead ones, both counted within the shard."""
        first, dead = which
        array = self._new_files[name]
        for number in range(first // array.layout.chunk_rows, file.chunk_count):
            chunk = file.chunk(number)
            low, high = np.searchsorted(dead, (chunk.first, chunk.first + chunk.row_count))
            inside = dead[low:high]
            data, checksum = chunk.data, chunk.checksum
            if not chunk.is_sound:
                self._report_chunk(array, shard, chunk)
            elif name in BLANKS:
                if len(inside):
                    data = blanked(chunk, array.layout, inside, BLANKS[name])
                    checksum = crc32c(data)
                self._blank[name].append(inside + shard * self.old.record.shard_rows)
            is_whole = chunk.row_count == array.layout.chunk_rows
            array.put_chunk(shard, number, data, checksum if is_whole else None, syncs)
            self._checksums[name] = 0 if is_whole else checksum

    def _report_chunk(self, array: ZarrArray, shard: int, chunk: Chunk) -> None:
        old = self._old_files[array.layout.name].shard_path(shard)
        last = chunk.first + chunk.row_count - 1
        self._report(old, f"rows {chunk.first} to {last} of the shard do not match their checksum")

    def _report(self, path: Path, what: str) -> None:
        text = f"checkpoint {self.old.record.name!r}, {path}: {what}; left as it is"
        if text not in self.unsound:
            self.unsound.append(text)


def blanked(chunk: Chunk, layout: ArrayLayout, positions: Positions, blank: float) -> bytes:
    """The bytes of a chunk with nothing at some positions of its shard."""
    rows = np.frombuffer(chunk.data, layout.dtype).reshape(chunk.row_count, -1).copy()
    rows[positions - chunk.first] = blank
    return rows.tobytes()
