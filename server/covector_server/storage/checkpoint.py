"""The arrays of one checkpoint, side by side: gradients, scales, row ids and TRAK's Q, and which positions are live."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from covector.errors import Corrupt
from covector.types import GradientKind
from covector_server.metadata.records import CheckpointCounters, CheckpointRecord
from covector_server.storage.contract import ArrayState, BadRows, RowArray, Rows
from covector_server.storage.damage import Damage, DamageReporter, OnDamage
from covector_server.storage.layout import ArrayLayout, checkpoint_layouts
from covector_server.storage.positions import NO_POSITIONS, PositionFinder
from covector_server.storage.strips import StoredStrip, live_mask
from covector_server.storage.view import Columns, Positions, RowIds, StripSource, Tile

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
                    path=self.directory / name,
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

    def view(self, damages: DamageReporter) -> StoredCheckpointView:
        """What is committed now."""
        return StoredCheckpointView(
            self.record, self.arrays, self.counters.row_count, self.positions, self.dead, damages
        )

    def close(self) -> None:
        for array in self.arrays.values():
            array.close()


@dataclass(frozen=True, slots=True)
class StoredCheckpointView:
    """``view.CheckpointView`` on mapped shards."""

    record: CheckpointRecord
    arrays: Mapping[str, RowArray]
    position_count: int
    positions: PositionFinder
    dead: Positions
    damages: DamageReporter
    first: int = 0  # rows at positions before it are not seen

    @property
    def id(self) -> int:
        return self.record.id

    @property
    def generation(self) -> int:
        return self.record.generation

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
        dead_count = len(self.dead) - int(np.searchsorted(self.dead, self.first))
        return self.position_count - self.first - dead_count

    def tiles(
        self, rows_max: int, row_id_range: tuple[int, int] | None = None, on_damage: OnDamage | None = None
    ) -> Iterator[Tile]:
        """The live rows in order of arrival; see ``view.CheckpointView``."""
        start, chunk_rows = self.first, self.record.chunk_rows
        while start < self.position_count:
            stop = min(start + rows_max, start - start % chunk_rows + chunk_rows, self.position_count)
            try:
                tile = self._chosen_tile(start, stop, row_id_range)
            except BadRows as bad:  # of a column's chunk: the rest of the shard
                stop = min(bad.stop, self.position_count)
                self.meet(bad, on_damage, self.live_count(start, stop, row_id_range))
                tile = None
            if tile is not None:
                yield tile
            start = stop

    def strips(self, rows_max: int, row_id_range: tuple[int, int] | None = None) -> Iterator[StripSource]:
        """What ``tiles`` gives, as sources; see ``view.CheckpointView``."""
        for start, stop in self._stretches(rows_max):
            strip = StoredStrip(self, start, stop, row_id_range)
            if row_id_range is None or strip.may_have_rows():
                yield strip

    def strips_of(self, row_ids: RowIds, rows_max: int, on_damage: OnDamage | None = None) -> Iterator[StripSource]:
        """Those of the rows that are here, in order of arrival; see ``view.CheckpointView``."""
        positions, _ = self._positions_of(row_ids, on_damage)
        yield from self.strips_at(np.sort(positions[positions >= 0]), rows_max)

    def strips_at(self, positions: Positions, rows_max: int) -> Iterator[StripSource]:
        """The live rows at some positions, which ascend; see ``view.PositionedCheckpoint``."""
        cuts = np.flatnonzero(np.diff(positions // self.record.shard_rows)) + 1
        for here in np.split(positions, cuts) if len(positions) else ():
            for first in range(0, len(here), rows_max):
                some = here[first : first + rows_max]
                yield StoredStrip(self, int(some[0]), int(some[-1]) + 1, positions=some)

    def _stretches(self, rows_max: int) -> Iterator[tuple[int, int]]:
        """All positions, cut at shards and, if ``rows_max`` is not below a chunk's rows, at chunks."""
        shard_rows, chunk_rows = self.record.shard_rows, self.record.chunk_rows
        step = rows_max - rows_max % chunk_rows or rows_max
        for shard in range(self.first - self.first % shard_rows, self.position_count, shard_rows):
            end = min(shard + shard_rows, self.position_count)
            for start in range(max(shard, self.first), end, step):
                yield start, min(start + step, end)

    def gather(self, row_ids: RowIds, on_damage: OnDamage | None = None) -> Tile:
        """The rows with these ids, in this order; see ``view.CheckpointView``."""
        positions, _ = self._positions_of(row_ids, on_damage)
        chunk_rows = self.record.chunk_rows
        order = np.argsort(positions, kind="stable")
        order = order[positions[order] >= 0]  # all, unless the column of ids is damaged
        chunk_of = positions[order] // chunk_rows
        pieces, places = [], [NO_POSITIONS]
        for chunk in np.unique(chunk_of):
            here, start = order[chunk_of == chunk], int(chunk) * chunk_rows
            try:
                tile = self._tile(start, min(start + chunk_rows, self.position_count))
            except BadRows as bad:
                self.meet(bad, on_damage, len(here))
                continue
            pieces.append(_pick(tile, positions[here] - start))
            places.append(here)
        back = np.argsort(np.concatenate(places), kind="stable")
        return _pick(_join(pieces, self.arrays["gradients"].layout.item_shape[0]), back)

    def has(self, row_ids: RowIds, on_damage: OnDamage | None = None) -> npt.NDArray[np.bool_]:
        """Which of the rows have a gradient here; see ``view.CheckpointView``."""
        positions, unreadable = self._positions_of(row_ids, on_damage)
        return (positions >= 0) | unreadable

    def since(self, position: int) -> StoredCheckpointView:
        """The live rows at this position and later ones alone. A row that ``has`` is not asked about twice."""
        return replace(self, first=position)

    def spans(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """[start, stop) in pieces that lie in one chunk each."""
        chunk_rows = self.record.chunk_rows
        while start < stop:
            end = min(start - start % chunk_rows + chunk_rows, stop)
            yield start, end
            start = end

    def span(self, start: int, stop: int) -> Tile:
        """All rows at positions of one chunk, the dead included. Raises Corrupt."""
        try:
            return self._tile(start, stop)
        except BadRows as bad:
            raise self._corrupt(bad) from bad

    def columns(self, start: int, stop: int) -> Columns:
        """What stands beside the gradients at the positions [start, stop). Raises Corrupt."""
        shard_rows = self.record.shard_rows
        names = ("scales", "row_ids", "trak_q")
        parts: dict[str, list[Rows]] = {name: [] for name in names}
        try:
            while start < stop:
                end = min(start - start % shard_rows + shard_rows, stop)
                for name in names:
                    parts[name].append(self.column(name, start, end))
                start = end
        except BadRows as bad:
            raise self._corrupt(bad) from bad
        scales, row_ids, trak_q = (found[0] if len(found) == 1 else np.concatenate(found) for found in parts.values())
        return Columns(scales, row_ids.view(np.int64), trak_q)

    def _corrupt(self, bad: BadRows) -> Corrupt:
        """The damage of rows that were asked for by position, as it is raised."""
        try:
            self.meet(bad, None, 0)
        except Corrupt as error:
            return error
        raise AssertionError("damage without a sink is raised")

    def _positions_of(self, row_ids: RowIds, on_damage: OnDamage | None) -> tuple[Positions, bool]:
        """Positions, -1 for none, and whether some of the column could not be read, and so any of the rows may be
        there."""
        bad: list[BadRows] = []
        found = self.positions.find(row_ids, self.position_count, self.dead, bad.append)
        for one in bad:
            self.meet(one, on_damage, 0)
        found[found < self.first] = -1
        return found, bool(bad)

    def _chosen_tile(self, start: int, stop: int, row_id_range: tuple[int, int] | None) -> Tile | None:
        chosen = self._chosen(start, stop, row_id_range)
        if chosen is None:
            return self._tile(start, stop)
        return _pick(self._tile(start, stop), chosen) if chosen.any() else None

    def meet(self, bad: BadRows, on_damage: OnDamage | None, left_out: int) -> None:
        """Tells of rows that cannot be read. Raises Corrupt without a sink."""
        stop = min(bad.stop, self.position_count)
        row_ids = self._readable_row_ids(bad.start, stop)
        ids = "" if row_ids is None else f" (row ids {row_ids.min()} to {row_ids.max()})"
        message = (
            f"collection {self.damages.collection!r}, checkpoint {self.name!r}, rows at positions {bad.start} to "
            f"{stop - 1}{ids}: {bad.reason}"
        )
        damage = Damage(self.name, str(bad.path), message, self.live_count(bad.start, stop, None))
        self.damages.meet(damage, on_damage, left_out)

    def live_count(self, start: int, stop: int, row_id_range: tuple[int, int] | None) -> int:
        """Live rows at positions [start, stop) of one shard, with ids in the range; if none can be read, all of them
        are in the range that begins at 0."""
        live = live_mask(self.dead, start, stop)
        if row_id_range is not None:
            row_ids, (low, high) = self._readable_row_ids(start, stop), row_id_range
            live &= low == 0 if row_ids is None else (row_ids >= low) & (row_ids < high)
        return int(np.count_nonzero(live))

    def _readable_row_ids(self, start: int, stop: int) -> Rows | None:
        try:
            return self.column("row_ids", start, stop)
        except BadRows:
            return None

    def _chosen(self, start: int, stop: int, row_id_range: tuple[int, int] | None) -> npt.NDArray[np.bool_] | None:
        live = live_mask(self.dead, start, stop)
        if row_id_range is not None:
            row_ids = self.column("row_ids", start, stop)
            live &= (row_ids >= row_id_range[0]) & (row_ids < row_id_range[1])
        return None if live.all() else live

    def _tile(self, start: int, stop: int) -> Tile:
        return Tile(
            rows=self.column("gradients", start, stop),
            scales=self.column("scales", start, stop),
            row_ids=self.column("row_ids", start, stop).astype(np.int64),
            trak_q=self.column("trak_q", start, stop),
        )

    def column(self, name: str, start: int, stop: int) -> Rows:
        """Rows [start, stop) of an array, which must lie in one chunk. Raises BadRows."""
        return self.arrays[name].read(start, stop, self.position_count)


def _pick(tile: Tile, rows: npt.NDArray[np.bool_] | Positions) -> Tile:
    return Tile(tile.rows[rows], tile.scales[rows], tile.row_ids[rows], tile.trak_q[rows])


def _join(tiles: list[Tile], dim: int) -> Tile:
    if not tiles:
        none = np.empty(0, dtype=np.float32)
        return Tile(np.empty((0, dim), dtype=np.float16), none, NO_POSITIONS, none)
    columns = ([getattr(tile, name) for tile in tiles] for name in ("rows", "scales", "row_ids", "trak_q"))
    return Tile(*(np.concatenate(column) for column in columns))
