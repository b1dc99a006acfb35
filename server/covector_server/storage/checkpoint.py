"""The arrays of one checkpoint, side by side: gradients, scales, row ids and TRAK's Q, and which positions are live."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from covector.errors import Corrupt
from covector.types import GradientKind
from covector_server.metadata.records import CheckpointCounters, CheckpointRecord
from covector_server.storage.contract import ArrayState, RowArray, Rows
from covector_server.storage.layout import ArrayLayout, checkpoint_layouts
from covector_server.storage.positions import NO_POSITIONS, PositionFinder
from covector_server.storage.view import Positions, RowIds, Tile

MakeArray = Callable[[Path, ArrayLayout], RowArray]


class StoredCheckpoint:
    """A checkpoint on disk. ``counters`` and ``dead`` are what is committed; each is replaced whole."""

    def __init__(self, record: CheckpointRecord, directory: Path, dim: int, make_array: MakeArray) -> None:
        self.record = record
        self.directory = directory
        self.counters = CheckpointCounters()
        self.dead = NO_POSITIONS  # sorted positions of rows replaced or deleted
        self._publishing = threading.Lock()  # held while zarr.json changes
        layouts = checkpoint_layouts(dim, record.chunk_rows, record.shard_rows)
        self.arrays: Mapping[str, RowArray] = {
            layout.name: make_array(directory / layout.name, layout) for layout in layouts
        }
        self.positions = PositionFinder(self.arrays["row_ids"])

    def create(self) -> None:
        """Makes the empty arrays, durably, over whatever a failed attempt left."""
        if self.directory.exists():
            shutil.rmtree(self.directory)
        for array in self.arrays.values():
            array.create()

    def load(self, counters: CheckpointCounters, dead: Positions) -> None:
        """Takes over what the catalog says, checks the tails, finishes seals. Raises Corrupt for a bad tail."""
        self.counters, self.dead = counters, dead
        for name, array in self.arrays.items():
            if array.checksum_of_tail(counters.row_count) != counters.checksums.get(name, 0):
                raise Corrupt(
                    f"{self.directory / name}: the last committed rows do not match their checksum; restore the "
                    "collection from a snapshot",
                    checkpoint=self.record.name,
                )
            if array.published_row_count() > counters.row_count:  # a copy may hold more than its catalog says
                array.set_published(counters.sealed_shard_count * self.record.shard_rows)

    def states(self) -> dict[str, ArrayState]:
        """How far each array is committed."""
        checksums = self.counters.checksums
        return {name: ArrayState(self.counters.row_count, checksums.get(name, 0)) for name in self.arrays}

    def full_shard_count(self) -> int:
        """Shards that are full, sealed or not."""
        return self.counters.row_count // self.record.shard_rows

    def seal_full_shards(self) -> int:
        """Completes shards that are full and not sealed, durably, and returns how many are sealed then."""
        full = self.full_shard_count()
        with self._publishing:
            for array in self.arrays.values():
                for shard in range(self.counters.sealed_shard_count, full):
                    array.seal(shard)
                array.set_published(max(full * self.record.shard_rows, array.published_row_count()))
        return full

    def is_published(self) -> bool:
        """Whether Zarr tools can read every committed row."""
        return self.published_row_count() == self.counters.row_count

    def published_row_count(self) -> int:
        """Rows that Zarr tools can read now."""
        return min(array.published_row_count() for array in self.arrays.values())

    def publish(self) -> None:
        """Makes every committed row readable by Zarr tools."""
        states = self.states()
        with self._publishing:
            for name, array in self.arrays.items():
                array.complete_tail(states[name])
            for array in self.arrays.values():
                array.set_published(self.counters.row_count)

    def unpublish_tail(self) -> None:
        """Takes a published tail back out of the arrays' shapes, before more rows change its last chunk."""
        with self._publishing:
            sealed = self.full_shard_count() * self.record.shard_rows
            for array in self.arrays.values():
                if array.published_row_count() > sealed:
                    array.set_published(sealed)

    def view(self) -> StoredCheckpointView:
        """What is committed now."""
        return StoredCheckpointView(self.record, self.arrays, self.counters.row_count, self.positions, self.dead)

    def close(self) -> None:
        for array in self.arrays.values():
            array.close()


