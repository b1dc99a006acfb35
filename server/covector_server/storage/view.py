"""What a reader sees: one consistent, committed state of a collection.

A view is taken in one short catalog transaction and never changes afterwards, however much is ingested meanwhile.
The planner, the jobs and the row reads know storage through these contracts only; ``storage.collection`` implements
them on mapped shards, ``testing.memory`` on arrays.

Stored bytes may be damaged. What reads them takes ``on_damage``. Without it damage raises Corrupt, naming the file, the
collection, the checkpoint and the rows. With it the rows are left out, and the sink is told of the file, what is wrong,
and how many live rows went. The same damage may be told several times: the row counts add up.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from covector.types import GradientKind, Space
from covector_server.kernels.scan import ChunkedRows
from covector_server.metadata.postings import Postings
from covector_server.metadata.records import FitRecord, IndexRecord
from covector_server.storage.damage import OnDamage

Positions = npt.NDArray[np.int64]
RowIds = npt.NDArray[np.int64]

NO_KEY = b""  # in place of an encoded key that cannot be read


@dataclass(frozen=True, slots=True)
class Tile:
    """Consecutive live rows of a checkpoint: gradient[i] = scales[i] * rows[i]; trak_q is NaN where not given."""

    rows: npt.NDArray[np.float16]  # [n, dim], at unit RMS; may be a view of a mapped file
    scales: npt.NDArray[np.float32]  # [n]
    row_ids: RowIds  # [n]
    trak_q: npt.NDArray[np.float32]  # [n]


@dataclass(frozen=True, slots=True)
class Strip:
    """Live rows of a checkpoint where they lie: gradient[i] = scales[i] * rows[i]; trak_q is NaN where not given."""

    rows: ChunkedRows  # n of them
    scales: npt.NDArray[np.float32]  # [n]
    row_ids: RowIds  # [n]
    trak_q: npt.NDArray[np.float32]  # [n]

    @classmethod
    def of(cls, tile: Tile) -> Strip:
        """A tile's rows."""
        return cls(ChunkedRows.of(tile.rows), tile.scales, tile.row_ids, tile.trak_q)

    def pick(self, chosen: npt.NDArray[np.bool_] | Positions) -> Strip:
        """Some of the rows: a mask of them, or their positions."""
        return Strip(self.rows.pick(chosen), self.scales[chosen], self.row_ids[chosen], self.trak_q[chosen])


class StripSource(Protocol):
    """Some rows of a checkpoint, of which nothing was read yet. Any thread may ask."""

    def prefetch(self) -> bool:
        """Begins to read the rows from the disk, if some are not in memory; returns whether. Never raises."""
        ...

    def load(self, on_damage: OnDamage | None = None) -> Strip:
        """The rows, checked; those that are damaged are missing from the strip."""
        ...


class CheckpointView(Protocol):
    """The gradients of one checkpoint, in their order of arrival."""

    @property
    def name(self) -> str: ...
    @property
    def eta(self) -> float: ...
    @property
    def weights_digest(self) -> str | None: ...
    @property
    def kind(self) -> GradientKind: ...

    @property
    def row_count(self) -> int:
        """Live rows."""
        ...

    def tiles(
        self, rows_max: int, row_id_range: tuple[int, int] | None = None, on_damage: OnDamage | None = None
    ) -> Iterator[Tile]:
        """The live rows in order of arrival, at most ``rows_max`` a tile; with a range, only rows whose id lies in
        [low, high). Damaged rows whose very ids cannot be read count in the range that begins at 0."""
        ...

    def strips(self, rows_max: int, row_id_range: tuple[int, int] | None = None) -> Iterator[StripSource]:
        """What ``tiles`` gives, as sources that can be read side by side."""
        ...

    def strips_of(self, row_ids: RowIds, rows_max: int, on_damage: OnDamage | None = None) -> Iterator[StripSource]:
        """Those of the rows that are here, in order of arrival, at most ``rows_max`` a strip. Which rows are here is
        read at once, and ``on_damage`` is told if that fails."""
        ...

    def gather(self, row_ids: RowIds, on_damage: OnDamage | None = None) -> Tile:
        """The rows with these ids, in this order. Every id must be present; damaged rows are missing from the tile."""
        ...

    def has(self, row_ids: RowIds, on_damage: OnDamage | None = None) -> npt.NDArray[np.bool_]:
        """Which of the rows have a gradient here."""
        ...


