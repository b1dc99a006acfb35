"""Exact top and bottom k, judged by float64 products of decoded rows and Python's sort."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from tests.unit.query_judge import all_scores, check_end, tolerance

from covector.blocks import decode_key
from covector.errors import Unavailable
from covector.types import GradientKind, Space
from covector_server.kernels import scan as kernels_scan
from covector_server.kernels import topk as kernels_topk
from covector_server.metadata.fields import canonical
from covector_server.query import scan, topk
from covector_server.query.cancellation import never
from covector_server.query.engine import scores, top_k
from covector_server.query.question import CheckpointChoice, Missing, Question, Reduce
from covector_server.query.topk import Ranking
from covector_server.storage.view import RowIds
from covector_server.testing.memory import MemoryCollection, memory_collection

ROUNDING = 1e-13  # of |q||g|: sums of float64 in another order


def spread_rows(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    """Gradients with norms from 1e-8 to 1e8, some all-zero, some twice."""
    rows = rng.standard_normal((count, dim)) * 10.0 ** rng.uniform(-8, 8, (count, 1))
    rows[rng.integers(0, count, count // 20)] = 0.0
    rows[rng.integers(0, count, count // 10)] = rows[0]
    return rows


def collection_of(rng: np.random.Generator, count: int = 300, dim: int = 40, names: str = "a") -> MemoryCollection:
    """Checkpoints with the rows in another order in each, each lacking some."""
    keys = [place if place % 3 else f"row-{place}" for place in range(count)]
    checkpoints = {}
    for name in names:
        chosen = rng.permutation(count)[: count - (count // 10 if len(names) > 1 else 0)]
        checkpoints[name] = ([keys[place] for place in chosen], spread_rows(rng, len(chosen), dim))
    return memory_collection(
        "c",
        Space(dim=dim),
        checkpoints,
        metadata={key: {"third": place % 3} for place, key in enumerate(keys)},
        eta={name: 0.5 + place for place, name in enumerate(names)},
        chunk_rows=37,
    )


def check_answer(view: MemoryCollection, question: Question, k: int, kept: set[int] | None = None) -> None:
    answer = top_k(view, question, k)
    expected = all_scores(view, question, kept)
    slack = tolerance(view, question, ROUNDING)
    assert len(answer.results) == len(expected)
    for ends, wanted in zip(answer.results, expected, strict=True):
        check_end(view, ends.proponents, wanted, k, 1.0, slack)
        check_end(view, ends.opponents, wanted, k, -1.0, slack)


def vectors_of(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) * 10.0 ** rng.uniform(-8, 8, (*shape[:-1], 1))).astype(np.float32)


@pytest.mark.parametrize("scorer", ["dot", "cosine", "tracin"])
@pytest.mark.parametrize("k", [1, 10, 1000])
def test_one_checkpoint(scorer: str, k: int) -> None:
    rng = np.random.default_rng(k)
    check_answer(collection_of(rng), Question(vectors=vectors_of(rng, 1, 3, 40), scorer=scorer), k)


@pytest.mark.parametrize("scorer", ["dot", "cosine", "tracin"])
@pytest.mark.parametrize("missing", ["omit", "zero"])
@pytest.mark.parametrize("narrow_ranges", [False, True])
def test_several_checkpoints(
    scorer: str, missing: Missing, narrow_ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if narrow_ranges:
        monkeypatch.setattr(scan, "RANGE_BYTES", 0)
        monkeypatch.setattr(scan, "RANGE_ROWS_MIN", 64)
    rng = np.random.default_rng(5)
    view = collection_of(rng, names="abc")
    choices = tuple(CheckpointChoice(name) for name in "ca")
    question = Question(vectors=vectors_of(rng, 2, 2, 40), checkpoints=choices, scorer=scorer, missing=missing)
    check_answer(view, question, 12)


@pytest.mark.parametrize("reduce", [None, "mean", "max"])
@pytest.mark.parametrize("names", ["a", "ab"])
def test_groups(reduce: Reduce | None, names: str) -> None:
    rng = np.random.default_rng(6)
    choices = tuple(CheckpointChoice(name) for name in names)
    question = Question(
        vectors=rng.standard_normal((len(names), 5, 40)).astype(np.float32),
        checkpoints=choices,
        scorer="cosine",
        groups=[1, 0, 2, 0, 1],
        reduce=reduce,
    )
    check_answer(collection_of(rng, names=names), question, 15)


@pytest.mark.parametrize("scorer", ["dot", "cosine"])
@pytest.mark.parametrize("names", ["a", "ab"])
@pytest.mark.parametrize("reduce", [None, "max"])
def test_without_the_compiled_library(
    scorer: str, names: str, reduce: Reduce | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels_scan, "LIBRARY", None)
    monkeypatch.setattr(kernels_topk, "LIBRARY", None)
    rng = np.random.default_rng(16)
    choices = tuple(CheckpointChoice(name) for name in names)
    vectors = vectors_of(rng, len(names), 3, 40)
    view = collection_of(rng, names=names)
    check_answer(view, Question(vectors=vectors, checkpoints=choices, scorer=scorer, reduce=reduce), 12)


@pytest.mark.parametrize("names", ["a", "ab"])
def test_a_filter_that_few_rows_pass(names: str) -> None:
    """Rows are looked up then: the strips hold those alone."""
    rng = np.random.default_rng(17)
    view = collection_of(rng, names=names)
    few = {place for place in range(300) if place % 50 == 7}
    metadata = [replace(row, metadata_json=canonical({"few": place in few})) for place, row in enumerate(view.rows)]
    view = replace(view, rows=metadata, fields={"few": "boolean"})
    choices = tuple(CheckpointChoice(name) for name in names)
    question = Question(vectors=vectors_of(rng, len(names), 2, 40), checkpoints=choices, where={"few": True})
    check_answer(view, question, 4, few)
    present = [set(checkpoint.stored.row_ids.tolist()) for checkpoint in view.checkpoints.values()]
    assert top_k(view, question, 4).stages[1].rows_in == len(few.intersection(*present))


def test_a_filter_leaves_rows_out() -> None:
    rng = np.random.default_rng(7)
    for names in ("a", "ab"):
        view = collection_of(rng, names=names)
        kept = {place for place, row in enumerate(view.rows) if row.metadata == {"third": 1}}
        choices = tuple(CheckpointChoice(name) for name in names)
        question = Question(vectors=vectors_of(rng, len(names), 1, 40), checkpoints=choices, where={"third": 1})
        check_answer(view, question, 20, kept)
        filter_stage = top_k(view, question, 20).stages[0]
        assert (filter_stage.rows_in, filter_stage.rows_out) == (300, len(kept))


@pytest.mark.parametrize("names", ["a", "ab"])
def test_rows_that_float32_cannot_tell_apart(names: str) -> None:
    """All but one coordinate of a row is a shuffle of the same numbers, on which the query is the same: float32 sums
    differ by rounding alone. On the last the query is 1e-7, which decides in float64."""
    rng = np.random.default_rng(8)
    count, deciding = 400, np.linspace(0.5, 1.0, 400).astype(np.float16)
    assert len(np.unique(deciding)) == count
    common = np.tile(rng.standard_normal(63).astype(np.float16), (count, 1))
    order = rng.permutation(count)
    vectors = np.full((len(names), 1, 64), 0.1, dtype=np.float32)
    vectors[:, 0, 63] = 1e-7
    view = memory_collection("c", Space(dim=64), {name: (range(count), np.ones((count, 64))) for name in names})
    for checkpoint in view.checkpoints.values():
        checkpoint.stored.rows[:] = np.column_stack([rng.permuted(common, axis=1), deciding[order]])
    question = Question(vectors=vectors, checkpoints=[CheckpointChoice(name) for name in names])
    ends = top_k(view, question, 25).results[0]
    assert ends.proponents.row_ids.tolist() == np.argsort(-deciding[order])[:25].tolist()
    assert ends.opponents.row_ids.tolist() == np.argsort(deciding[order])[:25].tolist()


@pytest.mark.parametrize("dim", [1, 2, 1023, 1024, 1025, 5000])
def test_dims_around_the_blocks(dim: int) -> None:
    rng = np.random.default_rng(dim)
    check_answer(collection_of(rng, 80, dim), Question(vectors=vectors_of(rng, 1, 2, dim)), 7)


@pytest.mark.parametrize("size", [1e-40, 1e-30, 1e30, 1e37])
def test_the_ends_of_float32(size: float) -> None:
    rng = np.random.default_rng(9)
    rows = rng.standard_normal((100, 16)) * size
    view = memory_collection("c", Space(dim=16), {"a": (range(100), rows)})
    for vector_size in (1e-40, 1.0, 1e37):
        vectors = (rng.standard_normal((1, 1, 16)) * vector_size).astype(np.float32)
        for scorer in ("dot", "cosine"):
            question = Question(vectors=vectors, scorer=scorer)
            check_answer(view, question, 5)
            (block,) = scores(view, question).blocks
            assert np.isfinite(block.scores).all()


def test_equal_scores_come_in_order_of_key_at_both_ends() -> None:
    """Mass ties: more equal rows than the ranking holds, in shuffled order, integer keys before strings."""
    rng = np.random.default_rng(10)
    keys = [*range(-2000, 2000), *(f"k{place}" for place in range(1000))]
    order = rng.permutation(len(keys))
    rows = np.tile(rng.standard_normal(8), (len(keys), 1))
    view = memory_collection("c", Space(dim=8), {"a": ([keys[place] for place in order], rows)}, chunk_rows=300)
    ends = top_k(view, Question(vectors=vectors_of(rng, 1, 1, 8)), 5).results[0]
    for end in (ends.proponents, ends.opponents):
        assert [decode_key(key) for key in end.keys] == [-2000, -1999, -1998, -1997, -1996]
        assert len(set(end.scores.tolist())) == 1


def test_a_ranking_stays_small_and_looks_few_keys_up() -> None:
    looked_up: list[int] = []

    def keys_of(row_ids: RowIds) -> list[bytes]:
        looked_up.append(len(row_ids))
        return [int(row_id).to_bytes(8, "big") for row_id in row_ids]

    ranking = Ranking(10, keys_of)
    for start in range(0, 100_000, 100):
        ranking.add(np.ones(100), np.arange(start, start + 100)[::-1])
        assert len(ranking._scores) <= 2 * 10 + topk.SLACK + 100
    assert ranking.best()[0].tolist() == list(range(10))
    assert sum(looked_up) <= 2 * 100_000
    assert max(looked_up) <= 2 * 10 + topk.SLACK + 100


def test_no_keys_are_looked_up_without_ties() -> None:
    looked_up: list[int] = []

    def keys_of(row_ids: RowIds) -> list[bytes]:
        looked_up.append(len(row_ids))
        return [b"" for _ in row_ids]

    ranking = Ranking(3, keys_of)
    values = np.random.default_rng(11).permutation(10_000).astype(np.float64)
    for start in range(0, 10_000, 500):
        ranking.add(values[start : start + 500], np.arange(start, start + 500))
    assert looked_up == []
    assert ranking.best()[2].tolist() == [9999.0, 9998.0, 9997.0]


def test_zero_rows_and_zero_queries_score_zero() -> None:
    view = memory_collection("c", Space(dim=3), {"a": (["b", "a"], np.array([[0, 0, 0], [1, 2, 3]]))})
    for scorer in ("dot", "cosine"):
        ends = top_k(view, Question(vectors=np.zeros((1, 1, 3), dtype=np.float32), scorer=scorer), 2).results[0]
        assert ends.opponents.scores.tolist() == [0.0, 0.0]
        assert not np.signbit(ends.opponents.scores).any()
        assert [decode_key(key) for key in ends.opponents.keys] == ["a", "b"]
        ends = top_k(view, Question(vectors=-np.ones((1, 1, 3), dtype=np.float32), scorer=scorer), 1).results[0]
        assert ends.proponents.scores.tolist() == [0.0]


def test_margins_against_losses_turn_the_sign() -> None:
    rng = np.random.default_rng(12)
    view = memory_collection(
        "c",
        Space(dim=8),
        {"a": (range(50), rng.standard_normal((50, 8)))},
        kinds={"a": GradientKind(function="loss")},
    )
    vectors = vectors_of(rng, 1, 1, 8)
    same = top_k(view, Question(vectors=vectors, kind=GradientKind(function="loss")), 5).results[0]
    other = top_k(view, Question(vectors=vectors, kind=GradientKind(function="margin")), 5).results[0]
    assert other.proponents.keys == same.opponents.keys
    assert other.proponents.scores.tolist() == (-same.opponents.scores).tolist()
    check_answer(view, Question(vectors=vectors, kind=GradientKind(function="margin")), 5)


def test_eta_counts_for_sums_and_for_tracin() -> None:
    rng = np.random.default_rng(13)
    rows = rng.standard_normal((20, 4))
    view = memory_collection("c", Space(dim=4), {"a": (range(20), rows)}, eta={"a": 1e-3})
    vectors = vectors_of(rng, 1, 1, 4)
    plain, tracin = (top_k(view, Question(vectors=vectors, scorer=name), 3).results[0] for name in ("dot", "tracin"))
    np.testing.assert_allclose(tracin.proponents.scores, 1e-3 * plain.proponents.scores, rtol=1e-14)


@pytest.mark.parametrize("names", ["a", "ab"])
@pytest.mark.parametrize("reduce", [None, "max"])
def test_scores_of_all_rows(names: str, reduce: Reduce | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "RANGE_BYTES", 0)
    monkeypatch.setattr(scan, "RANGE_ROWS_MIN", 100)
    rng = np.random.default_rng(14)
    view = collection_of(rng, names=names)
    choices = tuple(CheckpointChoice(name) for name in names)
    vectors = rng.standard_normal((len(names), 3, 40)).astype(np.float32)
    question = Question(vectors=vectors, checkpoints=choices, reduce=reduce)
    blocks = list(scores(view, question).blocks)
    assert len(blocks) == 3
    row_ids = np.concatenate([block.row_ids for block in blocks])
    found = np.concatenate([block.scores for block in blocks], axis=1)
    expected = all_scores(view, question)
    assert row_ids.tolist() == sorted(expected[0])
    wanted = [[scores_of[row_id] for row_id in row_ids.tolist()] for scores_of in expected]
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=tolerance(view, question, 1e-6))


def test_an_empty_collection() -> None:
    view = memory_collection("c", Space(dim=4), {"a": ([], np.zeros((0, 4)))})
    question = Question(vectors=np.ones((1, 2, 4), dtype=np.float32))
    answer = top_k(view, question, 3)
    assert [len(ends.proponents.keys) for ends in answer.results] == [0, 0]
    assert list(scores(view, question).blocks) == []


def test_a_cancelled_query_stops_at_the_next_tile() -> None:
    view = collection_of(np.random.default_rng(15))
    answers: Iterator[bool] = iter([False, False, False, True])
    with pytest.raises(Unavailable, match="cancelled"):
        top_k(view, Question(vectors=np.ones((1, 1, 40), dtype=np.float32)), 3, cancelled=lambda: next(answers))
    assert list(answers) == []
    assert never() is False
