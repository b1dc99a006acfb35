"""Answers by an index against exact search: recall, filters, rows that came, went or were replaced since."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.index_rig import IndexRig, decaying, keys_of, recall

from covector.blocks import encode_key
from covector.errors import Corrupt, InvalidInput, NotFound, Unavailable
from covector_server.index.basis import write_basis
from covector_server.index.cache import IndexCache
from covector_server.index.contract import Spec
from covector_server.jobs.compaction import Rules
from covector_server.jobs.operations import FAILED, SUCCEEDED
from covector_server.query import choosing
from covector_server.query.engine import top_k
from covector_server.query.question import CheckpointChoice, Question, TopKAnswer
from covector_server.storage.view import CollectionView

DIM = 128
ROWS = decaying(20_000, DIM)
QUERIES = decaying(20, DIM, seed=5)
METADATA = [{"half": row % 2, "cent": row % 100, "rare": row % 10_000} for row in range(len(ROWS))]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IndexRig]:
    """Shared by tests that change nothing."""
    made = IndexRig(tmp_path_factory.mktemp("indexed") / "store", DIM)
    for start in range(0, len(ROWS), 5_000):
        made.add(start, ROWS[start : start + 5_000], metadata=METADATA[start : start + 5_000])
    assert made.build().state == SUCCEEDED
    yield made
    made.close()


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[IndexRig]:
    """A small store for tests that change it, in which an index is used all the same."""
    monkeypatch.setattr(choosing, "FIXED_ELEMENTS", 0)
    monkeypatch.setattr(choosing, "APART", 0.01)
    made = IndexRig(tmp_path / "store", DIM)
    made.add(0, ROWS[:2_000])
    yield made
    made.close()


@pytest.mark.parametrize("scorer", ["dot", "cosine", "tracin"])
@pytest.mark.parametrize("k", [1, 10, 50])
def test_recall_of_both_ends(rig: IndexRig, scorer: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "APART", 0.1)
    assert recall(rig, QUERIES, k, scorer=scorer) >= 0.97


def test_what_the_build_measured_holds_for_other_queries(rig: IndexRig) -> None:
    (record,) = rig.records()
    measured = min(record.recall.values())
    assert 0.9 < measured <= 1
    assert recall(rig, decaying(100, DIM, seed=9)[:50]) >= measured - 0.03


def test_the_answer_says_what_ran(rig: IndexRig) -> None:
    (record,) = rig.records()
    found = rig.ask(QUERIES[:1])
    assert found.index == record.id
    assert [stage.name for stage in found.stages] == ["filter", "candidates", "rescore"]
    assert found.stages[1].rows_in == len(ROWS)
    assert found.stages[1].rows_out == found.stages[2].rows_in <= 200
    assert found.stages[2].rows_out == 20
    exact = rig.ask(QUERIES[:1], exact=True)
    assert (exact.index, exact.reason) == ("", "exact search was asked for")
    assert [stage.name for stage in exact.stages] == ["filter", "scan", "rescore"]


@pytest.mark.parametrize(
    ("where", "by_index"),
    [({"half": 1}, True), ({"cent": 7}, False), ({"rare": 7}, False), ({"rare": 12_345}, False)],
    ids=["50%", "1%", "0.01%", "none"],
)
def test_filters_keep_recall(rig: IndexRig, where: dict[str, int], by_index: bool) -> None:
    found = rig.ask(QUERIES[:4], where=where)
    exact = rig.ask(QUERIES[:4], where=where, exact=True)
    assert bool(found.index) == by_index
    field, value = next(iter(where.items()))
    for one, other in zip(found.results, exact.results, strict=True):
        for mine, true in zip(keys_of(one), keys_of(other), strict=True):
            assert len(mine) == len(true)
            assert all(METADATA[key][field] == value for key in mine)
            assert len(set(mine) & set(true)) >= 0.9 * len(true)


@pytest.mark.parametrize("where", [{"half": 1}, {"cent": 7}, {"rare": 7}])
def test_an_index_answers_narrow_filters_as_well(
    rig: IndexRig, where: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it chosen, for it is not the cost that keeps recall."""
    monkeypatch.setattr(choosing, "index_cost", lambda *given: 0.0)
    assert recall(rig, QUERIES[:4], where=where) >= 0.95


