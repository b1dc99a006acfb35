"""Fits in an open store against ``covector.attribution`` on the decoded rows, and against plain derivations."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from tests.fit_rig import FitRig, assert_close, plain_map
from tests.index_rig import decaying, keys_of

from covector.attribution import Fit
from covector.attribution import fit as fit_arrays
from covector.attribution.learning import FitJob
from covector.blocks import decode_key
from covector.errors import Corrupt, InvalidInput, LimitExceeded, NotFound
from covector.types import Block, Space
from covector_server.fit import columns
from covector_server.fit.spec import BLOCK_BYTES, FitSpec
from covector_server.jobs.fit_building import plan_facts, plans_of
from covector_server.jobs.operations import FAILED
from covector_server.query.cancellation import never
from covector_server.query.engine import self_influence
from covector_server.query.fitted import with_fit
from covector_server.query.question import Question
from covector_server.storage.store import Sizes

DIM, COUNT = 48, 400
ROWS = decaying(COUNT, DIM)
OTHERS = decaying(COUNT, DIM, seed=9)
Q = np.random.default_rng(1).uniform(0.05, 1, COUNT).astype(np.float32)
QUERIES = decaying(5, DIM, seed=5).astype(np.float64)
METHODS = ("trak", "influence", "trackstar", "datainf")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[FitRig]:
    made = FitRig(tmp_path / "store", DIM)
    made.write(range(COUNT), ROWS, trak_q=Q)
    yield made
    made.close()


def on_arrays(method: str, rows: np.ndarray, trak_q: np.ndarray = Q, **given: Any) -> Fit:
    if method == "datainf":
        given.setdefault("by_layer", False)
    return fit_arrays(method, rows, trak_q=trak_q if method == "trak" else None, **given)


def judged(fit: Fit, rows: np.ndarray, trak_q: np.ndarray = Q) -> tuple[np.ndarray, np.ndarray]:
    """The scores of rows, float64[m, n], and |n(q) A q| w |g|, what errors are relative to."""
    is_trak = fit.method == "trak"
    expected = fit.scores(QUERIES, rows, trak_q=trak_q if is_trak else None)
    part = fit.parts[""]
    prepared = np.linalg.norm(part.scorer(lambda row_ids: np.ones(len(row_ids))).prepare(QUERIES), axis=1)
    weights = np.ones(len(rows))
    if fit.method == "trackstar":
        weights = 1 / np.maximum(np.linalg.norm(part.preconditioner.whiten(rows), axis=1), 1e-300)
    weights = weights * trak_q if is_trak else weights
    return expected, prepared[:, None] * weights * np.linalg.norm(rows, axis=1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("given", [{}, {"damping": 0.3}, {"rank": 16}, {"rank": DIM}])
def test_a_served_scorer_is_the_one_on_arrays(rig: FitRig, method: str, given: dict[str, Any]) -> None:
    rig.fitted(method, **given)
    rows = rig.stored(range(COUNT))
    assert_close(rig.scored(QUERIES, method), range(COUNT), *judged(on_arrays(method, rows, **given), rows))


def test_trak_and_influence_by_hand(rig: FitRig) -> None:
    rows = rig.stored(range(COUNT))
    rig.fitted("influence")
    rig.fitted("trak", damping=0.5)
    inverse = plain_map(rows, 1.0)
    reach = np.linalg.norm(QUERIES @ inverse, axis=1)[:, None] * np.linalg.norm(rows, axis=1)
    assert_close(rig.scored(QUERIES, "influence"), range(COUNT), QUERIES @ inverse @ rows.T, reach)
    inverse = plain_map(rows, 0.5) / COUNT
    reach = np.linalg.norm(QUERIES @ inverse, axis=1)[:, None] * np.linalg.norm(rows, axis=1) * Q
    assert_close(rig.scored(QUERIES, "trak"), range(COUNT), QUERIES @ inverse @ rows.T * Q, reach)


def test_trackstar_by_hand(rig: FitRig) -> None:
    rig.fitted("trackstar")
    rows = rig.stored(range(COUNT))
    root = np.linalg.cholesky(plain_map(rows, 1.0))
    ours, theirs = rows @ root, QUERIES @ root
    cosines = (theirs / np.linalg.norm(theirs, axis=1, keepdims=True)) @ (
        ours / np.linalg.norm(ours, axis=1, keepdims=True)
    ).T
    spread = np.linalg.cond(root)
    assert_close(rig.scored(QUERIES, "trackstar"), range(COUNT), cosines, np.full(cosines.shape, spread))


@pytest.mark.parametrize("method", METHODS)
def test_rows_that_came_went_or_were_replaced_since(rig: FitRig, method: str) -> None:
    rig.fitted(method)
    learnt = on_arrays(method, rig.stored(range(COUNT)))
    q = np.random.default_rng(2).uniform(0.1, 1, COUNT + 50).astype(np.float32)
    rig.write(range(100, 130), OTHERS[100:130], trak_q=q[100:130])
    assert rig.scored(QUERIES, method).keys() == set(range(COUNT))  # a column of weights is kept from here on
    rig.write(range(COUNT, COUNT + 50), OTHERS[:50], trak_q=q[COUNT:])
    rig.write(range(110, 120), OTHERS[200:210], trak_q=q[110:120])
    rig.delete(range(20))
    keys = list(range(20, COUNT + 50))
    expected_q = np.concatenate([Q[:100], q[100:130], Q[130:], q[COUNT:]])[20:]
    rows = rig.stored(keys)
    np.testing.assert_allclose(rows[110 - 20 : 120 - 20], OTHERS[200:210], rtol=1e-2, atol=1e-2)
    assert_close(rig.scored(QUERIES, method), keys, *judged(learnt, rows, expected_q))
    (status,) = rig.fits()
    assert status.fresh_row_count == 50 + 30
    assert status.lost_row_count == 20 + 30


def test_rows_that_died_before_are_not_learnt(rig: FitRig) -> None:
    rig.delete(range(50))
    rig.write(range(60, 70), OTHERS[60:70], trak_q=Q[60:70])
    rig.fitted("influence")
    keys = list(range(50, COUNT))
    rows = rig.stored(keys)
    assert_close(rig.scored(QUERIES, "influence"), keys, *judged(on_arrays("influence", rows), rows))
    (status,) = rig.fits()
    assert (status.record.covered[0].learnt_count, status.lost_row_count, status.fresh_row_count) == (350, 0, 0)


def two_checkpoints(rig: FitRig) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Rows of two checkpoints, in other orders of arrival, and their Q."""
    order = np.random.default_rng(3).permutation(COUNT)
    q = np.random.default_rng(4).uniform(0.1, 1, COUNT).astype(np.float32)
    rig.write(order.tolist(), OTHERS[order], checkpoint="two", trak_q=q[order])
    rows = {name: rig.stored(range(COUNT), name) for name in ("one", "two")}
    return rows, {"one": Q, "two": q}


