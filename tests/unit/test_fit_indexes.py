"""Indexes built for a fit, against exact search with that fit: recall, rows that came, went or were replaced since, and
which queries they serve."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fit_rig import FitRig
from tests.index_rig import decaying, keys_of, share_of

from covector.blocks import encode_key
from covector.errors import InvalidInput, NotFound
from covector.types import Block, Space
from covector_server.index.contract import Spec
from covector_server.index.source import CheckpointSource
from covector_server.jobs.compaction import Rules
from covector_server.jobs.operations import FAILED, SUCCEEDED
from covector_server.query import choosing
from covector_server.query.engine import top_k
from covector_server.storage.fit_files import remove_fit

DIM, ROW_COUNT = 96, 3_000
ROWS = decaying(ROW_COUNT, DIM)
Q = np.random.default_rng(1).uniform(0.05, 1.0, ROW_COUNT).astype(np.float32)
QUERIES = decaying(20, DIM, seed=5)
SCORERS = ["trak", "influence", "trackstar", "datainf", "less"]


@pytest.fixture(autouse=True)
def always_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an index is used however few rows there are."""
    monkeypatch.setattr(choosing, "FIXED_ELEMENTS", 0)
    monkeypatch.setattr(choosing, "APART", 0.01)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[FitRig]:
    made = FitRig(tmp_path / "store", DIM)
    made.write(range(ROW_COUNT), ROWS, trak_q=Q)
    yield made
    made.close()


def built(rig: FitRig, **given: Any) -> dict[str, Any]:
    """What a build that succeeded says."""
    ended = rig.build(**given)
    assert ended.state == SUCCEEDED, ended.error_message
    return ended.result


def recall(rig: FitRig, scorer: str, k: int = 10, **given: Any) -> float:
    """The smaller share of both ends that an answer by index has of the exact one; scores are exact."""
    exact, found = (rig.hits(QUERIES, scorer, k, exact=is_exact, **given) for is_exact in (True, False))
    assert found.index, found.reason
    assert not exact.index
    return share_of(found, exact)


@pytest.mark.parametrize("scorer", SCORERS)
def test_recall_of_both_ends_by_each_scorer(rig: FitRig, scorer: str) -> None:
    if scorer == "less":  # a name that needs no fit; its fit is meant by its id
        scorer = rig.fitted("less")
    else:
        rig.fitted(scorer)
    result = built(rig, scorer=scorer)
    assert min(result["recall"].values()) >= 0.95
    assert recall(rig, scorer) >= 0.97
    assert recall(rig, scorer, 50) >= 0.95


@pytest.mark.parametrize("given", [{"rank": 8}, {"rank": 32}, {"unit_rows": True}, {"damping": 0.1}])
def test_recall_for_other_maps(rig: FitRig, given: dict[str, Any]) -> None:
    """Low rank, where directions beyond the fit's are of a sample; rows by direction alone; little damping."""
    rig.fitted("influence", **given)
    built(rig, scorer="influence")
    assert recall(rig, "influence") >= 0.97


def test_recall_for_a_map_by_layers(tmp_path: Path) -> None:
    """Layers of very different size, so that a level for all would drown one."""
    rig = FitRig(tmp_path / "store", DIM)
    try:
        blocks = [Block("first", 0, 32, 1_000), Block("second", 32, DIM, 9_000)]
        space = Space(dim=DIM, blocks=tuple(blocks))
        rig.committer.call(lambda: rig.store.create_collection("blocks", space, True)).result()
        scaled = ROWS.copy()
        scaled[:, :32] *= 1e-3
        rig.write(range(ROW_COUNT), scaled, collection="blocks")
        asked = QUERIES.copy()
        asked[:, :32] *= 1e-3
        for method, given in (("datainf", {}), ("influence", {"by_layer": True})):
            fit = rig.fitted(method, collection="blocks", **given)
            started = rig.indexer.start("blocks", "one", Spec(kind="subspace", scorer=fit))
            assert rig.operations.wait(started.id, 60).state == SUCCEEDED
            with rig.store.collection("blocks").reading() as view:
                answers = [
                    top_k(view, rig._question(view, asked, fit, (), exact=is_exact), 10, indexes=rig.cache)
                    for is_exact in (False, True)
                ]
            assert answers[0].index, answers[0].reason
            assert share_of(answers[0], answers[1]) >= 0.95
    finally:
        rig.close()