def test_queries_with_groups(rig: IndexRig) -> None:
    assert recall(rig, QUERIES[:6], groups=[0, 0, 1, 1, 2, 2]) >= 0.97
    assert recall(rig, QUERIES[:6], reduce="mean") >= 0.9
    most = rig.ask(QUERIES[:6], reduce="max")
    assert not most.index
    assert "maximum over groups" in most.reason


def test_a_query_of_zeros(rig: IndexRig) -> None:
    found = rig.ask(np.zeros((1, DIM)))
    assert found.index
    assert len(keys_of(found.results[0])[0]) == 10


def test_newer_rows_are_scanned_and_merged(small: IndexRig) -> None:
    small.build()
    small.add(2_000, 30 * QUERIES[:5])
    found = small.ask(QUERIES[:5], k=3, scorer="cosine")
    assert found.index
    for place, ends in enumerate(found.results):
        assert keys_of(ends)[0][0] == 2_000 + place
    assert [stage.name for stage in found.stages] == ["filter", "candidates", "scan", "rescore", "rescore"]
    assert found.stages[2].rows_in == 5
    assert small.indexer.indexes("c")[0].fresh_row_count == 5
    assert recall(small, QUERIES) >= 0.95


def test_deleted_rows_never_appear(small: IndexRig) -> None:
    small.build()
    for _ in range(5):
        found = small.ask(QUERIES, k=5)
        assert found.index
        gone = sorted({key for ends in found.results for end in keys_of(ends) for key in end})
        small.delete(gone)
        after = small.ask(QUERIES, k=5)
        assert after.index
        assert not {key for ends in after.results for end in keys_of(ends) for key in end} & set(gone)
    assert recall(small, QUERIES) >= 0.95


def test_replaced_rows_have_their_new_gradient(small: IndexRig) -> None:
    small.build()
    best = keys_of(small.ask(QUERIES[:1], k=1).results[0])[0][0]
    small.add(best, -50 * QUERIES[:1])
    found = small.ask(QUERIES[:1], k=5)
    proponents, opponents = keys_of(found.results[0])
    assert found.index
    assert opponents[0] == best
    assert best not in proponents
    assert recall(small, QUERIES) >= 0.95


def test_all_rows_deleted(small: IndexRig) -> None:
    small.build()
    small.delete(range(2_000))
    for given in ({}, {"exact": True}):
        assert keys_of(small.ask(QUERIES[:1], **given).results[0]) == ([], [])
    assert small.build().error_kind == "conflict"


def test_an_index_is_used_for_nothing_else(small: IndexRig) -> None:
    small.add(0, ROWS[2_000:4_000], checkpoint="two")
    small.build("one")
    asked = [CheckpointChoice("two")]
    assert "no index for checkpoint 'two'" in small.ask(QUERIES, checkpoints=asked).reason
    with small.collection.reading() as view:
        both = replace(_question(QUERIES), vectors=np.stack([QUERIES, QUERIES]), checkpoints=_choices("one", "two"))
        answer = answer_of(small, view, both)
    assert not answer.index
    assert "several checkpoints" in answer.reason
    assert small.ask(QUERIES, checkpoints=[CheckpointChoice("one")]).index


def test_a_view_of_before_the_build_may_use_it(small: IndexRig) -> None:
    """It sees the rows that it saw."""
    with small.collection.reading() as view:
        small.add(2_000, 30 * QUERIES[:1])
        small.build()
        assert not answer_of(small, view, _question(QUERIES[:1])).index  # the index covers a row that the view has not
        small.delete([0])
    assert small.ask(QUERIES[:1]).index


