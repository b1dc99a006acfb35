"""Which range of rows is to be indexed next: a rule without a clock, on what the last look saw.

Row ids fall into ranges of ``RANGE_ROWS``; one file covers a range, or several where the metadata is large. What is not
covered is looked at row by row, so a range is worth indexing before it is complete, but not with every few rows: an
incomplete one is built again from its start. So the busier the collection, the more new rows it takes. The same holds
for rows that supplements touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from covector_server.metadata.records import BlockRecord, PostingsRecord
from covector_server.storage.postings_files import RANGE_ROWS


class Indexed(Protocol):
    """A file of postings, as far as the rule looks at it."""

    @property
    def number(self) -> int: ...
    @property
    def record(self) -> PostingsRecord: ...
    @property
    def is_damaged(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Pace:
    """How much must be new before a range is built again: rows past its end, as a number and as a share of those it
    has, and rows touched by supplements."""

    row_count: int
    share: float
    touched_count: int
    is_still: bool = False

    @staticmethod
    def of(new_row_count: int, new_supplement_count: int) -> Pace:
        """The pace for what came since the last look."""
        if new_row_count >= 4096 or new_supplement_count >= 4:
            return Pace(RANGE_ROWS, 0.0, RANGE_ROWS // 4)
        if new_row_count or new_supplement_count:
            return Pace(256, 0.125, 512)
        return Pace(256, 0.0, 64, is_still=True)


@dataclass(frozen=True, slots=True)
class Piece:
    """What to build: rows from ``first`` on, in the place of a file, if there is one."""

    first: int
    row_count: int
    replaced: tuple[int, ...] = ()


def next_piece(
    files: Sequence[Indexed], row_id_count: int, supplements: Sequence[BlockRecord], pace: Pace
) -> Piece | None:
    """What to build next, None if nothing is worth it. ``files``: by first row."""
    reached = 0
    for file, touched_count in zip(files, touched_counts(files, supplements), strict=True):
        record = file.record
        if record.first < reached:  # another file has its rows
            continue
        if reached < record.first:
            return Piece(reached, min(record.first, _boundary(reached)) - reached)
        if file.is_damaged or touched_count >= pace.touched_count:
            return Piece(record.first, record.row_count, (file.number,))
        reached = record.first + record.row_count
    return _tail(files[-1] if files else None, row_id_count, pace)


def _tail(last: Indexed | None, row_id_count: int, pace: Pace) -> Piece | None:
    """The rows past the last file, with its own if it is not complete."""
    replaced: tuple[int, ...] = ()
    first = covered = 0
    if last is not None and last.record.is_complete:
        first = last.record.first + last.record.row_count
    elif last is not None:
        first, covered, replaced = last.record.first, last.record.row_count, (last.number,)
    available = min(row_id_count, _boundary(first)) - first
    if not reaches_end(first, available) and available - covered < max(pace.row_count, int(pace.share * covered)):
        return None
    return Piece(first, available, replaced) if available > covered else None


def reaches_end(first: int, row_count: int) -> bool:
    """Whether rows from ``first`` on reach the end of their range."""
    return first + row_count == _boundary(first)


def touched_counts(files: Sequence[Indexed], supplements: Sequence[BlockRecord]) -> list[float]:
    """About how many rows of each file later supplements touched, as if each spread its rows evenly from its first to
    its last."""
    oldest = min((file.record.supplement_count for file in files), default=len(supplements))
    newer = supplements[oldest:]
    if not newer:
        return [0.0] * len(files)
    firsts, lasts, counts = (
        np.array([getattr(record, name) for record in newer], dtype=np.float64)
        for name in ("first", "last", "row_count")
    )
    touched = []
    for file in files:
        low, high = file.record.first, file.record.first + file.record.row_count
        overlaps = np.clip(np.minimum(lasts + 1, high) - np.maximum(firsts, low), 0, None)
        per_supplement = overlaps / (lasts + 1 - firsts) * counts
        touched.append(float(per_supplement[file.record.supplement_count - oldest :].sum()))
    return touched


def _boundary(row_id: int) -> int:
    """Where the range of a row ends."""
    return (row_id // RANGE_ROWS + 1) * RANGE_ROWS
