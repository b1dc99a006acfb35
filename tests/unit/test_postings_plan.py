"""Which range is indexed next: the rule as a table of cases."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from covector_server.jobs.postings_plan import Pace, Piece, next_piece, touched_counts
from covector_server.metadata.records import BlockRecord, PostingsRecord
from covector_server.storage.postings_files import RANGE_ROWS

STILL, CALM, BUSY = Pace.of(0, 0), Pace.of(100, 0), Pace.of(10_000, 0)
N = RANGE_ROWS


@dataclass(frozen=True)
class File:
    number: int
    record: PostingsRecord
    is_damaged: bool = False


def file(number: int, first: int, row_count: int, *, is_damaged: bool = False, is_complete: bool = True) -> File:
    return File(number, PostingsRecord(first, row_count, 0, is_complete, 0, 0), is_damaged)


WHOLE = file(1, 0, N)
PART = file(2, N, 8_000, is_complete=False)


@pytest.mark.parametrize(("files", "row_id_count", "pace", "expected"), [
    ([], 0, STILL, None),
    ([], 255, STILL, None),
    ([], 256, STILL, Piece(0, 256)),
    ([], 20_000, BUSY, None),
    ([], N, BUSY, Piece(0, N)),
    ([], 3 * N, BUSY, Piece(0, N)),
    ([WHOLE], N, STILL, None),
    ([WHOLE], 2 * N + 7, BUSY, Piece(N, N)),
    ([WHOLE, PART], N + 8_999, CALM, None),
    ([WHOLE, PART], N + 9_000, CALM, Piece(N, 9_000, (2,))),
    ([WHOLE, PART], N + 8_256, STILL, Piece(N, 8_256, (2,))),
    ([WHOLE, PART], 2 * N, BUSY, Piece(N, N, (2,))),
    ([WHOLE, file(2, 2 * N, N)], 3 * N, BUSY, Piece(N, N)),
    ([file(2, 100, N - 100)], N, BUSY, Piece(0, 100)),
    ([file(1, 0, 500), file(2, 500, N - 500)], N, STILL, None),
    ([file(1, 0, 500)], N, BUSY, Piece(500, N - 500)),
    ([file(1, 0, N, is_damaged=True)], N, BUSY, Piece(0, N, (1,))),
    ([WHOLE, file(3, 10, 90), file(2, N, N)], 2 * N, STILL, None),
])  # fmt: skip
def test_what_comes_next(files: list[File], row_id_count: int, pace: Pace, expected: Piece | None) -> None:
    assert next_piece(files, row_id_count, [], pace) == expected


@pytest.mark.parametrize(("touched", "pace", "is_due"), [
    (63, STILL, False), (64, STILL, True), (511, CALM, False), (512, CALM, True), (16_383, BUSY, False),
    (16_384, BUSY, True),
])  # fmt: skip
def test_rows_that_supplements_touched(touched: int, pace: Pace, is_due: bool) -> None:
    supplements = [BlockRecord(0, 0, 0, 0, touched - 1, touched)]
    assert next_piece([WHOLE], N, supplements, pace) == (Piece(0, N, (1,)) if is_due else None)


def test_touched_rows_are_spread_evenly_and_counted_from_where_the_file_ends() -> None:
    supplements = [BlockRecord(0, 0, 0, 0, 99, 10), BlockRecord(0, 0, 0, 50, 149, 100)]
    older = File(1, PostingsRecord(0, 100, 0, True, 0, 0))
    newer = File(2, PostingsRecord(100, 100, 1, True, 0, 0))
    newest = File(3, PostingsRecord(0, 100, 2, True, 0, 0))
    assert touched_counts([older, newer, newest], supplements) == pytest.approx([60, 50, 0])
    assert touched_counts([newest], supplements) == [0]
