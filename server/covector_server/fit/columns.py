"""Weights of rows by row id, for scorers whose weights a row's own columns do not give.

TrackStar's 1/|A^(1/2) g| is stored for the rows that a fit learnt from; for rows that came or were replaced since, it
is computed from the row when a query first meets it, and kept. TRAK's Q stands beside the rows at each checkpoint, and
its mean is over the checkpoints of a query: a column of it is gathered once, and kept.

A column never changes: one with more rows is another, so that a query with an older view keeps its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from covector.attribution.checkpoint_fit import CheckpointFit
from covector.attribution.scoring import Float64, dots, inverse_or_zero
from covector.blocks import decode_key
from covector.errors import Corrupt, InvalidInput, Unavailable
from covector_server.storage.damage import Damage, OnDamage
from covector_server.storage.drafts import Check
from covector_server.storage.strips import live_mask
from covector_server.storage.view import Columns, PositionedCheckpoint, RowIds

NONE: Float64 = np.empty(0)
COLUMN_ROWS = 1 << 18  # whose columns are looked at at once
WHITEN_ELEMENTS = 2 << 20  # of float64 rows that are multiplied with A at once
MERGE_SHARE = 4  # newer rows are kept apart up to one in so many

Pieces = Iterator[tuple[RowIds, Float64]]


class Keys(Protocol):
    """Who knows the keys of rows: a ``CollectionView`` does."""

    def keys_of(self, row_ids: RowIds, on_damage: OnDamage | None = None) -> list[bytes]:
        """See ``CollectionView``."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """``base``: float64[row ids], NaN for none; ``row_ids`` (sorted) and ``values`` of newer rows, which go before.
    ``position_count``: the positions of the checkpoint that it speaks for."""

    base: Float64
    row_ids: RowIds
    values: Float64
    position_count: int

    @property
    def size_bytes(self) -> int:
        """Bytes that it keeps, mapped or not."""
        return int(self.base.nbytes + self.row_ids.nbytes + self.values.nbytes)

    def at(self, row_ids: RowIds) -> Float64:
        """The values of rows, NaN for one that it does not know."""
        if not len(self.row_ids) and row_ids.max(initial=0) < len(self.base):  # as in most scans
            return self.base[row_ids]
        found = np.full(len(row_ids), np.nan)
        inside = row_ids < len(self.base)
        found[inside] = self.base[row_ids[inside]]
        if len(self.row_ids):
            places = np.minimum(np.searchsorted(self.row_ids, row_ids), len(self.row_ids) - 1)
            is_newer = self.row_ids[places] == row_ids
            found[is_newer] = self.values[places[is_newer]]
        return found

    def extended(self, pieces: Pieces, position_count: int) -> Column:
        """With newer rows, the last value of an id counting."""
        found = list(pieces)
        row_ids = np.concatenate([self.row_ids, *(ids for ids, _ in found)])
        values = np.concatenate([self.values, *(piece for _, piece in found)])
        last_first = row_ids[::-1]
        unique, places = np.unique(last_first, return_index=True)
        made = Column(self.base, unique, values[::-1][places], position_count)
        return made.merged() if MERGE_SHARE * len(unique) > len(self.base) else made

    def merged(self) -> Column:
        """The same in one array."""
        size = max(len(self.base), int(self.row_ids[-1]) + 1 if len(self.row_ids) else 0)
        base = np.full(size, np.nan)
        base[: len(self.base)] = self.base
        base[self.row_ids] = self.values
        return replace(self, base=base, row_ids=np.empty(0, dtype=np.int64), values=NONE)


def stored_column(factors: Float64, position_count: int) -> Column:
    """The column that a fit has stored."""
    return Column(factors, np.empty(0, dtype=np.int64), NONE, position_count)


EMPTY = stored_column(NONE, 0)


def fresh_factors(
    fit: CheckpointFit, view: PositionedCheckpoint, first: int, on_damage: OnDamage | None, check: Check
) -> Pieces:
    """W * scale of the live rows at positions from ``first`` on, from the rows themselves: <A g, g> is |A^(1/2) g|^2,
    which takes no root of A. Damaged rows are left out where there is a sink."""
    rows_max = max(1, WHITEN_ELEMENTS // fit.plan.dim)
    for tile in view.since(first).tiles(rows_max, None, on_damage):
        check()
        wide = tile.rows.astype(np.float64)
        squares = np.maximum(dots(wide, fit.preconditioner.apply(wide)), 0.0)
        yield tile.row_ids, np.where(tile.scales > 0, inverse_or_zero(np.sqrt(squares)), 0.0)


def fresh_q(view: PositionedCheckpoint, first: int, on_damage: OnDamage | None, check: Check) -> Pieces:
    """TRAK's Q of the live rows at positions from ``first`` on, NaN where it was not given."""
    for start in range(first, view.position_count, COLUMN_ROWS):
        check()
        stop = min(start + COLUMN_ROWS, view.position_count)
        try:
            columns = view.columns(start, stop)
        except Corrupt:
            if on_damage is None:
                raise
            yield from _readable_q(view, start, stop)
            continue
        yield _live_q(columns, live_mask(view.dead, start, stop))


def _readable_q(view: PositionedCheckpoint, start: int, stop: int) -> Pieces:
    """As far as it can be read: whoever scans the others tells of them."""
    for low, high in view.spans(start, stop):
        with suppress(Corrupt):
            yield _live_q(view.columns(low, high), live_mask(view.dead, low, high))


def _live_q(columns: Columns, live: npt.NDArray[np.bool_]) -> tuple[RowIds, Float64]:
    return columns.row_ids[live], columns.trak_q[live].astype(np.float64)


def check_q(view: Keys, checkpoint: str, pieces: Pieces) -> Pieces:
    """The same pieces. Raises InvalidInput, naming the first row that has no Q."""
    for row_ids, values in pieces:
        lacking = np.flatnonzero(~np.isfinite(values))
        if len(lacking):
            key = decode_key(view.keys_of(row_ids[lacking[:1]])[0])
            raise InvalidInput(
                f"trak needs trak_q (1 - p of the right answer) of every row; row {key!r} of checkpoint {checkpoint!r} "
                "has none. Write it with the rows: writer.add(..., trak_q=...), on_conflict='replace' for rows that "
                'stand; or collect with GradientModel(output="margin")',
                field="trak_q",
                key=key,
            )
        yield row_ids, values


def known_at(column: Column) -> Callable[[RowIds], Float64]:
    """The values of rows, all of which it must know. Raises Unavailable else."""

    def at(row_ids: RowIds) -> Float64:
        found = column.at(row_ids)
        if np.isnan(found).any():
            raise Unavailable("the weights of some rows are not known: the fit changed meanwhile; ask again")
        return found

    return at


def mean_at(columns: Sequence[Column]) -> Callable[[RowIds], Float64]:
    """The mean over the columns that know a row."""

    def at(row_ids: RowIds) -> Float64:
        found = np.stack([column.at(row_ids) for column in columns])
        known = np.isfinite(found)
        total: Float64 = np.where(known, found, 0.0).sum(axis=0)
        mean: Float64 = total / np.maximum(known.sum(axis=0), 1)
        return mean

    return at


def ignored(_damage: Damage) -> None:
    """A sink for damage that whoever reads the rows will tell."""