def test_what_is_measured_is_by_that_scorer(rig: FitRig) -> None:
    fit = rig.fitted("trak")
    result = built(rig, scorer="trak", recall=0.9)
    (record,) = rig.records()
    assert (record.fit, record.scorer, record.scorers) == (fit, "trak", ["trak"])
    assert (result["fit"], result["scorer"], result["warning"]) == (fit, "trak", "")
    assert record.parameters["bits"] == 4
    poor = built(rig, scorer="trak", parameters={"rank": 3})
    assert poor["recall"]["recall@10"] < result["recall"]["recall@10"]
    assert recall(rig, "trak") < 0.9


def test_the_answer_says_what_ran(rig: FitRig) -> None:
    rig.fitted("trak")
    assert "no index" in rig.hits(QUERIES[:1], "trak", 10).reason
    built(rig, scorer="trak")
    found = rig.hits(QUERIES[:1], "trak", 10)
    assert found.index == rig.records()[0].id
    assert [stage.name for stage in found.stages] == ["filter", "candidates", "rescore"]
    assert found.stages[2].rows_in <= 200


def test_an_index_serves_its_fit_alone(rig: FitRig) -> None:
    first = rig.fitted("influence")
    built(rig, scorer="influence")
    other = rig.fitted("influence", damping=0.1)
    assert rig.hits(QUERIES, first, 10).index
    for scorer in (other, "influence", "dot", "cosine"):  # the name means the newest fit
        found = rig.hits(QUERIES, scorer, 10)
        assert (found.index, "no index" in found.reason) == ("", True)
    built(rig, scorer="influence")
    by_fit = {record.fit: record.id for record in rig.records()}
    assert set(by_fit) == {first, other}
    for fit in (first, other):
        assert rig.hits(QUERIES, fit, 10).index == by_fit[fit]
    built(rig)  # for dot: neither takes its place
    assert len(rig.records()) == 3
    assert rig.hits(QUERIES, "dot", 10).index not in {"", *by_fit.values()}


def test_a_fit_can_be_named_by_its_id(rig: FitRig) -> None:
    old, new = rig.fitted("influence"), rig.fitted("influence", damping=0.1)
    built(rig, scorer="influence", fit=old)
    built(rig, scorer=new)
    assert {(record.fit, record.scorer) for record in rig.records()} == {(old, "influence"), (new, "influence")}


def test_newer_replaced_and_deleted_rows(rig: FitRig) -> None:
    """Newer than the index, and than the fit."""
    for scorer in ("trak", "trackstar"):
        rig.fitted(scorer)
        built(rig, scorer=scorer)
    newer = decaying(50, DIM, seed=8)
    newer *= 30 / np.linalg.norm(newer, axis=1, keepdims=True)
    rig.write(range(10_000, 10_050), newer, trak_q=Q[:50])
    rig.write(range(100, 140), ROWS[100:140] * -5, trak_q=Q[100:140])
    rig.delete(range(50))
    for scorer in ("trak", "trackstar"):
        assert recall(rig, scorer) >= 0.97
        found = rig.hits(np.concatenate([newer[:2], -ROWS[100:102]]), scorer, 5)
        assert found.index
        firsts = [keys_of(ends)[0] for ends in found.results]
        assert 10_000 in firsts[0]
        assert 100 in firsts[2]
        every = {key for ends in rig.hits(ROWS[:20], scorer, 100).results for end in keys_of(ends) for key in end}
        assert not every & set(range(50))


def test_dead_rows_without_the_weights_that_live_ones_have(tmp_path: Path) -> None:
    """A row without Q is replaced by one with Q; its old place has none still, and is in the index's range."""
    rig = FitRig(tmp_path / "store", DIM)
    try:
        rig.write(range(500), ROWS[:500], trak_q=np.where(np.arange(500) < 450, Q[:500], np.nan).astype(np.float32))
        rig.write(range(450, 500), ROWS[450:500], trak_q=Q[450:500])
        rig.fitted("trak")
        built(rig, scorer="trak")
        assert recall(rig, "trak") >= 0.97
    finally:
        rig.close()


def test_rows_without_q_are_named_by_the_build(rig: FitRig) -> None:
    rig.fitted("trak")
    rig.write([7], ROWS[7:8])
    ended = rig.build(scorer="trak")
    assert ended.state == FAILED
    assert "trak_q" in ended.error_message
    assert "row 7" in ended.error_message


@pytest.mark.parametrize("share", [0.5, 0.01, 0.002])
def test_filters_keep_recall(tmp_path: Path, share: float) -> None:
    rig = FitRig(tmp_path / "store", DIM)
    try:
        every = int(1 / share)
        rig.add(0, ROWS, metadata=[{"part": row % every} for row in range(ROW_COUNT)])
        rig.fitted("influence")
        built(rig, scorer="influence")
        where = {"part": 1}
        found, exact = (rig.hits(QUERIES, "influence", 5, where=where, exact=flag) for flag in (False, True))
        assert share_of(found, exact) >= 0.97
        if share == 0.5:
            assert found.index
        assert all(key % every == 1 for ends in found.results for end in keys_of(ends) for key in end)
    finally:
        rig.close()


