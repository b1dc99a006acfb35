"""Positions found in the column are those of a loop over it."""

import random

import numpy as np
import pytest

from covector_server.storage.contract import ArrayState, Piece
from covector_server.storage.layout import ArrayLayout
from covector_server.storage.positions import PositionFinder
from covector_server.storage.syncs import Syncs
from covector_server.testing.memory_array import MemoryArray

LAYOUT = ArrayLayout("row_ids", "<u8", (), chunk_rows=16, shard_rows=16)


def by_loop(column: list[int], wanted: list[int], dead: set[int]) -> list[int]:
    newest = {row_id: position for position, row_id in enumerate(column)}
    return [-1 if newest.get(row_id, -1) in dead else newest.get(row_id, -1) for row_id in wanted]


@pytest.mark.parametrize("seed", range(30))
def test_they_are_those_of_a_loop(seed: int) -> None:
    rng = random.Random(seed)
    array = MemoryArray(LAYOUT)
    finder = PositionFinder(array, orders_bytes=400)
    column: list[int] = []
    state, dead, next_row_id = ArrayState(), set[int](), 0
    for _ in range(25):
        count = rng.randint(1, 20)
        if rng.random() < 0.6:  # new rows, in order
            more = list(range(next_row_id, next_row_id + count))
            next_row_id += count
        else:  # rows again, in any order: their old positions die
            more = rng.sample(range(next_row_id), min(count, next_row_id))
            dead |= {position for position, row_id in enumerate(column) if row_id in more}
        state = array.write(state, [Piece(np.array(more, dtype=np.uint64))], Syncs())
        column += more
        if column and rng.random() < 0.3:
            dead.add(rng.randrange(len(column)))
        wanted = rng.sample(range(next_row_id + 5), min(12, next_row_id + 5))
        ordered = np.array(sorted(dead), dtype=np.int64)
        found = finder.find(np.array(wanted, dtype=np.int64), len(column), ordered)
        assert found.tolist() == by_loop(column, wanted, dead)
        seen = rng.randint(0, len(column))  # a view of fewer rows, from before
        found = finder.find(np.array(wanted, dtype=np.int64), seen, ordered)
        assert found.tolist() == by_loop(column[:seen], wanted, dead)


def test_nothing_is_nowhere() -> None:
    finder = PositionFinder(MemoryArray(LAYOUT))
    none = np.empty(0, dtype=np.int64)
    assert finder.find(none, 0, none).tolist() == []
    assert finder.find(np.array([3]), 0, none).tolist() == [-1]