@pytest.mark.parametrize("method", METHODS)
def test_several_checkpoints(rig: FitRig, method: str) -> None:
    rows, q = two_checkpoints(rig)
    fit_id = rig.fitted(method)
    assert sorted(part.checkpoint for part in rig.fit_record(fit_id).covered) == ["one", "two"]
    queries = {"one": QUERIES, "two": decaying(5, DIM, seed=6).astype(np.float64)}
    both = np.stack([queries["one"], queries["two"]])
    one_layer: dict[str, Any] = {"by_layer": False} if method == "datainf" else {}
    fit = fit_arrays(method, rows, trak_q=q if method == "trak" else None, **one_layer)
    expected = fit.scores(queries, rows, trak_q=q if method == "trak" else None)
    found = rig.scored(both, method, ["one", "two"])
    reach = np.abs(expected).max(axis=1, keepdims=True) * np.ones(COUNT)
    assert_close(found, range(COUNT), expected, reach)
    alone = fit_arrays(method, rows["two"], trak_q=q["two"] if method == "trak" else None, **one_layer)
    mine = alone.scores(queries["two"], rows["two"], trak_q=q["two"] if method == "trak" else None)
    found = rig.scored(queries["two"], method, ["two"])
    assert_close(found, range(COUNT), mine, np.abs(mine).max(axis=1, keepdims=True) * np.ones(COUNT))