def live_mask(dead: Positions, start: int, stop: int) -> npt.NDArray[np.bool_]:
    """Which of the positions [start, stop) are not among the sorted dead ones."""
    low, high = np.searchsorted(dead, (start, stop))
    live = np.ones(stop - start, dtype=bool)
    live[dead[low:high] - start] = False
    return live


@dataclass(frozen=True, slots=True)
class StoredCheckpointView:
    """``view.CheckpointView`` on mapped shards."""

    record: CheckpointRecord
    arrays: Mapping[str, RowArray]
    position_count: int
    positions: PositionFinder
    dead: Positions

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def eta(self) -> float:
        return self.record.eta

    @property
    def weights_digest(self) -> str | None:
        return self.record.weights_digest

    @property
    def kind(self) -> GradientKind:
        return self.record.gradient_kind

    @property
    def row_count(self) -> int:
        return self.position_count - len(self.dead)

    def tiles(self, rows_max: int, row_id_range: tuple[int, int] | None = None) -> Iterator[Tile]:
        """The live rows in order of arrival; see ``view.CheckpointView``."""
        chunk_rows = self.record.chunk_rows
        for chunk_start in range(0, self.position_count, chunk_rows):
            chunk_stop = min(chunk_start + chunk_rows, self.position_count)
            for start in range(chunk_start, chunk_stop, rows_max):
                stop = min(start + rows_max, chunk_stop)
                chosen = self._chosen(start, stop, row_id_range)
                if chosen is None:
                    yield self._tile(start, stop)
                elif chosen.any():
                    yield _pick(self._tile(start, stop), chosen)

    def gather(self, row_ids: RowIds) -> Tile:
        """The rows with these ids, in this order; see ``view.CheckpointView``."""
        positions = self._positions_of(row_ids)
        order = np.argsort(positions, kind="stable")
        chunk_of = positions[order] // self.record.chunk_rows
        pieces = []
        for chunk in np.unique(chunk_of):
            start = int(chunk) * self.record.chunk_rows
            stop = min(start + self.record.chunk_rows, self.position_count)
            pieces.append(_pick(self._tile(start, stop), positions[order][chunk_of == chunk] - start))
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return _pick(_join(pieces, self.arrays["gradients"].layout.item_shape[0]), back)

    def has(self, row_ids: RowIds) -> npt.NDArray[np.bool_]:
        """Which of the rows have a gradient here."""
        return self._positions_of(row_ids) >= 0

    def _positions_of(self, row_ids: RowIds) -> Positions:
        return self.positions.find(row_ids, self.position_count, self.dead)

    def _chosen(self, start: int, stop: int, row_id_range: tuple[int, int] | None) -> npt.NDArray[np.bool_] | None:
        live = live_mask(self.dead, start, stop)
        if row_id_range is not None:
            row_ids = self._column("row_ids", start, stop)
            live &= (row_ids >= row_id_range[0]) & (row_ids < row_id_range[1])
        return None if live.all() else live

    def _tile(self, start: int, stop: int) -> Tile:
        return Tile(
            rows=self._column("gradients", start, stop),
            scales=self._column("scales", start, stop),
            row_ids=self._column("row_ids", start, stop).astype(np.int64),
            trak_q=self._column("trak_q", start, stop),
        )

    def _column(self, name: str, start: int, stop: int) -> Rows:
        return self.arrays[name].read(start, stop, self.position_count)


def _pick(tile: Tile, rows: npt.NDArray[np.bool_] | Positions) -> Tile:
    return Tile(tile.rows[rows], tile.scales[rows], tile.row_ids[rows], tile.trak_q[rows])


def _join(tiles: list[Tile], dim: int) -> Tile:
    if not tiles:
        none = np.empty(0, dtype=np.float32)
        return Tile(np.empty((0, dim), dtype=np.float16), none, NO_POSITIONS, none)
    columns = ([getattr(tile, name) for tile in tiles] for name in ("rows", "scales", "row_ids", "trak_q"))
    return Tile(*(np.concatenate(column) for column in columns))
