"""Questions that are finished together are answered as if each had been asked alone."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future
from dataclasses import replace

import numpy as np
import pytest
from tests.unit.test_query_sharing import DIM, ROWS, WAIT_S, Rig, check, question, rig, until

from covector.errors import InvalidInput, NotFound, Unavailable
from covector.types import Space
from covector_server.limits import Limits
from covector_server.query import joint
from covector_server.query.cancellation import never
from covector_server.query.engine import plan_top_k, top_k
from covector_server.query.joint import BATCH_HITS, Found, JointScan, Member, fits_in_batch, together
from covector_server.query.lines import Waiting
from covector_server.query.question import Question, TopKAnswer
from covector_server.query.scan import Scan, scan_each
from covector_server.query.topk import Selection
from covector_server.storage.view import CollectionView
from covector_server.testing.memory import memory_collection

__all__ = ["rig"]  # the fixture


def ask(rig: Rig, asked: Question, k: int = 5, offset: int = 0) -> Future[Found | None]:
    future = rig.shared.ask("c", asked, k, offset=offset)
    assert future is not None
    return future


def found(future: Future[Found | None]) -> TopKAnswer:
    outcome = future.result(WAIT_S)
    assert outcome is not None
    return outcome.answer


def test_a_batch_is_answered_as_each_alone(rig: Rig) -> None:
    """Of different k, offsets, counts, groups and means; beside questions that are finished by themselves."""
    asked = [
        (question(1), 5, 0),
        (question(2, 3), 1, 0),
        (question(3, 4, groups=[0, 1, 1, 2]), 7, 3),
        (question(4, 3, reduce="mean"), 30, 0),
        (question(5), 1, 399),
    ]
    first = rig.ask(question(0))
    assert rig.gate.reached.wait(WAIT_S)
    alone = rig.ask_behind(question(6, 2, reduce="max"))
    futures = [ask(rig, each, k, offset) for each, k, offset in asked]
    large = rig.ask_behind(question(7), k=ROWS)
    rig.gate.open.set()
    first.result(WAIT_S)
    answers = [found(future) for future in futures]
    assert rig.gate.scans == 2
    check(rig, alone.result(WAIT_S), question(6, 2, reduce="max"))
    check(rig, large.result(WAIT_S), question(7), ROWS)
    for (each, k, offset), answer in zip(asked, answers, strict=True):
        expected = top_k(rig.view, each, k, offset=offset)
        check_same(answer, expected)
        assert [(stage.name, stage.rows_in, stage.rows_out) for stage in answer.stages[:2]] == [
            ("filter", ROWS, ROWS),
            ("scan", ROWS, answer.stages[2].rows_in),
        ]
        assert answer.stages[2].rows_out == expected.stages[2].rows_out


def check_same(answer: TopKAnswer, expected: TopKAnswer) -> None:
    for both, wanted in zip(answer.results, expected.results, strict=True):
        for end, one in ((both.proponents, wanted.proponents), (both.opponents, wanted.opponents)):
            assert end.keys == one.keys
            np.testing.assert_array_equal(end.scores, one.scores)


def test_what_is_stored_with_the_rows_comes_along(rig: Rig) -> None:
    rig.gate.open.set()
    outcome = ask(rig, question(1)).result(WAIT_S)
    assert outcome is not None
    assert outcome.rows is not None
    for both in outcome.answer.results:
        for end in (both.proponents, both.opponents):
            rows = [outcome.rows[row_id] for row_id in end.row_ids.tolist()]
            assert rows == rig.view.details_of(end.row_ids)
    assert rig.held == 0  # before anybody was told


def test_rows_that_are_too_much_together_are_not_kept(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "BATCH_BYTES", -1)
    rig.gate.open.set()
    outcome = ask(rig, question(1)).result(WAIT_S)
    assert outcome is not None
    assert outcome.rows is None
    check(rig, outcome.answer, question(1))


def test_one_that_is_wrong_is_told_alone(rig: Rig) -> None:
    first = rig.ask(question(0))
    assert rig.gate.reached.wait(WAIT_S)
    wrong, right = ask(rig, question(1), k=0), ask(rig, question(2))
    narrow = ask(rig, Question(vectors=np.ones((1, 1, DIM + 1), dtype=np.float32)))
    rig.gate.open.set()
    first.result(WAIT_S)
    with pytest.raises(InvalidInput, match="k must be at least 1"):
        wrong.result(WAIT_S)
    with pytest.raises(InvalidInput, match=f"the query has dim {DIM + 1}"):
        narrow.result(WAIT_S)
    check(rig, found(right), question(2))


def test_one_that_is_cancelled_leaves_the_others(rig: Rig) -> None:
    first = rig.ask(question(0))
    assert rig.gate.reached.wait(WAIT_S)
    in_line, scanned_for, stays = (ask(rig, question(seed)) for seed in (1, 2, 3))
    assert in_line.cancel()
    assert rig.in_line() == 2
    rig.gate.let_pass(first)
    assert scanned_for.cancel()
    rig.gate.open.set()
    check(rig, found(stays), question(3))
    for gone in (in_line, scanned_for):
        with pytest.raises(CancelledError):
            gone.result(0)


def test_a_scan_for_a_batch_that_nobody_wants_ends(rig: Rig) -> None:
    futures = [ask(rig, question(0)), ask(rig, question(1))]
    assert rig.gate.reached.wait(WAIT_S)
    assert all(future.cancel() for future in futures)
    rig.gate.open.set()
    until(lambda: rig.held == 0)
    check(rig, found(ask(rig, question(2))), question(2))


def test_damage_to_what_one_wants_is_no_error_of_the_others(rig: Rig) -> None:
    """They are to be asked alone: then one fails, and the others are answered."""
    rig.gate.open.set()
    (ends,) = top_k(rig.view, question(1), 5).results
    rig.view = replace(rig.view, damaged_texts=frozenset(ends.proponents.row_ids[:1].tolist()))
    rig.gate.open.clear()
    first = rig.ask(question(0))
    rig.gate.reached.clear()
    assert rig.gate.reached.wait(WAIT_S)
    futures = [ask(rig, question(1)), ask(rig, question(2))]
    rig.gate.open.set()
    first.result(WAIT_S)
    assert [future.result(WAIT_S) for future in futures] == [None, None]
    check(rig, rig.ask(question(2)).result(WAIT_S), question(2))


def test_what_no_batch_takes(rig: Rig) -> None:
    for asked, k in (
        (question(1, 2, reduce="max"), 5),
        (question(1), BATCH_HITS // 2 + 1),
        (question(1, where={"a": 1}), 5),
        (question(1, damaged="omit"), 5),
    ):
        assert rig.shared.ask("c", asked, k) is None
    assert fits_in_batch(question(1), BATCH_HITS // 2, 0)
    assert not fits_in_batch(question(1), BATCH_HITS // 2, 1)


def test_a_collection_that_is_not_there(rig: Rig) -> None:
    future = rig.shared.ask("absent", question(0), 1)
    assert future is not None
    with pytest.raises(NotFound):
        future.result(WAIT_S)


def test_nothing_is_asked_after_the_end(rig: Rig) -> None:
    rig.shared.close()
    with pytest.raises(Unavailable, match="the server stops"):
        ask(rig, question(0)).result(WAIT_S)


def test_many_clients_of_batches(rig: Rig) -> None:
    """Eight that ask again and again, some of whom change their mind."""
    rig.gate.open.set()

    def client(number: int) -> list[tuple[Question, TopKAnswer]]:
        answers = []
        for place in range(10):
            asked = question(100 * number + place, 1 + place % 2)
            future = ask(rig, asked)
            if (number + place) % 4 or not future.cancel():
                answers.append((asked, found(future)))
        return answers

    futures = [rig.asking.submit(client, number) for number in range(8)]
    for asked, answer in [one for future in futures for one in future.result(WAIT_S)]:
        check(rig, answer, asked)


def tied_view(distinct_count: int) -> CollectionView:
    """Rows that are equal but for a few: more tie at each place than a pool holds."""
    rng = np.random.default_rng(8)
    rows = np.concatenate([np.tile(rng.standard_normal(6), (3000, 1)), rng.standard_normal((distinct_count, 6))])
    keys = [f"row-{place}" for place in rng.permutation(len(rows))]
    return memory_collection("c", Space(dim=6), {"a": (keys, rows)}, chunk_rows=500)


@pytest.mark.parametrize("distinct_count", [0, 1, 40, 3000])
def test_ties_are_broken_as_for_each_alone(distinct_count: int) -> None:
    view = tied_view(distinct_count)
    rng = np.random.default_rng(distinct_count)
    ks = [1, 3, 40, 40, 2]
    asked = [Question(vectors=rng.standard_normal((1, 1, 6)).astype(np.float32)) for _ in ks]
    waiting = [Waiting(each, k, 0, in_batch=True) for each, k in zip(asked, ks, strict=True)]
    members = [Member(one, plan_top_k(view, one.question, one.k, Limits())) for one in waiting]
    scan = JointScan(view, members, None)
    scan.run()
    scan.finish_batch()
    assert scan.batch is not None
    scan.batch.tell()
    for one, each, k in zip(waiting, asked, ks, strict=True):
        check_same(one.future.result(0).answer, top_k(view, each, k))


@pytest.mark.parametrize("seed", range(5))
def test_a_selection_with_a_k_for_each_result(seed: int) -> None:
    """Against a selection for each result alone, fed with the same blocks."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((700, 6)).round(seed % 2)  # rounded rows tie often
    view = memory_collection("c", Space(dim=6), {"a": (range(700), rows)}, chunk_rows=100)
    ks = rng.integers(1, 60, 4).tolist()
    plans = [
        plan_top_k(view, Question(vectors=rng.standard_normal((1, 1, 6)).astype(np.float32)), k, Limits()) for k in ks
    ]
    scan = Scan(together(plans), None, view.row_id_count, never)
    selection = Selection(scan, ks, view.keys_of)
    scan_each(scan, selection.offer)
    ends = selection.ends()
    for place, (plan, k) in enumerate(zip(plans, ks, strict=True)):
        single = Scan(plan, None, view.row_id_count, never)
        alone = Selection(single, k, view.keys_of)
        scan_each(single, alone.offer)
        (wanted,) = alone.ends()
        assert ends[place].proponents.keys == wanted.proponents.keys
        assert ends[place].opponents.keys == wanted.opponents.keys
        np.testing.assert_array_equal(ends[place].opponents.scores, wanted.opponents.scores)
        assert selection.rescored_counts[place] == alone.rescored_count


def test_the_view_is_closed_when_the_last_lets_go(rig: Rig) -> None:
    """One that is finished by itself holds it, whatever becomes of the batch."""
    rig.gate.open.set()
    holding, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with rig.shared.top_k("c", question(1), 5):
            holding.set()
            assert let_go.wait(WAIT_S)

    held = rig.asking.submit(hold)
    assert holding.wait(WAIT_S)
    check(rig, found(ask(rig, question(2))), question(2))
    until(lambda: rig.held == 1)
    let_go.set()
    held.result(WAIT_S)
    assert rig.held == 0