def test_trak_over_checkpoints_is_a_mean_times_a_mean(rig: FitRig) -> None:
    rows, q = two_checkpoints(rig)
    rig.fitted("trak")
    terms = [QUERIES @ plain_map(rows[name], 1.0) / COUNT @ rows[name].T for name in rows]
    expected = (terms[0] + terms[1]) / 2 * ((q["one"].astype(np.float64) + q["two"]) / 2)
    found = rig.scored(np.stack([QUERIES, QUERIES]), "trak", ["one", "two"])
    assert_close(found, range(COUNT), expected, np.abs(expected).max(axis=1, keepdims=True) * np.ones(COUNT))


def test_missing_rows_under_an_ensemble(rig: FitRig) -> None:
    rig.write(range(200), OTHERS[:200], checkpoint="two", trak_q=Q[:200] / 2)
    rig.fitted("trak")
    both = np.stack([QUERIES, QUERIES])
    assert set(rig.scored(both, "trak", ["one", "two"])) == set(range(200))
    found = rig.scored(both, "trak", ["one", "two"], missing="zero")
    rows = rig.stored(range(COUNT))
    alone = QUERIES @ plain_map(rows, 1.0) / COUNT @ rows[200:].T / 2 * Q[200:]
    ours = np.stack([found[key] for key in range(200, COUNT)], axis=1)
    np.testing.assert_allclose(ours, alone, rtol=1e-4, atol=1e-5 * np.abs(alone).max())


@pytest.mark.parametrize("method", METHODS)
def test_the_ends_are_the_largest_and_smallest_scores(rig: FitRig, method: str) -> None:
    rig.fitted(method)
    scores = rig.scored(QUERIES, method)
    answer = rig.hits(QUERIES, method, 7)
    assert (answer.index, answer.scorer) == ("", method)
    for number, ends in enumerate(answer.results):
        ascending = sorted(range(COUNT), key=lambda key, number=number: scores[key][number])  # type: ignore[misc]
        top, bottom = keys_of(ends)
        assert sorted(top) == sorted(ascending[-7:])
        assert sorted(bottom) == sorted(ascending[:7])


def test_a_row_that_scores_itself(rig: FitRig) -> None:
    rig.fitted("influence")
    rows = rig.stored(range(COUNT))
    expected = np.einsum("nk,kl,nl->n", rows, plain_map(rows, 1.0), rows)
    with rig.collection.reading() as view:
        asked = Question(vectors=np.empty((0, 0, 0), dtype=np.float32), scorer="influence")
        stream = self_influence(view, with_fit(view, asked, rig.fit_cache, never))
        found = {
            decode_key(key): score
            for block in stream.blocks
            for key, score in zip(view.keys_of(block.row_ids), block.scores[0].tolist(), strict=True)
        }
    np.testing.assert_allclose([found[key] for key in range(COUNT)], expected, rtol=1e-5)


def test_task_gradients_of_trackstar(rig: FitRig) -> None:
    tasks = decaying(30, DIM, seed=11)
    rig.fitted("trackstar", tasks=tasks[None], task_share=0.6)
    rows = rig.stored(range(COUNT))
    fit = fit_arrays("trackstar", rows, task_gradients=tasks, task_share=0.6)
    assert_close(rig.scored(QUERIES, "trackstar"), range(COUNT), *judged(fit, rows))
    with pytest.raises(InvalidInput, match="task_gradients"):
        rig.fitter.start("c", FitSpec(method="trackstar", tasks=tasks[None, :, :10]))