class PositionedCheckpoint(CheckpointView, Protocol):
    """A checkpoint whose rows can be told by their positions, as indexes do. Positions of a generation never change
    their row; a row that is replaced goes to a new position, and its old one is dead."""

    @property
    def id(self) -> int: ...
    @property
    def generation(self) -> int: ...

    @property
    def position_count(self) -> int:
        """Positions written, the dead included."""
        ...

    @property
    def dead(self) -> Positions:
        """Positions of rows that were deleted or replaced, sorted."""
        ...

    def spans(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """[start, stop) in pieces that ``span`` takes."""
        ...

    def span(self, start: int, stop: int) -> Tile:
        """All rows at the positions [start, stop), the dead included, as views of mapped files. Raises Corrupt."""
        ...

    def columns(self, start: int, stop: int) -> Columns:
        """What stands beside the gradients at the positions [start, stop). Raises Corrupt."""
        ...

    def strips_at(self, positions: Positions, rows_max: int) -> Iterator[StripSource]:
        """The live rows at some positions, which ascend, where they lie."""
        ...

    def since(self, position: int) -> CheckpointView:
        """The live rows at this position and later ones alone."""
        ...


@dataclass(frozen=True, slots=True)
class Columns:
    """Values of consecutive positions of a checkpoint, the dead included: as in ``Tile``, without the gradients."""

    scales: npt.NDArray[np.float32]  # [n]
    row_ids: RowIds  # [n]
    trak_q: npt.NDArray[np.float32]  # [n]


@dataclass(frozen=True, slots=True)
class RowDetails:
    """What is known of a row besides its gradients."""

    key: bytes  # encoded, see covector.blocks; NO_KEY if damaged
    text: str | None
    metadata_json: bytes | None  # canonical JSON, as it is stored

    @property
    def metadata(self) -> dict[str, Any] | None:
        """The fields."""
        return None if self.metadata_json is None else json.loads(self.metadata_json)


class PostingsRange(Protocol):
    """An index of the metadata of the rows [first, first + row_count), from which filters are answered."""

    @property
    def first(self) -> int: ...
    @property
    def row_count(self) -> int: ...

    @property
    def supplement_count(self) -> int:
        """How many of the view's supplements it takes in."""
        ...

    def open(self) -> Postings | None:
        """The index; None if it cannot be read, so that its rows must be looked at."""
        ...


class ListedIndex(Protocol):
    """An approximate search structure and where it lies."""

    @property
    def record(self) -> IndexRecord: ...
    @property
    def directory(self) -> Path: ...

    def report(self, message: str) -> None:
        """Remembers that its files are damaged."""
        ...


class ListedFit(Protocol):
    """A fit, and the directory that its parts lie below."""

    @property
    def record(self) -> FitRecord: ...
    @property
    def root(self) -> Path: ...

    def report(self, message: str) -> None:
        """Remembers that its files are damaged."""
        ...


class CollectionView(Protocol):
    """One committed state of a collection."""

    @property
    def name(self) -> str: ...
    @property
    def space(self) -> Space: ...

    @property
    def fields(self) -> Mapping[str, str]:
        """Metadata fields and their types: ``string``, ``number`` or ``boolean``."""
        ...

    @property
    def row_id_count(self) -> int:
        """Row ids given out so far: every id is below it."""
        ...

    @property
    def row_count(self) -> int:
        """Live rows, with or without gradients."""
        ...

    @property
    def deleted(self) -> RowIds:
        """The ids of deleted rows, sorted. No checkpoint has them, no key leads to them."""
        ...

    @property
    def checkpoints(self) -> Mapping[str, CheckpointView]:
        """By name, in the order they were made."""
        ...

    def row_ids_of(self, keys: Sequence[bytes]) -> RowIds:
        """The ids of encoded keys, -1 for an unknown one."""
        ...

    def keys_of(self, row_ids: RowIds, on_damage: OnDamage | None = None) -> list[bytes]:
        """The encoded keys of rows, in this order; NO_KEY for one that is damaged."""
        ...

    def details_of(self, row_ids: RowIds, on_damage: OnDamage | None = None) -> list[RowDetails]:
        """Key, text and metadata of rows, in this order; of a damaged row, what can be read."""
        ...

    def metadata(
        self, row_id_range: tuple[int, int] | None = None, on_damage: OnDamage | None = None
    ) -> Iterator[tuple[int, list[dict[str, Any] | None]]]:
        """The metadata of all rows, the deleted included, by row id: (first row id, one entry a row) runs; with a
        range, of the rows whose id lies in [low, high). Rows whose metadata is damaged are in no run."""
        ...

    @property
    def supplement_count(self) -> int:
        """How often text or metadata came for rows that stood."""
        ...

    def postings(self) -> Sequence[PostingsRange]:
        """What there is of indexes of metadata, by first row. They need not cover every row."""
        ...

    def supplemented(self, ranges: Sequence[PostingsRange]) -> RowIds:
        """The rows of these ranges, ascending, whose metadata came after the range was indexed."""
        ...

    def listed_indexes(self) -> Sequence[ListedIndex]:
        """The approximate search structures that are listed now. They may be of other generations than the view's."""
        ...

    def listed_fits(self) -> Sequence[ListedFit]:
        """The fits that are listed now, those on their way included. They may be of other generations than the
        view's."""
        ...
