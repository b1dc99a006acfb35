"""Collections in memory: ``storage.view`` on arrays, for tests of whatever reads a view.

Damage is put in on purpose: a checkpoint's ``damaged`` rows, a collection's ``damaged_keys`` and so on, by row id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.blocks import encode_key, scale_rows
from covector.types import GradientKind, Key, Space
from covector_server.metadata.fields import canonical, new_fields
from covector_server.metadata.postings import Postings
from covector_server.storage.damage import Damage, DamageLog, DamageReporter, OnDamage
from covector_server.storage.view import (
    NO_KEY,
    ListedFit,
    ListedIndex,
    PostingsRange,
    RowDetails,
    RowIds,
    Strip,
    StripSource,
    Tile,
)

NO_ETA: Mapping[str, float] = {}
NO_ROWS: frozenset[int] = frozenset()
REPORTER = DamageReporter("c", Path("/"), DamageLog(1000))


@dataclass(frozen=True, slots=True)
class MemoryCheckpoint:
    """``view.CheckpointView`` on one tile. No tile that it gives has more than ``chunk_rows`` rows. ``damaged``: ids of
    rows that cannot be read; ``late_damaged``: of rows that only ``tiles`` and ``strips`` can read."""

    name: str
    stored: Tile
    eta: float = 1.0
    weights_digest: str | None = None
    kind: GradientKind = field(default_factory=GradientKind)
    chunk_rows: int = 1 << 30
    damaged: frozenset[int] = NO_ROWS
    late_damaged: frozenset[int] = NO_ROWS

    @property
    def row_count(self) -> int:
        return len(self.stored.row_ids)

    def tiles(
        self, rows_max: int, row_id_range: tuple[int, int] | None = None, on_damage: OnDamage | None = None
    ) -> Iterator[Tile]:
        """The rows in order of arrival; see ``view.CheckpointView``."""
        step = min(rows_max, self.chunk_rows)
        for start in range(0, self.row_count, step):
            places = np.arange(start, min(start + step, self.row_count))
            if row_id_range is not None:
                row_ids = self.stored.row_ids[places]
                places = places[(row_ids >= row_id_range[0]) & (row_ids < row_id_range[1])]
            sound = self.sound(places, self.damaged, on_damage)
            if len(sound):
                yield _pick(self.stored, slice(start, start + step) if len(sound) == step else sound)

    def strips(self, rows_max: int, row_id_range: tuple[int, int] | None = None) -> Iterator[StripSource]:
        """What ``tiles`` gives, as sources."""
        step = min(rows_max, self.chunk_rows)
        for start in range(0, self.row_count, step):
            places = np.arange(start, min(start + step, self.row_count))
            if row_id_range is not None:
                row_ids = self.stored.row_ids[places]
                places = places[(row_ids >= row_id_range[0]) & (row_ids < row_id_range[1])]
            if len(places):
                yield MemoryStrip(self, places, self.damaged)

    def strips_of(self, row_ids: RowIds, rows_max: int, on_damage: OnDamage | None = None) -> Iterator[StripSource]:
        """Those of the rows that are here, in order of arrival."""
        places = np.flatnonzero(np.isin(self.stored.row_ids, row_ids))
        for start in range(0, len(places), rows_max):
            yield MemoryStrip(self, places[start : start + rows_max], self.damaged | self.late_damaged)

    def gather(self, row_ids: RowIds, on_damage: OnDamage | None = None) -> Tile:
        """The rows with these ids, in this order."""
        place_of = {row_id: place for place, row_id in enumerate(self.stored.row_ids.tolist())}
        places = np.array([place_of[row_id] for row_id in row_ids.tolist()], dtype=np.int64)
        return _pick(self.stored, self.sound(places, self.damaged | self.late_damaged, on_damage))

    def sound(self, places: RowIds, damaged: frozenset[int], on_damage: OnDamage | None) -> RowIds:
        """Those of the places whose rows are not among the damaged ones, of which the sink is told."""
        bad = np.isin(self.stored.row_ids[places], list(damaged))
        if bad.any():
            REPORTER.meet(Damage(self.name, f"memory/{self.name}", "damaged on purpose", int(bad.sum())), on_damage)
        return places[~bad]

    def has(self, row_ids: RowIds, on_damage: OnDamage | None = None) -> npt.NDArray[np.bool_]:
        """Which of the rows have a gradient here."""
        return np.isin(row_ids, self.stored.row_ids)


@dataclass(frozen=True, slots=True)
class MemoryStrip:
    """``view.StripSource`` on places of the stored tile."""

    checkpoint: MemoryCheckpoint
    places: RowIds
    damaged: frozenset[int] = NO_ROWS

    def prefetch(self) -> bool:
        """Everything is in memory."""
        return False

    def load(self, on_damage: OnDamage | None = None) -> Strip:
        """The rows that are not damaged."""
        checkpoint = self.checkpoint
        return Strip.of(checkpoint.stored).pick(checkpoint.sound(self.places, self.damaged, on_damage))


@dataclass(frozen=True, slots=True)
class MemoryPostings:
    """``view.PostingsRange`` on bytes; ``data`` None: an index that cannot be read."""

    first: int
    row_count: int
    supplement_count: int
    data: bytes | None

    def open(self) -> Postings | None:
        """The index in ``data``."""
        return None if self.data is None else Postings.decode(self.data)


@dataclass(frozen=True, slots=True)
class MemoryCollection:
    """``view.CollectionView`` on a list of rows: a row's id is its place. ``damaged_keys``, ``damaged_texts``,
    ``damaged_metadata``: ids of rows of which these cannot be read."""

    name: str
    space: Space
    rows: Sequence[RowDetails]
    fields: Mapping[str, str]
    checkpoints: Mapping[str, MemoryCheckpoint]
    run_rows: int = 1000  # of metadata at once
    damaged_keys: frozenset[int] = NO_ROWS
    damaged_texts: frozenset[int] = NO_ROWS
    damaged_metadata: frozenset[int] = NO_ROWS
    indexes: Sequence[PostingsRange] = ()
    newer_rows: Sequence[int] = ()  # whose metadata the indexes do not know
    supplement_count: int = 0

    @property
    def row_id_count(self) -> int:
        return len(self.rows)

    @property
    def row_count(self) -> int:
        return len(self.rows)

    @property
    def deleted(self) -> RowIds:
        return np.empty(0, dtype=np.int64)

    def row_ids_of(self, keys: Sequence[bytes]) -> RowIds:
        """The ids of encoded keys, -1 for an unknown one."""
        place_of = {row.key: place for place, row in enumerate(self.rows)}
        return np.array([place_of.get(key, -1) for key in keys], dtype=np.int64)

    def keys_of(self, row_ids: RowIds, on_damage: OnDamage | None = None) -> list[bytes]:
        """The encoded keys of rows, in this order."""
        self._meet(set(row_ids.tolist()) & self.damaged_keys, "keys", on_damage)
        return [NO_KEY if row_id in self.damaged_keys else self.rows[row_id].key for row_id in row_ids.tolist()]

    def details_of(self, row_ids: RowIds, on_damage: OnDamage | None = None) -> list[RowDetails]:
        """Key, text and metadata of rows, in this order."""
        damaged = self.damaged_keys | self.damaged_texts | self.damaged_metadata
        self._meet(set(row_ids.tolist()) & damaged, "details", on_damage)
        return [self._readable(row_id) for row_id in row_ids.tolist()]

    def metadata(
        self, row_id_range: tuple[int, int] | None = None, on_damage: OnDamage | None = None
    ) -> Iterator[tuple[int, list[dict[str, Any] | None]]]:
        """The metadata of all rows, or of a range, in runs of ``run_rows``, cut where damaged ones lie."""
        low, high = row_id_range or (0, len(self.rows))
        for first in range(low, min(high, len(self.rows)), self.run_rows):
            row_ids = range(first, min(first + self.run_rows, high, len(self.rows)))
            self._meet(self.damaged_metadata.intersection(row_ids), "metadata", on_damage)
            if self.damaged_metadata.isdisjoint(row_ids):
                yield first, [self.rows[row_id].metadata for row_id in row_ids]
            else:
                yield from (
                    (row_id, [self.rows[row_id].metadata]) for row_id in row_ids if row_id not in self.damaged_metadata
                )

    def postings(self) -> Sequence[PostingsRange]:
        """The indexes that it was given."""
        return self.indexes

    def supplemented(self, ranges: Sequence[PostingsRange]) -> RowIds:
        """Those of ``newer_rows`` that lie in the ranges."""
        newer = np.unique(np.array(self.newer_rows, dtype=np.int64))
        covered = [(newer >= each.first) & (newer < each.first + each.row_count) for each in ranges]
        return newer[np.logical_or.reduce(covered)] if covered else newer[:0]

    def listed_indexes(self) -> Sequence[ListedIndex]:
        """None: it is small."""
        return ()

    def listed_fits(self) -> Sequence[ListedFit]:
        """None: it has no files."""
        return ()

    def _readable(self, row_id: int) -> RowDetails:
        row = self.rows[row_id]
        return replace(
            row,
            key=NO_KEY if row_id in self.damaged_keys else row.key,
            text=None if row_id in self.damaged_texts else row.text,
            metadata_json=None if row_id in self.damaged_metadata else row.metadata_json,
        )

    def _meet(self, row_ids: AbstractSet[int], what: str, on_damage: OnDamage | None) -> None:
        if row_ids:
            REPORTER.meet(Damage("", "memory/rows", f"{what} damaged on purpose", len(row_ids)), on_damage)


def memory_collection(
    name: str,
    space: Space,
    checkpoints: Mapping[str, tuple[Sequence[Key], npt.ArrayLike]],
    *,
    texts: Mapping[Key, str] | None = None,
    metadata: Mapping[Key, dict[str, Any]] | None = None,
    eta: Mapping[str, float] = NO_ETA,
    kinds: Mapping[str, GradientKind] | None = None,
    digests: Mapping[str, str] | None = None,
    chunk_rows: int = 1 << 30,
) -> MemoryCollection:
    """A collection of these gradients, scaled as a client scales them.

    checkpoints: name -> (n keys in order of arrival, float[n, dim]); texts and metadata by key, of rows with gradients
    or without; eta, kinds and digests by checkpoint. Row ids follow the order in which keys first occur. Raises
    InvalidInput for what could not have been stored.
    """
    texts, metadata, kinds, digests = texts or {}, metadata or {}, kinds or {}, digests or {}
    keys = dict.fromkeys(key for written, _ in checkpoints.values() for key in written)
    keys |= dict.fromkeys([*texts, *metadata])
    row_id_of = {key: row_id for row_id, key in enumerate(keys)}
    rows = [RowDetails(encode_key(key), texts.get(key), _stored(metadata.get(key))) for key in keys]
    made = {
        label: MemoryCheckpoint(
            label,
            _tile([row_id_of[key] for key in written], gradients),
            eta.get(label, 1.0),
            digests.get(label),
            kinds.get(label, GradientKind()),
            chunk_rows,
        )
        for label, (written, gradients) in checkpoints.items()
    }
    fields = new_fields({}, ((place, row.metadata or {}) for place, row in enumerate(rows)))
    return MemoryCollection(name, space, rows, fields, made)


def _stored(metadata: dict[str, Any] | None) -> bytes | None:
    return None if metadata is None else canonical(metadata)


def _tile(row_ids: list[int], gradients: npt.ArrayLike) -> Tile:
    rows, scales = scale_rows(gradients)
    return Tile(rows, scales, np.array(row_ids, dtype=np.int64), np.full(len(scales), np.nan, dtype=np.float32))


def _pick(tile: Tile, rows: slice | RowIds) -> Tile:
    return Tile(tile.rows[rows], tile.scales[rows], tile.row_ids[rows], tile.trak_q[rows])