def test_layers_of_datainf(tmp_path: Path) -> None:
    blocks = (Block("a", 0, 20, 200), Block("b", 20, DIM, 90))
    rig = FitRig(tmp_path / "store", DIM, space=Space(dim=DIM, blocks=blocks))
    try:
        rig.write(range(COUNT), ROWS, collection="blocks")
        assert rig.fit("datainf", collection="blocks").result["notes"] == []
        rows = rig.stored(range(COUNT), collection="blocks")
        fit = fit_arrays("datainf", rows, space=Space(dim=DIM, blocks=blocks))
        found = rig.scored(QUERIES, "datainf", collection="blocks")
        assert_close(found, range(COUNT), *judged(fit, rows))
        by_hand = np.zeros((5, COUNT))
        for block in blocks:
            part, asked = rows[:, block.start : block.stop], QUERIES[:, block.start : block.stop]
            damping = 0.1 * (part**2).sum() / COUNT / block.size
            norms = (part**2).sum(axis=1)
            shrunk = (asked @ part.T / (damping + norms)) @ part / COUNT
            by_hand += (asked - shrunk) / damping @ part.T
        np.testing.assert_allclose(np.stack([found[k] for k in range(COUNT)], 1), by_hand, rtol=1e-3, atol=1e-3)
        rig.write(range(COUNT), ROWS)
        assert "all coordinates are one layer of 48 parameters" in rig.fit("datainf").result["notes"][0]
        with pytest.raises(InvalidInput, match=r"datainf works layer by layer, but the space has no blocks.*one-layer"):
            rig.fitter.start("c", FitSpec(method="datainf"))
        with pytest.raises(InvalidInput, match="has no blocks"):
            rig.fitter.start("c", FitSpec(method="influence", by_layer=True))
    finally:
        rig.close()


# Which fit, and what is wrong


def test_the_newest_fit_serves_and_an_older_one_by_its_id(rig: FitRig) -> None:
    first, second = rig.fitted("influence", damping=1.0), rig.fitted("influence", damping=0.1)
    assert first != second
    rows = rig.stored(range(COUNT))
    for scorer, damping in (("influence", 0.1), (second, 0.1), (first, 1.0)):
        fit = on_arrays("influence", rows, damping=damping)
        assert_close(rig.scored(QUERIES, scorer), range(COUNT), *judged(fit, rows))
    rig.fitter.drop("c", second)
    assert [status.record.id for status in rig.fits()] == [first]
    with pytest.raises(NotFound, match=second):
        rig.scored(QUERIES, second)
    with pytest.raises(NotFound, match="no fit"):
        rig.fitter.drop("c", second)


def test_what_is_wrong_is_said(rig: FitRig) -> None:
    with pytest.raises(NotFound, match=r"needs a fit.*collection.fit\('trak'\)"):
        rig.scored(QUERIES, "trak")
    with pytest.raises(NotFound, match="did you mean 'trak'"):
        rig.scored(QUERIES, "trck")
    rig.fitted("trak")
    rig.write(range(COUNT), OTHERS, checkpoint="two")
    with pytest.raises(InvalidInput, match=r"over 'one', the query over 'two'; .*checkpoints=\['two'\]"):
        rig.scored(QUERIES, "trak", ["two"])
    with pytest.raises(InvalidInput, match="several checkpoints"):
        rig.scored(QUERIES, "trak")
    with pytest.raises(NotFound, match="no checkpoint 'three'"):
        rig.fitter.start("c", FitSpec(method="trak", checkpoints=["three"]))
    with pytest.raises(NotFound, match="no method 'trk'"):
        rig.fitter.start("c", FitSpec(method="trk"))
    with pytest.raises(InvalidInput, match="without a fit"):
        rig.fitter.start("c", FitSpec(method="dot"))
    rig.write(range(40), OTHERS[:40], checkpoint="few")
    with pytest.raises(InvalidInput, match="rank 41 needs at least 41 rows"):
        rig.fitter.start("c", FitSpec(method="influence", checkpoints=["few"], rank=41))
    with pytest.raises(InvalidInput, match="without damping 48 coordinates"):
        rig.fitter.start("c", FitSpec(method="influence", checkpoints=["few"], damping=0.0))
    with pytest.raises(InvalidInput, match="task_gradients"):
        rig.fitter.start("c", FitSpec(method="trak", checkpoints=["one"], tasks=OTHERS[None, :5]))


