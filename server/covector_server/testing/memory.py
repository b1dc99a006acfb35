"""Collections in memory: ``storage.view`` on arrays, for tests of whatever reads a view."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.blocks import encode_key, scale_rows
from covector.types import GradientKind, Key, Space
from covector_server.metadata.fields import new_fields
from covector_server.metadata.postings import Postings
from covector_server.storage.view import PostingsRange, RowDetails, RowIds, Tile

NO_ETA: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True)
class MemoryCheckpoint:
    """``view.CheckpointView`` on one tile. No tile that it gives has more than ``chunk_rows`` rows."""

    name: str
    stored: Tile
    eta: float = 1.0
    weights_digest: str | None = None
    kind: GradientKind = field(default_factory=GradientKind)
    chunk_rows: int = 1 << 30

    @property
    def row_count(self) -> int:
        return len(self.stored.row_ids)

    def tiles(self, rows_max: int, row_id_range: tuple[int, int] | None = None) -> Iterator[Tile]:
        """The rows in order of arrival; see ``view.CheckpointView``."""
        step = min(rows_max, self.chunk_rows)
        for start in range(0, self.row_count, step):
            tile = _pick(self.stored, slice(start, start + step))
            if row_id_range is not None:
                low, high = row_id_range
                tile = _pick(tile, np.flatnonzero((tile.row_ids >= low) & (tile.row_ids < high)))
            if len(tile.row_ids):
                yield tile

    def gather(self, row_ids: RowIds) -> Tile:
        """The rows with these ids, in this order."""
        place_of = {row_id: place for place, row_id in enumerate(self.stored.row_ids.tolist())}
        return _pick(self.stored, np.array([place_of[row_id] for row_id in row_ids.tolist()], dtype=np.int64))

    def has(self, row_ids: RowIds) -> npt.NDArray[np.bool_]:
        """Which of the rows have a gradient here."""
        return np.isin(row_ids, self.stored.row_ids)


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
    """``view.CollectionView`` on a list of rows: a row's id is its place."""

    name: str
    space: Space
    rows: Sequence[RowDetails]
    fields: Mapping[str, str]
    checkpoints: Mapping[str, MemoryCheckpoint]
    run_rows: int = 1000  # of metadata at once
    indexes: Sequence[PostingsRange] = ()
    newer_rows: Sequence[int] = ()  # whose metadata the indexes do not know
    supplement_count: int = 0

    @property
    def row_id_count(self) -> int:
        return len(self.rows)

    @property
    def row_count(self) -> int:
        return len(self.rows)

    def row_ids_of(self, keys: Sequence[bytes]) -> RowIds:
        """The ids of encoded keys, -1 for an unknown one."""
        place_of = {row.key: place for place, row in enumerate(self.rows)}
        return np.array([place_of.get(key, -1) for key in keys], dtype=np.int64)

    def keys_of(self, row_ids: RowIds) -> list[bytes]:
        """The encoded keys of rows, in this order."""
        return [self.rows[row_id].key for row_id in row_ids.tolist()]

    def details_of(self, row_ids: RowIds) -> list[RowDetails]:
        """Key, text and metadata of rows, in this order."""
        return [self.rows[row_id] for row_id in row_ids.tolist()]

    def metadata(
        self, row_id_range: tuple[int, int] | None = None
    ) -> Iterator[tuple[int, list[dict[str, Any] | None]]]:
        """The metadata of all rows, or of a range, in runs of ``run_rows``."""
        low, high = row_id_range or (0, len(self.rows))
        for first in range(low, min(high, len(self.rows)), self.run_rows):
            yield first, [row.metadata for row in self.rows[first : min(first + self.run_rows, high)]]

    def postings(self) -> Sequence[PostingsRange]:
        """The indexes that it was given."""
        return self.indexes

    def supplemented(self, ranges: Sequence[PostingsRange]) -> RowIds:
        """Those of ``newer_rows`` that lie in the ranges."""
        newer = np.unique(np.array(self.newer_rows, dtype=np.int64))
        covered = [(newer >= each.first) & (newer < each.first + each.row_count) for each in ranges]
        return newer[np.logical_or.reduce(covered)] if covered else newer[:0]


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
    rows = [RowDetails(encode_key(key), texts.get(key), _plain(metadata.get(key))) for key in keys]
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


def _plain(metadata: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if metadata is None else json.loads(json.dumps(metadata))


def _tile(row_ids: list[int], gradients: npt.ArrayLike) -> Tile:
    rows, scales = scale_rows(gradients)
    return Tile(rows, scales, np.array(row_ids, dtype=np.int64), np.full(len(scales), np.nan, dtype=np.float32))


def _pick(tile: Tile, rows: slice | RowIds) -> Tile:
    return Tile(tile.rows[rows], tile.scales[rows], tile.row_ids[rows], tile.trak_q[rows])
