"""What a reader sees: one consistent, committed state of a collection.

A view is taken in one short catalog transaction and never changes afterwards, however much is ingested meanwhile.
The planner, the jobs and the row reads know storage through these contracts only; ``storage.collection`` implements
them on mapped shards, ``testing.memory`` on arrays.

Stored bytes may be damaged. What reads them takes ``on_damage``. Without it damage raises Corrupt, naming the file, the
collection, the checkpoint and the rows. With it the rows are left out, and the sink is told of the file, what is wrong,
and how many live rows went. The same damage may be told several times: the row counts add up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from covector.types import GradientKind, Space
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

    def gather(self, row_ids: RowIds, on_damage: OnDamage | None = None) -> Tile:
        """The rows with these ids, in this order. Every id must be present; damaged rows are missing from the tile."""
        ...

    def has(self, row_ids: RowIds, on_damage: OnDamage | None = None) -> npt.NDArray[np.bool_]:
        """Which of the rows have a gradient here."""
        ...


@dataclass(frozen=True, slots=True)
class RowDetails:
    """What is known of a row besides its gradients."""

    key: bytes  # encoded, see covector.blocks; NO_KEY if damaged
    text: str | None
    metadata: dict[str, Any] | None


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

    def metadata(self, on_damage: OnDamage | None = None) -> Iterator[tuple[int, list[dict[str, Any] | None]]]:
        """The metadata of all rows, the deleted included, by row id: (first row id, one entry a row) runs. Rows whose
        metadata is damaged are in no run."""
        ...
