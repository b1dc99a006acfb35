"""The short way from strips to candidates gives the hits of the long one, bit by bit, and those of the slow twin."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from tests.unit.query_judge import all_scores, check_end, tolerance

from covector.errors import Unavailable
from covector.types import Key, Space
from covector_server.kernels.topk import is_compiled
from covector_server.query import direct, scan, topk
from covector_server.query.cancellation import never
from covector_server.query.direct import DirectOffer, Offer
from covector_server.query.engine import top_k
from covector_server.query.question import Question
from covector_server.query.workers import Workers
from covector_server.storage.view import Strip
from covector_server.testing.memory import MemoryCollection, memory_collection

pytestmark = pytest.mark.skipif(not is_compiled(), reason="the library is not built")
DIM, ROWS = 24, 3000


@pytest.fixture
def workers() -> Iterator[Workers]:
    found = Workers(3)
    yield found
    found.close()


@pytest.fixture(autouse=True)
def small_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "STRIP_BYTES_MIN", 2 * DIM * 100)


def collection_of(*, equal: bool = False) -> MemoryCollection:
    rng = np.random.default_rng(1)
    rows = np.ones((ROWS, DIM)) if equal else rng.standard_normal((ROWS, DIM)) * rng.uniform(0, 9, (ROWS, 1))
    metadata: dict[Key, dict[str, int]] = {row: {"third": row % 3} for row in range(ROWS)}
    return memory_collection("c", Space(dim=DIM), {"a": (list(range(ROWS)), rows)}, metadata=metadata, chunk_rows=37)


def question_of(count: int = 1, **changes: object) -> Question:
    vectors = np.random.default_rng(2).standard_normal((1, count, DIM)).astype(np.float32)
    return Question(vectors=vectors, **changes)  # type: ignore[arg-type]


def both_ways(
    view: MemoryCollection, question: Question, k: int, workers: Workers | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asserts that the short way is taken, and what it gives."""
    taken: list[int] = []
    score = DirectOffer.score

    def counted(self: DirectOffer, strip: Strip, offer: Offer) -> None:
        taken.append(len(strip.row_ids))
        score(self, strip, offer)

    monkeypatch.setattr(DirectOffer, "score", counted)
    short = top_k(view, question, k, workers=workers)
    assert taken
    with monkeypatch.context() as patched:
        patched.setattr(topk, "direct_offer", lambda *_: None)
        long = top_k(view, question, k, workers=workers)
    kept = {row for row in range(ROWS) if row % 3 == 1} if question.where else None
    slack = tolerance(view, question, 1e-13)
    for ends, others, wanted in zip(short.results, long.results, all_scores(view, question, kept), strict=True):
        for end, other, turn in ((ends.proponents, others.proponents, 1.0), (ends.opponents, others.opponents, -1.0)):
            assert end.keys == other.keys
            np.testing.assert_array_equal(end.scores, other.scores)
            check_end(view, end, wanted, k, turn, slack)
    assert short.stages[1].rows_in == long.stages[1].rows_in == (len(kept) if kept else ROWS)


@pytest.mark.parametrize("scorer", ["dot", "cosine", "tracin"])
@pytest.mark.parametrize("k", [1, 10, 2000])
@pytest.mark.parametrize("threads", [False, True])
def test_hits_are_those_of_the_long_way(
    scorer: str, k: int, threads: bool, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = question_of(4, scorer=scorer)
    both_ways(collection_of(), question, k, workers if threads else None, monkeypatch)


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("held", [0, 2])
def test_strips_that_are_not_held_are_read_again(
    equal: bool, held: int, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "STRIPS_HELD", held)
    both_ways(collection_of(equal=equal), question_of(2), 10, workers, monkeypatch)


@pytest.mark.parametrize("threads", [False, True])
def test_a_million_ties_go_the_long_way(threads: bool, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here three thousand, which is more than a pool holds: it closes while threads are at other strips."""
    both_ways(collection_of(equal=True), question_of(2), 10, workers if threads else None, monkeypatch)


def test_a_wide_filter_picks_rows(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    both_ways(collection_of(), question_of(where={"third": 1}), 10, workers, monkeypatch)


def test_other_questions_go_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DirectOffer, "score", None)  # would fail
    view = collection_of()
    top_k(view, question_of(5), 3)
    top_k(view, question_of(2, groups=[0, 1], reduce="max"), 3)


@pytest.mark.parametrize("count", [0, 3])
def test_a_cancelled_query_stops_between_strips(count: int, workers: Workers) -> None:
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > count

    with pytest.raises(Unavailable):
        top_k(collection_of(), question_of(), 3, workers=workers, cancelled=cancelled)
    assert top_k(collection_of(), question_of(), 3, workers=workers, cancelled=never).results