def test_dropping_a_fit_drops_its_indexes(rig: FitRig) -> None:
    fit = rig.fitted("influence")
    built(rig)
    built(rig, scorer="influence")
    assert rig.hits(QUERIES, fit, 10).index
    rig.fitter.drop("c", fit)
    assert [record.fit for record in rig.records()] == [""]
    assert rig.directories() == [rig.records()[0].directory]
    rig.restart()
    assert [record.fit for record in rig.records()] == [""]


def test_a_fit_learnt_anew_takes_the_index_of_the_old_one_along(rig: FitRig) -> None:
    old = rig.fitted("influence")
    built(rig, scorer="influence")
    rig.write(range(10_000, 10_200), decaying(200, DIM, seed=9))
    new = rig.fitted("influence")
    assert new != old
    assert rig.records() == []
    assert rig.directories() == []
    assert "no index" in rig.hits(QUERIES, "influence", 10).reason
    built(rig, scorer="influence")
    assert recall(rig, "influence") >= 0.97


def test_a_build_whose_fit_is_dropped_meanwhile_fails(rig: FitRig, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = rig.fitted("influence")
    inner = CheckpointSource

    def dropping(*given: Any) -> Any:
        rig.fitter.drop("c", fit)
        return inner(*given)

    monkeypatch.setattr("covector_server.jobs.index_building.CheckpointSource", dropping)
    ended = rig.build(scorer="influence")
    assert ended.state == FAILED
    assert "was dropped or replaced while the index was built" in ended.error_message
    assert (rig.records(), rig.directories()) == ([], [])


@pytest.mark.parametrize("scorer", ["trak", "trackstar"])
def test_compaction_and_erasure_are_followed(rig: FitRig, scorer: str) -> None:
    rig.fitted(scorer)
    built(rig, scorer=scorer)
    rig.delete(range(1_000, 2_500))
    rig.compact(Rules(0.2))
    assert recall(rig, scorer) >= 0.97
    rig.delete(range(20))
    rig.compact(Rules(0.0))
    assert recall(rig, scorer) >= 0.97
    rig.restart()
    assert recall(rig, scorer) >= 0.97


@pytest.mark.parametrize("kind", ["scann", "annoy"])
@pytest.mark.parametrize("scorer", ["trak", "trackstar"])
def test_kinds_on_libraries(rig: FitRig, kind: str, scorer: str) -> None:
    fit = rig.fitted(scorer)
    result = built(rig, kind=kind, scorer=scorer, recall=0.9)
    assert result["fit"] == fit
    assert min(result["recall"].values()) >= 0.9
    assert recall(rig, scorer) >= 0.9
    rig.delete(range(30))
    rig.write(range(10_000, 10_020), decaying(20, DIM, seed=8) * 3, trak_q=Q[:20])
    assert recall(rig, scorer) >= 0.9
    assert not rig.hits(QUERIES, "dot", 10).index


def test_what_cannot_be_built(rig: FitRig) -> None:
    with pytest.raises(NotFound, match="needs a fit"):
        rig.build(scorer="trak")
    with pytest.raises(NotFound, match="no scorer"):
        rig.build(scorer="track")
    with pytest.raises(NotFound):
        rig.build(scorer="trak", fit="trak-00000000")
    with pytest.raises(InvalidInput, match="serves dot, cosine, tracin and fits"):
        rig.build(scorer="less")
    rig.write(range(10), ROWS[:10], checkpoint="two")
    rig.fitted("influence", checkpoints=["two"])
    with pytest.raises(InvalidInput, match="fit these"):
        rig.build(checkpoint="one", scorer="influence")


def test_an_index_without_its_fit_goes_when_the_store_is_opened(rig: FitRig) -> None:
    """As after a repair that took a damaged fit out of the catalog."""
    fit = rig.fitted("influence")
    built(rig, scorer="influence")

    def forget() -> None:
        with rig.store.catalog.write() as writer:
            remove_fit(writer, rig.collection.record.id, fit)

    rig.committer.call(forget).result()
    rig.restart()
    assert (rig.records(), rig.directories()) == ([], [])


def test_keys_are_those_of_the_rows(rig: FitRig) -> None:
    """A row of its own is the first proponent of itself by trackstar, which is a cosine."""
    rig.fitted("trackstar")
    built(rig, scorer="trackstar")
    found = rig.hits(ROWS[:10], "trackstar", 1)
    assert found.index
    assert [ends.proponents.keys[0] for ends in found.results] == [encode_key(key) for key in range(10)]