def test_trak_names_the_row_without_its_q(rig: FitRig) -> None:
    rig.fitted("trak")
    rig.write([7, 1000], OTHERS[:2])
    with pytest.raises(InvalidInput, match=r"row 7 of checkpoint 'one' has none.*trak_q="):
        rig.scored(QUERIES, "trak")
    ended = rig.fit("trak")
    assert (ended.state, ended.error_kind) == (FAILED, "invalid_input")
    assert "row 7 " in ended.error_message
    rig.delete([7, 1000])
    assert set(rig.scored(QUERIES, "trak")) == set(range(COUNT)) - {7}


def test_trak_names_the_checkpoint_whose_rows_have_no_q(rig: FitRig) -> None:
    rig.write(range(COUNT), OTHERS, checkpoint="two")
    ended = rig.fit("trak", checkpoints=["one", "two"])
    assert (ended.state, ended.error_kind) == (FAILED, "invalid_input")
    assert "row 0 of checkpoint 'two' has none" in ended.error_message
    assert rig.fits() == []


def test_a_fit_of_another_collection_is_none_of_this_one(tmp_path: Path) -> None:
    rig = FitRig(tmp_path / "store", DIM, space=Space(dim=DIM, blocks=(Block("a", 0, DIM, 90),)))
    try:
        rig.write(range(COUNT), ROWS)
        rig.write(range(COUNT), ROWS, collection="blocks")
        fit_id = rig.fitted("influence")
        with pytest.raises(NotFound, match=f"no scorer '{fit_id}'"):
            rig.scored(QUERIES, fit_id, collection="blocks")
        with pytest.raises(NotFound, match="needs a fit, and collection 'blocks' has none yet"):
            rig.scored(QUERIES, "influence", collection="blocks")
    finally:
        rig.close()


def test_singular_moments_without_damping(rig: FitRig) -> None:
    flat = np.repeat(ROWS[:10], 40, axis=0)
    rig.write(range(COUNT), flat, checkpoint="flat")
    ended = rig.fit("influence", checkpoints=["flat"], damping=0.0)
    assert (ended.state, ended.error_kind) == (FAILED, "invalid_input")
    assert "singular" in ended.error_message
    assert rig.fits() == []
    assert rig.fit_directories() == []


def test_never_nan(rig: FitRig) -> None:
    rig.write([0, 1], np.zeros((2, DIM), dtype=np.float32), trak_q=Q[:2])
    queries = np.concatenate([np.zeros((1, DIM)), QUERIES[:1]])
    for method in METHODS:
        rig.fitted(method)
        rig.write([2], np.zeros((1, DIM), dtype=np.float32), trak_q=Q[:1])
        scores = np.stack(list(rig.scored(queries, method).values()))
        assert np.isfinite(scores).all()
        assert not scores[:, 0].any()
        assert not any(rig.scored(queries, method)[key].any() for key in (0, 1, 2))


def test_all_zero_gradients_are_refused(rig: FitRig) -> None:
    rig.write(range(10), np.zeros((10, DIM), dtype=np.float32), checkpoint="zero")
    ended = rig.fit("influence", checkpoints=["zero"])
    assert "all gradients are zero" in ended.error_message


def test_norms_at_the_ends_of_float32(rig: FitRig) -> None:
    rows = ROWS.astype(np.float64) * np.geomspace(1e-30, 1e30, COUNT)[:, None]
    rig.write(range(COUNT), rows, checkpoint="wide", trak_q=Q)
    for method in METHODS:
        rig.fitted(method, checkpoints=["wide"])
        stored = rig.stored(range(COUNT), "wide")
        scores = np.stack(list(rig.scored(QUERIES, method, ["wide"]).values()))
        assert np.isfinite(scores).all()
        assert np.isfinite(stored).all()


def test_memory_is_stated_and_bounded(rig: FitRig) -> None:
    record = rig.fitter.start("c", FitSpec(method="trackstar"))
    assert record.metadata["memory_bytes"] > 0
    assert record.metadata["checkpoints"]["one"]["passes"] == 2
    rig.fitter._memory_bytes_max = 1 << 20
    with pytest.raises(LimitExceeded, match="memory"):
        rig.fitter.start("c", FitSpec(method="influence"))


