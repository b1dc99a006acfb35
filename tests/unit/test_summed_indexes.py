"""Questions over several checkpoints, answered by an index of each, against exact search."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fit_rig import FitRig
from tests.index_rig import decaying, keys_of, share_of

from covector_server.ingest.batch import WriterSpec
from covector_server.jobs.compaction import Rules
from covector_server.jobs.operations import SUCCEEDED
from covector_server.query import choosing, summed
from covector_server.query.question import TopKAnswer
from covector_server.testing.batches import batch_of

DIM, ROW_COUNT = 96, 3_000
NAMES = ["one", "two", "three"]
ETAS = {"one": 1.0, "two": 0.1, "three": 3.0}
BASE = decaying(ROW_COUNT, DIM)
ROWS = {
    name: BASE * scale + decaying(ROW_COUNT, DIM, seed)
    for seed, (name, scale) in enumerate({"one": 0.5, "two": 1.0, "three": 1e-4}.items(), 10)
}
ROWS["three"] *= 1e-6  # gradients shrink
Q = {
    name: np.random.default_rng(seed).uniform(0.05, 1, ROW_COUNT).astype(np.float32) for seed, name in enumerate(NAMES)
}
QUERIES = np.stack([decaying(12, DIM, seed=5) * scale for scale in (1.0, 1.0, 1e-6)]).astype(np.float32)


@pytest.fixture(autouse=True)
def always_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an index is used however few rows there are."""
    monkeypatch.setattr(choosing, "FIXED_ELEMENTS", 0)
    monkeypatch.setattr(choosing, "APART", 0.01)
    monkeypatch.setattr(summed, "SUM_BYTES", 4 * 5 * ROW_COUNT)  # a few vectors at once


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[FitRig]:
    """Rows in another order at each checkpoint."""
    made = FitRig(tmp_path / "store", DIM)
    for number, name in enumerate(NAMES):
        write(made, name, np.random.default_rng(number).permutation(ROW_COUNT))
    yield made
    made.close()


def write(rig: FitRig, name: str, keys: np.ndarray, rows: np.ndarray | None = None) -> None:
    rig.writer_count += 1
    spec = WriterSpec("c", f"writer-{rig.writer_count}", name, eta=ETAS[name], on_conflict="replace")
    given = ROWS[name][keys] if rows is None else rows
    q = Q[name][keys % ROW_COUNT]
    rig.committer.submit(spec, batch_of(1, keys.tolist(), given, trak_q=q)).result()


def build(rig: FitRig, scorer: str = "dot", names: list[str] = NAMES, **given: Any) -> None:
    for name in names:
        ended = rig.build(checkpoint=name, scorer=scorer, **given)
        assert ended.state == SUCCEEDED, ended.error_message


def asked(rig: FitRig, scorer: str, k: int = 10, names: list[str] = NAMES, **given: Any) -> TopKAnswer:
    return rig.hits(QUERIES[: len(names)], scorer, k, names, **given)


def recall(rig: FitRig, scorer: str, k: int = 10, **given: Any) -> float:
    """The smaller share of both ends that the indexes find; scores are exact, and each row comes once."""
    exact, found = (asked(rig, scorer, k, exact=flag, **given) for flag in (True, False))
    assert found.index.count("+") == len(given.get("names", NAMES)) - 1, found.reason
    assert not exact.index
    return share_of(found, exact)


@pytest.mark.parametrize("scorer", ["dot", "tracin", "cosine"])
def test_recall_of_both_ends(rig: FitRig, scorer: str) -> None:
    build(rig)
    assert recall(rig, scorer) >= 0.97
    assert recall(rig, scorer, 50) >= 0.95
    assert recall(rig, scorer, names=["one", "two"]) >= 0.97


@pytest.mark.parametrize("scorer", ["trak", "influence", "trackstar"])
def test_recall_for_fits(rig: FitRig, scorer: str) -> None:
    rig.fitted(scorer)
    assert "no index" in asked(rig, scorer).reason
    build(rig, scorer)
    assert recall(rig, scorer) >= 0.97
    assert recall(rig, scorer, names=["one", "two"]) >= 0.97


def test_the_answer_says_what_ran(rig: FitRig) -> None:
    build(rig, names=["one", "two"])
    lacking = asked(rig, "dot")
    assert lacking.index == ""
    assert (
        lacking.reason == "no index for checkpoint 'three' and scorer 'dot', one of several checkpoints that are summed"
    )
    build(rig, names=["three"])
    found = asked(rig, "dot")
    assert found.index.split("+") == [record.id for record in rig.records()]
    assert " and ".join(found.index.split("+")) in found.reason
    assert [stage.name for stage in found.stages] == ["filter", "candidates", "rescore"]
    assert found.stages[1].rows_in == ROW_COUNT
    assert asked(rig, "dot", exact=True).reason == "exact search was asked for"
    maximum = asked(rig, "dot", groups=[0] * 6 + [1] * 6, reduce="max")
    assert (maximum.index, "maximum" in maximum.reason) == ("", True)