def test_recall_on_demand(small: IndexRig) -> None:
    small.add(0, decaying(4_000, DIM, decay=0.4), checkpoint="slow")
    low = small.build("slow", recall=0.5)
    (first,) = small.records()
    high = small.build("slow", recall=0.999)
    (second,) = small.records()
    assert low.state == high.state == SUCCEEDED
    assert first.parameters["rank"] < second.parameters["rank"]
    assert min(second.recall.values()) >= 0.999 or second.warning
    assert high.result["recall"] == second.recall
    asked = _choices("slow")
    assert recall(small, decaying(20, DIM, seed=5, decay=0.4), checkpoints=asked) >= 0.99
    flat = np.random.default_rng(0).standard_normal((2_000, DIM)).astype(np.float32)
    small.add(0, flat, checkpoint="flat")
    impossible = small.build("flat", recall=0.99, parameters={"rank": 2})
    assert impossible.state == SUCCEEDED
    assert "recall 0.99 was asked for" in impossible.result["warning"]
    assert "rank 2" in impossible.result["warning"]


def test_a_rank_by_hand_and_what_is_refused(small: IndexRig) -> None:
    small.build(parameters={"rank": 7})
    assert small.records()[0].parameters["rank"] == 7
    for given in ({"parameters": {"rank": 0}}, {"parameters": {"trees": 3}}, {"recall": 1.5}):
        with pytest.raises(InvalidInput):
            small.build(**given)
    with pytest.raises(NotFound, match="subspace"):
        small.build(kind="subspaces")
    with pytest.raises(NotFound):
        small.build("three")
    with pytest.raises(NotFound):
        small.indexer.drop("c", "subspace-none")


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_few_rows(tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "index_cost", lambda *given: 0.0)
    rig = IndexRig(tmp_path / "store", DIM)
    rig.add(0, ROWS[:rows])
    assert rig.build().state == SUCCEEDED
    assert recall(rig, QUERIES[:3], k=5) == 1.0
    rig.close()


def test_rows_of_zeros_and_of_one_direction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "index_cost", lambda *given: 0.0)
    rig = IndexRig(tmp_path / "store", DIM)
    rig.add(0, np.zeros((50, DIM)))
    assert rig.build().error_kind == "conflict"
    rig.add(50, np.outer(np.linspace(-1, 1, 500), QUERIES[0]))
    assert rig.build().state == SUCCEEDED
    assert rig.records()[0].parameters["rank"] == 1
    assert recall(rig, QUERIES[:3], k=5, scorer="dot") == 1.0
    rig.close()


def test_a_build_says_how_far_it_is_and_takes_one_place(small: IndexRig) -> None:
    first = small.build()
    assert (first.steps_done, first.steps_total) == (2_000, 2_000)
    assert small.directories() == [small.records()[0].directory] == [first.result["index"]]
    second = small.build()
    assert small.directories() == [second.result["index"]] != [first.result["index"]]
    small.build(parameters={"rank": 9}, scorer="cosine")
    assert len(small.records()) == 1
    small.indexer.drop("c", small.records()[0].id)
    assert small.directories() == []
    assert "no index" in small.ask(QUERIES).reason


def test_a_dropped_index_stays_for_its_readers(small: IndexRig) -> None:
    small.build()
    (record,) = small.records()
    with small.collection.reading():
        small.indexer.drop("c", record.id)
        assert small.directories() == [record.directory]
    assert small.directories() == []


def test_indexes_are_opened_when_wanted_and_let_go_above_a_limit(small: IndexRig) -> None:
    small.add(0, ROWS[2_000:4_000], checkpoint="two")
    small.build("one")
    small.build("two")
    small.cache = IndexCache(10**9)
    assert small.cache.open_count == 0
    ones, twos = _choices("one"), _choices("two")
    small.ask(QUERIES, checkpoints=ones)
    one_bytes = small.cache.size_bytes
    assert small.cache.open_count == 1
    assert one_bytes >= small.records()[0].size_bytes - 10_000
    small.ask(QUERIES, checkpoints=twos)
    assert small.cache.open_count == 2
    small.cache = IndexCache(int(1.5 * one_bytes))
    for asked in (ones, twos, ones, twos):
        assert small.ask(QUERIES, checkpoints=asked).index
        assert small.cache.open_count == 1
        assert small.cache.size_bytes <= 1.5 * one_bytes
    small.cache = IndexCache(1)  # the one in use stays
    assert small.ask(QUERIES, checkpoints=ones).index