@pytest.mark.parametrize(
    ("method", "rank"), [("influence", None), ("trackstar", None), ("trackstar", 64), ("datainf", 64)]
)
def test_memory_stays_below_what_was_stated(tmp_path: Path, method: str, rank: int | None) -> None:
    rig = FitRig(tmp_path / "store", 512, sizes=Sizes(), save_s=0.0)
    try:
        rig.write(range(4_000), decaying(4_000, 512))
        stated = plan_facts_of(rig, method, rank) - BLOCK_BYTES  # what is allowed for mapped files and small things
        tracemalloc.start()
        rig.fitted(method, rank=rank)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < stated + (2 << 20)
    finally:
        rig.close()


def plan_facts_of(rig: FitRig, method: str, rank: int | None) -> int:
    """The peak that would be stated, without starting anything."""
    with rig.collection.reading() as view:
        place = rig.fitter._place(rig.collection, view)
        views = [view.checkpoints["one"]]
        spec = FitSpec(method=method, rank=rank, by_layer=False if method == "datainf" else None)
        return int(plan_facts(place, views, plans_of(place, spec, views))["memory_bytes"])


def test_less_learns_nothing_and_can_be_named(rig: FitRig) -> None:
    fit_id = rig.fitted("less")
    by_name, by_id = rig.scored(QUERIES, "less"), rig.scored(QUERIES, fit_id)
    for key in range(COUNT):
        np.testing.assert_array_equal(by_name[key], by_id[key])