def test_kinds_that_cannot_be_summed_are_named(rig: FitRig) -> None:
    build(rig, kind="annoy", names=["one"])
    build(rig, names=["two", "three"])
    found = asked(rig, "dot")
    assert found.index == ""
    assert "only a subspace index can be summed over checkpoints" in found.reason
    build(rig, names=["one"])
    assert recall(rig, "dot") >= 0.97


@pytest.mark.parametrize("missing", ["omit", "zero"])
def test_rows_that_are_newer_replaced_deleted_or_missing(rig: FitRig, missing: str) -> None:
    """At one checkpoint or at all, before the index or after it."""
    write(rig, "two", np.arange(5_000, 5_100), decaying(100, DIM, seed=20) * 20)  # at one alone, in its index
    build(rig)
    everywhere, somewhere = np.arange(6_000, 6_050), np.arange(7_000, 7_050)
    for name in NAMES:
        write(rig, name, everywhere, decaying(50, DIM, seed=21) * (2e-5 if name == "three" else 20))
    write(rig, "one", somewhere, decaying(50, DIM, seed=22) * 20)
    write(rig, "two", np.arange(5_000, 5_010), decaying(10, DIM, seed=23) * 30)
    write(rig, "three", np.arange(0, 40), -ROWS["three"][:40] * 5)
    rig.delete(range(100, 150))
    for k in (10, 100):
        assert recall(rig, "dot", k, missing=missing) >= 0.95
    found = asked(rig, "dot", 100, missing=missing)
    every = {key for ends in found.results for end in keys_of(ends) for key in end}
    assert not every & set(range(100, 150))
    assert every & set(everywhere.tolist())
    assert bool(every & set(somewhere.tolist())) == bool(every & set(range(5_000, 5_100))) == (missing == "zero")


def test_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However narrow: the indexes answer here whatever it costs."""
    monkeypatch.setattr(choosing, "index_cost", lambda *given: 0.0)
    rig = FitRig(tmp_path / "store", DIM)
    try:
        metadata = [{"half": row % 2, "cent": row % 100} for row in range(ROW_COUNT)]
        for name in ("one", "two"):
            rig.add(0, ROWS[name], checkpoint=name, metadata=metadata)
        build(rig, names=["one", "two"])
        names = ["one", "two"]
        for where in ({"half": 1}, {"cent": 3}):
            field, value = next(iter(where.items()))
            assert recall(rig, "dot", 5, names=names, where=where) >= 0.97
            found = asked(rig, "dot", 5, names, where=where)
            modulus = {"half": 2, "cent": 100}[field]
            assert all(key % modulus == value for ends in found.results for end in keys_of(ends) for key in end)
        rig.add(4_000, ROWS["one"][:20] * 50, metadata=[{"half": 1}] * 20)
        rig.add(4_000, ROWS["two"][:20] * 50, checkpoint="two", metadata=[{"half": 1}] * 20)
        assert recall(rig, "dot", 5, names=names, where={"half": 1}) >= 0.97
        assert recall(rig, "dot", 5, names=names, where={"cent": 3}) >= 0.97
    finally:
        rig.close()


def test_groups_and_the_mean_over_them(rig: FitRig) -> None:
    build(rig)
    assert recall(rig, "dot", groups=[0] * 6 + [1] * 6) >= 0.9
    assert recall(rig, "dot", groups=[0] * 6 + [1] * 6, reduce="mean") >= 0.9


def test_zeros(rig: FitRig) -> None:
    build(rig)
    found, exact = (rig.hits(np.zeros_like(QUERIES), "dot", 5, NAMES, exact=flag) for flag in (False, True))
    assert found.index
    for one, other in zip(found.results, exact.results, strict=True):
        assert len(one.proponents.keys) == len(other.proponents.keys) == 5
        assert not one.proponents.scores.any()


def test_compaction_of_one_of_them(rig: FitRig) -> None:
    build(rig)
    rig.delete(range(500, 1_500))
    rig.compact(Rules(0.2))
    assert recall(rig, "dot") >= 0.97
    assert recall(rig, "cosine") >= 0.97


def test_the_cost_decides(rig: FitRig, monkeypatch: pytest.MonkeyPatch) -> None:
    build(rig)
    monkeypatch.setattr(choosing, "FIXED_ELEMENTS", 1e12)
    found = asked(rig, "dot")
    assert (found.index, "costs less than index" in found.reason) == ("", True)
