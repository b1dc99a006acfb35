"""The best of some candidates, against a sort of the float64 scores of all of them."""

from __future__ import annotations

import numpy as np
import pytest

from covector.types import Space
from covector_server.limits import Limits
from covector_server.query.planner import Term, plan_question
from covector_server.query.question import CheckpointChoice, Ends, Question
from covector_server.query.rerank import best_of, ends_of, union_of
from covector_server.storage.view import RowIds, Strip
from covector_server.testing.memory import memory_collection

DIM = 50


def term_and_strips(rows: np.ndarray, vectors: np.ndarray, scorer: str = "dot") -> tuple[Term, list[Strip]]:
    view = memory_collection("c", Space(dim=DIM), {"a": (list(range(len(rows))), rows)})
    question = Question(vectors=vectors[None], scorer=scorer, checkpoints=[CheckpointChoice("a")])
    (term,) = plan_question(view, question, Limits()).terms
    return term, [source.load() for source in term.view.strips(17)]


def reversed_keys(row_ids: RowIds) -> list[bytes]:
    """Keys in the other order than ids."""
    return [f"{10_000 - row_id:06}".encode() for row_id in row_ids.tolist()]


def check(ends: Ends, row_ids: RowIds, scores: np.ndarray, k: int) -> None:
    keys = reversed_keys(row_ids)
    for end, turn in ((ends.proponents, 1.0), (ends.opponents, -1.0)):
        pairs = [(-turn * score, key) for score, key in zip(scores.tolist(), keys, strict=True)]
        order = sorted(range(len(pairs)), key=pairs.__getitem__)[:k]
        assert end.row_ids.tolist() == row_ids[order].tolist()
        assert end.keys == [keys[at] for at in order]
        np.testing.assert_array_equal(end.scores, scores[order])
        assert not np.signbit(end.scores[end.scores == 0]).any()


@pytest.mark.parametrize("scorer", ["dot", "cosine"])
@pytest.mark.parametrize("k", [1, 5, 60, 200])
@pytest.mark.parametrize("spread", ["wide", "equal", "too close for float32"])
def test_both_ends(scorer: str, k: int, spread: str) -> None:
    rng = np.random.default_rng(k)
    rows, vectors = rng.standard_normal((90, DIM)), rng.standard_normal((3, DIM)).astype(np.float32)
    if spread == "equal":
        rows = rows[rng.integers(0, 4, 90)]
    elif spread == "too close for float32":
        rows[:] = rows[0]
        rows[:, 0] *= 1 + rng.integers(-2, 3, 90) / 1024
        vectors[:, 0] = 1e-6
    rows[7] = 0.0
    term, strips = term_and_strips(rows, vectors, scorer)
    for group in range(len(vectors)):
        one = slice(group, group + 1)
        row_ids = np.concatenate([strip.row_ids for strip in strips])
        scores = np.concatenate([term.exact(strip, one)[0] for strip in strips])
        check(best_of(term, group, strips, k, reversed_keys), row_ids, scores, k)
        check(ends_of(row_ids, scores, k, reversed_keys), row_ids, scores, k)


def test_keys_are_asked_for_once_and_of_few_rows() -> None:
    rng = np.random.default_rng(0)
    term, strips = term_and_strips(rng.standard_normal((200, DIM)), rng.standard_normal((1, DIM)).astype(np.float32))
    asked: list[int] = []

    def keys_of(row_ids: RowIds) -> list[bytes]:
        asked.append(len(row_ids))
        return reversed_keys(row_ids)

    best_of(term, 0, strips, 10, keys_of)
    assert asked == [20]


def test_no_candidates() -> None:
    term, _ = term_and_strips(np.ones((1, DIM)), np.ones((1, DIM), dtype=np.float32))
    ends = best_of(term, 0, [], 3, reversed_keys)
    assert [len(end.keys) for end in (ends.proponents, ends.opponents)] == [0, 0]


def test_the_union_of_two_ends() -> None:
    assert union_of(np.array([5, 0, 9]), np.array([9, 1])).tolist() == [0, 1, 5, 9]
    assert union_of(np.empty(0, np.int64), np.empty(0, np.int64)).tolist() == []
