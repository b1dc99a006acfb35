"""Questions over collections with damage put in on purpose, judged by float64 over the rows that can be read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.unit.query_judge import all_scores, check_end, tolerance

from covector.errors import Corrupt
from covector.types import Key, Space
from covector_server.limits import Limits
from covector_server.query import scan
from covector_server.query.cancellation import never
from covector_server.query.engine import scores, top_k
from covector_server.query.omission import OTHERS, Omissions, damaged_details, told_before
from covector_server.query.question import CheckpointChoice, Missing, Question, Reduce
from covector_server.storage.damage import Damage
from covector_server.testing.memory import MemoryCollection, memory_collection

DIM, ROWS = 24, 300


def collection_of(seed: int, names: str) -> MemoryCollection:
    """Checkpoints with the rows in another order in each, each lacking some."""
    rng = np.random.default_rng(seed)
    checkpoints = {}
    for name in names:
        chosen = rng.permutation(ROWS)[: ROWS - 20]
        checkpoints[name] = (chosen.tolist(), rng.standard_normal((len(chosen), DIM)))
    metadata: dict[Key, dict[str, int]] = {row: {"third": row % 3} for row in range(ROWS)}
    return memory_collection("c", Space(dim=DIM), checkpoints, metadata=metadata, chunk_rows=37)


def with_damage(view: MemoryCollection, **damaged: set[int]) -> MemoryCollection:
    """The collection with the gradients of some row ids damaged at a checkpoint."""
    checkpoints = {
        name: replace(checkpoint, damaged=frozenset(damaged.get(name, ())))
        for name, checkpoint in view.checkpoints.items()
    }
    return replace(view, checkpoints=checkpoints)


def question_of(seed: int, names: str, **changes: object) -> Question:
    vectors = np.random.default_rng(seed).standard_normal((len(names), 3, DIM)).astype(np.float32)
    choices = [CheckpointChoice(name) for name in names]
    given = {"vectors": vectors, "checkpoints": choices, "damaged": "omit", **changes}
    return Question(**given)  # type: ignore[arg-type]


def check_answer(view: MemoryCollection, question: Question, k: int, gone: set[int]) -> tuple[Damage, ...]:
    answer = top_k(view, question, k)
    expected = all_scores(view, question, set(range(len(view.rows))) - gone)
    slack = tolerance(view, question, 1e-13)
    for ends, wanted in zip(answer.results, expected, strict=True):
        check_end(view, ends.proponents, wanted, k, 1.0, slack)
        check_end(view, ends.opponents, wanted, k, -1.0, slack)
    return answer.damages


def thirds(view: MemoryCollection) -> set[int]:
    """Ids of the rows that the filter ``third ne 1`` does not hold for."""
    return {row_id for row_id, row in enumerate(view.rows) if (row.metadata or {})["third"] == 1}


def counts(damages: tuple[Damage, ...]) -> dict[str, int]:
    assert len({damage.checkpoint for damage in damages}) == len(damages)
    return {damage.checkpoint: damage.row_count for damage in damages}


@pytest.mark.parametrize("missing", ["omit", "zero"])
@pytest.mark.parametrize("reduce", [None, "mean", "max"])
@pytest.mark.parametrize("narrow_ranges", [False, True])
@pytest.mark.parametrize("k", [1, 20])
def test_rows_damaged_anywhere_are_left_out(
    missing: Missing, reduce: Reduce | None, narrow_ranges: bool, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if narrow_ranges:
        monkeypatch.setattr(scan, "RANGE_BYTES", 0)
        monkeypatch.setattr(scan, "RANGE_ROWS_MIN", 64)
    view = collection_of(1, "abc")
    bad = {name: set(view.checkpoints[name].stored.row_ids[start::9].tolist()) for start, name in enumerate("ab")}
    view = with_damage(view, **bad)
    damages = check_answer(view, question_of(2, "abc", missing=missing, reduce=reduce), k, bad["a"] | bad["b"])
    assert counts(damages) == {name: len(rows) for name, rows in bad.items()}


@pytest.mark.parametrize("missing", ["omit", "zero"])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_rows_that_go_bad_between_scan_and_re_score_give_their_place_to_others(missing: Missing, k: int) -> None:
    view = collection_of(3, "ab")
    question = question_of(4, "ab", missing=missing)
    there = set(view.checkpoints["a"].stored.row_ids.tolist())
    best = set().union(*(sorted(scores, key=scores.__getitem__)[-9:] for scores in all_scores(view, question))) & there
    late = replace(
        view, checkpoints={**view.checkpoints, "a": replace(view.checkpoints["a"], late_damaged=frozenset(best))}
    )
    damages = check_answer(late, question, k, best)
    assert set(counts(damages)) == {"a"}
    assert 1 <= counts(damages)["a"] <= len(best)
    with pytest.raises(Corrupt, match="damaged on purpose"):
        top_k(late, replace(question, damaged="fail"), k)


@pytest.mark.parametrize("k", [1, 10])
@pytest.mark.parametrize("where", [None, {"third": {"ne": 1}}])
def test_rows_without_a_readable_key_are_left_out(k: int, where: dict[str, object] | None) -> None:
    view = collection_of(5, "a")
    question = question_of(6, "a", where=where)
    bad = frozenset(range(0, ROWS, 2))
    filtered = thirds(view) if where is not None else set()
    assert counts(check_answer(replace(view, damaged_keys=bad), question, k, filtered | bad)) == {
        "": len(bad - filtered)
    }
    view = replace(view, damaged_keys=bad)
    with pytest.raises(Corrupt, match="keys damaged on purpose"):
        top_k(view, replace(question, damaged="fail"), k)


def test_a_filter_holds_for_no_row_with_damaged_metadata() -> None:
    bad = frozenset(range(0, ROWS, 7))
    view = replace(collection_of(7, "a"), damaged_metadata=bad, run_rows=50)
    damages = check_answer(view, question_of(8, "a", where={"third": {"ne": 1}}), 10, thirds(view) | bad)
    assert counts(damages) == {"": len(bad)}
    assert check_answer(view, question_of(8, "a"), 10, set()) == ()


def test_scores_leave_damaged_rows_out() -> None:
    view = collection_of(9, "ab")
    bad = set(view.checkpoints["b"].stored.row_ids[:50].tolist())
    question = question_of(10, "ab", missing="zero")
    stream = scores(with_damage(view, b=bad), question)
    (block,) = stream.blocks
    expected = all_scores(view, question, set(range(ROWS)) - bad)
    assert block.row_ids.tolist() == sorted(expected[0])
    wanted = [[found[row] for row in sorted(found)] for found in expected]
    np.testing.assert_allclose(block.scores, wanted, rtol=1e-5, atol=1e-4)
    assert stream.omissions is not None
    assert counts(stream.omissions.take()) == {"b": 50}
    assert stream.omissions.take() == ()


def test_details_that_cannot_be_read_are_counted_once_a_row() -> None:
    view = replace(collection_of(11, "a"), damaged_texts=frozenset(range(100)))
    question = question_of(12, "a")
    answer = top_k(view, question, 200)
    hits = {row for ends in answer.results for end in (ends.proponents, ends.opponents) for row in end.row_ids.tolist()}
    damages = damaged_details(view, answer.results, Limits(), never)
    assert counts(damages) == {"": len(hits & set(range(100)))}


def test_what_was_not_told_before_is_told_by_an_error() -> None:
    sink = told_before([Damage("", "rows", "bad", 3)])
    sink(Damage("", "rows", "bad", 1))
    with pytest.raises(Corrupt, match="ask again"):
        sink(Damage("", "rows", "worse", 1))
    told_before([Damage("", OTHERS, "more", 3)])(Damage("", "rows", "worse", 1))


def test_damage_is_added_up_by_place_and_bounded() -> None:
    omissions = Omissions(2)
    for path, row_count in (("a", 1), ("b", 2), ("a", 3), ("c", 4), ("d", 5), ("e", 0)):
        omissions.add(Damage("one", path, "bad", row_count))
    first, second, others = omissions.take()
    assert (first, second) == (Damage("one", "a", "bad", 4), Damage("one", "b", "bad", 2))
    assert (others.path, others.row_count) == (OTHERS, 9)
    assert "damages=2" in others.message