def flip_a_gradient(rig: FitRig, position: int) -> None:
    """Flips a bit of a stored row, and forgets that its chunk was ever verified."""
    rig.close()
    checkpoint = rig.data / "collections/1/1/0"
    layout = json.loads((checkpoint / "gradients/zarr.json").read_bytes())
    shard_rows = layout["chunk_grid"]["configuration"]["chunk_shape"][0]
    chunk_rows = layout["codecs"][0]["configuration"]["chunk_shape"][0]
    shard, row = divmod(position, shard_rows)
    path = checkpoint / f"gradients/c/{shard}/0"
    data = bytearray(path.read_bytes())
    data[row // chunk_rows * (chunk_rows * 2 * DIM + 4) + row % chunk_rows * 2 * DIM] ^= 1
    path.write_bytes(data)
    rig.open()


def test_damaged_rows_fail_a_fit(rig: FitRig) -> None:
    flip_a_gradient(rig, 3)
    ended = rig.fit("influence")
    assert (ended.state, ended.error_kind) == (FAILED, "corrupt")
    assert "rows at positions" in ended.error_message
    assert rig.fit_directories() == []


def test_newer_rows_that_are_damaged_fail_a_query_or_are_left_out(rig: FitRig) -> None:
    rig.fitted("trackstar")
    learnt = on_arrays("trackstar", rig.stored(range(COUNT)))
    rig.write(range(COUNT, 3 * COUNT), np.concatenate([OTHERS, OTHERS]))
    flip_a_gradient(rig, 3 * COUNT - 200)
    with pytest.raises(Corrupt, match="checkpoint 'one'"):
        rig.scored(QUERIES, "trackstar")
    found = rig.scored(QUERIES, "trackstar", damaged="omit")
    assert COUNT < len(found) < 3 * COUNT
    keys = sorted(found)
    rows = rig.stored([key for key in keys if key < COUNT + 100])
    some = {key: found[key] for key in keys if key < COUNT + 100}
    assert_close(some, sorted(some), *judged(learnt, rows))


# Again


def test_the_same_again_is_the_same_fit(rig: FitRig) -> None:
    first = rig.fitted("influence")
    ended = rig.fit("influence")
    assert (ended.result["fit"], ended.result["is_new"]) == (first, False)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that jobs were given from here on."""
    seen: list[int] = []
    update = FitJob.update

    def counting(job: FitJob, block: Any) -> None:
        seen.append(len(block.rows))
        update(job, block)

    monkeypatch.setattr(FitJob, "update", counting)
    return seen


@pytest.mark.parametrize("method", ["trak", "influence", "trackstar"])
def test_newer_rows_are_folded_in(rig: FitRig, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = rig.fitted(method)
    rig.write(range(COUNT, COUNT + 100), OTHERS[:100], trak_q=Q[:100])
    seen = counted(monkeypatch)
    second = rig.fitted(method)
    assert sum(seen) == 100
    assert [status.record.id for status in rig.fits()] == [second]
    assert second != first
    keys, q = range(COUNT + 100), np.concatenate([Q, Q[:100]])
    rows = rig.stored(keys)
    assert_close(rig.scored(QUERIES, method), keys, *judged(on_arrays(method, rows, q), rows, q))
    assert rig.fit_directories() == rig.listed_directories()


@pytest.mark.parametrize(
    ("method", "given", "passes"), [("datainf", {}, 2), ("influence", {"rank": 8}, 2), ("influence", {}, 1)]
)
def test_what_cannot_be_folded_in_is_learnt_anew(
    rig: FitRig, method: str, given: dict[str, Any], passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.fitted(method, **given)
    rig.write(range(COUNT, COUNT + 100), OTHERS[:100])
    rig.delete([3] if passes == 1 else [])  # a row that went cannot be taken out of sums
    seen = counted(monkeypatch)
    rig.fitted(method, **given)
    keys = [key for key in range(COUNT + 100) if key != 3 or passes > 1]
    assert sum(seen) == passes * len(keys)
    rows = rig.stored(keys)
    assert_close(rig.scored(QUERIES, method), keys, *judged(on_arrays(method, rows, **given), rows))


# Files and columns


def test_zarr_reads_the_arrays(rig: FitRig) -> None:
    record = rig.fit_record(rig.fitted("trackstar"))
    (part,) = record.covered
    root = str(rig.collection.directory / "fits" / part.stored.directory / "arrays")
    group = zarr.open_group(root, mode="r")
    read = lambda name: np.asarray(zarr.open_array(f"{root}/{name}", mode="r")[:])  # noqa: E731
    assert set(group.array_keys()) >= {"map.unit", "map.scale", "row_factors"}
    unit, scale = read("map.unit"), float(read("map.scale")[0])
    rows = rig.stored(range(COUNT))
    np.testing.assert_allclose(unit * scale, plain_map(rows, 1.0), rtol=1e-5, atol=1e-6 * np.abs(unit).max() * scale)
    factors = read("row_factors")
    expected = np.linalg.norm(rows, axis=1) / np.linalg.norm(rows @ np.linalg.cholesky(plain_map(rows, 1.0)), axis=1)
    with rig.collection.reading() as view:
        tile = next(view.checkpoints["one"].tiles(COUNT))
    scales = (
        np.linalg.norm(rows, axis=1)[: len(tile.row_ids)]
        / tile.scales
        / np.linalg.norm(tile.rows.astype(np.float64), axis=1)
    )
    np.testing.assert_allclose(scales, 1, rtol=1e-6)
    norms = np.linalg.norm(tile.rows.astype(np.float64), axis=1) * tile.scales
    np.testing.assert_allclose(factors[tile.row_ids] * norms, expected[tile.row_ids] * tile.scales, rtol=1e-4)


def test_a_column_with_many_newer_rows_is_merged() -> None:
    column = columns.stored_column(np.arange(10.0), 10)
    few = column.extended(iter([(np.array([12]), np.array([5.0])), (np.array([3]), np.array([7.0]))]), 12)
    assert len(few.row_ids) == 2
    again = few.extended(iter([(np.array([3, 11]), np.array([8.0, 9.0]))]), 14)
    assert len(again.row_ids) == 0
    for made, expected in ((few, [0, 7, np.nan, 5]), (again, [0, 8, 9, 5])):
        np.testing.assert_array_equal(made.at(np.array([0, 3, 11, 12])), expected)
    np.testing.assert_array_equal(column.at(np.array([3, 12])), [3, np.nan])


def test_the_cache_keeps_within_its_bytes(rig: FitRig) -> None:
    ids = [rig.fitted("influence", damping=damping) for damping in (1.0, 2.0, 3.0)]
    rig.fit_cache._bytes_max = 30_000
    for _ in range(2):
        for fit_id in ids:
            rig.scored(QUERIES, fit_id)
            assert rig.fit_cache.size_bytes <= 30_000