def test_a_limit_on_indexes(small: IndexRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small.indexer, "_limits", replace(small.indexer._limits, indexes=1))
    small.add(0, ROWS[2_000:2_100], checkpoint="two")
    assert small.build("one").state == SUCCEEDED
    assert small.build("one").state == SUCCEEDED
    refused = small.build("two")
    assert (refused.state, refused.error_kind) == (FAILED, "limit_exceeded")
    assert len(small.directories()) == 1


def test_the_same_request_builds_once(small: IndexRig) -> None:
    first = small.indexer.start("c", "one", Spec(kind="subspace"), "request-1")
    assert small.indexer.start("c", "one", Spec(kind="subspace"), "request-1").id == first.id
    small.operations.wait(first.id, 60)
    assert len(small.records()) == 1


def test_a_build_of_rows_that_are_compacted_meanwhile_begins_again(
    small: IndexRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.delete(range(0, 2_000, 2))
    inner, times = write_basis, []

    def disturbed(*given: Any) -> object:
        times.append(1)
        if len(times) == 1:
            _compact_beside(small)
        return inner(*given)

    monkeypatch.setattr("covector_server.index.subspace.write_basis", disturbed)
    assert small.build().state == SUCCEEDED
    assert len(times) == 2
    assert small.records()[0].covered[0].row_count == 1_000
    assert recall(small, QUERIES) >= 0.95


def _compact_beside(rig: IndexRig) -> None:
    """A compaction that cannot wait for the build, which reads."""
    with pytest.raises(Unavailable):
        rig.compact(Rules(0.2, readers_wait_s=0.0))


def test_damaged_rows_under_an_index(small: IndexRig) -> None:
    """A candidate that cannot be read fails the query, or makes it an exact one that says what is missing."""
    small.build()
    best = keys_of(small.ask(QUERIES[:1], k=1).results[0])[0][0]
    with small.collection.reading() as view:
        row_id = int(view.row_ids_of([encode_key(best)])[0])
    small.close()
    checkpoint_rows = (16 << 10) // (2 * DIM)
    shard, row = divmod(row_id, (64 << 10) // (2 * DIM))
    chunk = row // checkpoint_rows
    path = small.data / f"collections/1/1/0/gradients/c/{shard}/0"
    data = bytearray(path.read_bytes())
    data[chunk * (checkpoint_rows * 2 * DIM + 4) + 5] ^= 1
    path.write_bytes(data)
    small.open()
    with pytest.raises(Corrupt):
        small.ask(QUERIES[:1], k=1)
    left = small.ask(QUERIES[:1], k=1, damaged="omit")
    assert not left.index
    assert "led to are damaged" in left.reason
    assert sum(damage.row_count for damage in left.damages) == checkpoint_rows


def _question(queries: np.ndarray) -> Question:
    return Question(vectors=np.asarray(queries, dtype=np.float32)[None])


def _choices(*names: str) -> list[CheckpointChoice]:
    return [CheckpointChoice(name) for name in names]


def answer_of(rig: IndexRig, view: CollectionView, question: Question) -> TopKAnswer:
    return top_k(view, question, 10, indexes=rig.cache)


def test_a_scorer_that_nothing_was_measured_for_draws_as_many_candidates_as_is_usual(rig: IndexRig) -> None:
    (record,) = rig.records()
    few = replace(record, scorer="dot", oversampling=5)
    assert [few.oversampling_of(scorer) for scorer in ("dot", "cosine", "tracin")] == [5, 10, 10]
    assert replace(few, oversampling=40).oversampling_of("cosine") == 40
    assert replace(few, scorer="trak", fit="fit-1").oversampling_of("trak") == 5
    seen = {}
    for scorer in ("dot", "cosine"):
        answer = rig.ask(QUERIES[:1], 10, scorer=scorer)
        assert answer.index
        seen[scorer] = answer.stages[2].rows_in
    assert 0 < seen["dot"] <= seen["cosine"] <= 200
