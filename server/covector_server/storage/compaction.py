"""Compaction: the next generation of a checkpoint without its dead rows, the live ones in the same order.

Rows move to other positions, so every chunk is made anew, and every chunk that they come from must match its checksum:
a bad one ends the compaction (``Unsound``), and the checkpoint is erased in place instead.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from covector.errors import Corrupt
from covector_server.metadata.records import CheckpointCounters
from covector_server.storage.checkpoint import StoredCheckpoint
from covector_server.storage.chunks import Chunk, ShardFile
from covector_server.storage.contract import ArrayState, Piece, Rows
from covector_server.storage.disk import Disk
from covector_server.storage.generation import Check, GenerationCopy, array_files
from covector_server.storage.positions import NO_POSITIONS, is_among
from covector_server.storage.strips import live_mask
from covector_server.storage.syncs import Syncs
from covector_server.storage.view import Positions


class Unsound(Corrupt):
    """A chunk does not match its checksum, so its rows may not be given a new one."""


class CompactingCopy(GenerationCopy):
    """Live rows, one after the other."""

    def __init__(self, old: StoredCheckpoint, new: StoredCheckpoint, disk: Disk) -> None:
        super().__init__(old, new)
        self._disk = disk
        self._states = {name: ArrayState() for name in new.arrays}
        self._dropped: list[Positions] = [NO_POSITIONS]  # positions of the old arrays that were left out, ascending
        self._sealed = 0

    def advance(self, counters: CheckpointCounters, dead: Positions, check: Check) -> None:
        shard_rows = self.old.record.shard_rows
        for shard in range(self.row_count // shard_rows, -(-counters.row_count // shard_rows)):
            check()
            syncs = Syncs()
            self._copy(shard, counters, dead, syncs)
            syncs.run_alone(self._disk)
            self._seal()
            self.rewritten_shards.add(shard)
            self.row_count = min((shard + 1) * shard_rows, counters.row_count)

    def states(self) -> dict[str, ArrayState]:
        return dict(self._states)

    def dead(self, dead: Positions) -> Positions:
        dropped = self.dropped()
        left = dead[~is_among(dropped, dead)]
        moved: Positions = left - np.searchsorted(dropped, left)
        return moved

    def dropped(self) -> Positions:
        return np.concatenate(self._dropped)

    def erased(self) -> dict[int, int]:
        return {}

    def _copy(self, shard: int, counters: CheckpointCounters, dead: Positions, syncs: Syncs) -> None:
        shard_rows, chunk_rows = self.old.record.shard_rows, self.old.record.chunk_rows
        base = shard * shard_rows
        rows = min(counters.row_count - base, shard_rows)
        first = max(self.row_count - base, 0)
        with ExitStack() as opened:
            files = {
                name: opened.enter_context(self._file(name, shard, rows, counters)) for name in array_files(self.old)
            }
            columns = {name: self._rows(name, shard, files[name].chunk(0)) for name in files if name != "gradients"}
            for number in range(first // chunk_rows, files["gradients"].chunk_count):
                start, stop = max(first, number * chunk_rows), min((number + 1) * chunk_rows, rows)
                gradients = self._rows("gradients", shard, files["gradients"].chunk(number))
                live = live_mask(dead, base + start, base + stop)
                self._write("gradients", gradients[start - number * chunk_rows :][live], syncs)
                for name, column in columns.items():
                    self._write(name, column[start:stop][live], syncs)
                self._dropped.append(base + start + np.flatnonzero(~live))

    def _file(self, name: str, shard: int, rows: int, counters: CheckpointCounters) -> ShardFile:
        array = array_files(self.old)[name]
        try:
            return ShardFile(array.shard_path(shard), array.layout, rows, counters.checksums.get(name, 0))
        except FileNotFoundError as error:
            raise Unsound(f"{array.shard_path(shard)} is missing") from error

    def _rows(self, name: str, shard: int, chunk: Chunk) -> Rows:
        array = array_files(self.old)[name]
        if not chunk.is_sound:
            raise Unsound(f"{array.shard_path(shard)}: rows from {chunk.first} on do not match their checksum")
        return np.frombuffer(chunk.data, array.layout.dtype).reshape(chunk.row_count, *array.layout.item_shape)

    def _write(self, name: str, rows: Rows, syncs: Syncs) -> None:
        self._states[name] = self.new.arrays[name].write(self._states[name], [Piece(rows)], syncs)

    def _seal(self) -> None:
        for shard in range(self._sealed, self.full_shard_count()):
            for array in self.new.arrays.values():
                array.seal(shard)
        self._sealed = self.full_shard_count()
