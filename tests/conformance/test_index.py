"""What every kind of index promises. A backend joins by a line in ``CASES``: its name, a scorer, the recall expected.

The judge is plain numpy over decoded rows. ``influence`` stands for all scorers with a map A: it is learnt here, from
other rows of the same kind, or, where dim is large, at low rank from those that are indexed.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.index_rig import ArrayCheckpoint, decaying

from covector.attribution.learning import FitJob
from covector.attribution.planning import plan_fit
from covector.attribution.preconditioner import Identity, Preconditioner
from covector.attribution.rows import ArrayBlock
from covector.attribution.scoring import Scorer, scorer_named, scorer_names, split_scale
from covector.errors import Corrupt, CovectorError, InvalidInput
from covector.types import Space
from covector_server.index.contract import Backend, Built, Candidates, Changes, Index, Search, Spec
from covector_server.index.kinds import backend_of, kinds
from covector_server.index.source import CheckpointRows, CheckpointSource, memory_bytes
from covector_server.metadata.records import IndexRecord
from covector_server.storage.disk import Disk
from covector_server.storage.index_files import drafting, open_files

DIM, ROW_COUNT = 96, 6_000
DENSE_DIM_MAX = 1_000
NONE = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Case:
    """A backend to hold to the contract. ``candidates``: drawn for each of ten hits."""

    kind: str
    scorer: str
    recall: float
    oversampling: int = 10


CASES = [
    Case("subspace", "dot", 0.98),
    Case("subspace", "cosine", 0.98),
    Case("subspace", "influence", 0.97),
    Case("scann", "dot", 0.95),
    Case("scann", "cosine", 0.95),
    Case("scann", "influence", 0.93),
    Case("annoy", "dot", 0.95),
    Case("annoy", "cosine", 0.95),
    Case("annoy", "influence", 0.93),
]


class Stopped(Exception):
    """What a caller raises to stop."""


def rule_of(case: Case, checkpoint: Any) -> tuple[Scorer, Preconditioner]:
    """The scorer of a case and its A."""
    if case.scorer in scorer_names():
        return scorer_named(case.scorer), Identity()
    dim = checkpoint.rows.shape[1]
    if dim > DENSE_DIM_MAX:
        rows, scales, rank = checkpoint.rows, checkpoint.scales, 32
    else:
        rows, scales, rank = *split_scale(decaying(2_000, dim, seed=9).astype(np.float64)), None
    job = FitJob(plan_fit(case.scorer, Space(dim=dim), len(rows), rank=rank))
    while True:
        job.update(ArrayBlock(rows, scales, np.full(len(rows), np.nan)))
        if not job.end_pass():
            break
    fit = job.finish()
    return fit.scorer(), fit.preconditioner


def no_check() -> None:
    """Nobody stops."""


@dataclass(frozen=True, slots=True)
class Made:
    """An index on disk."""

    backend: Backend
    directory: Path
    record: IndexRecord
    built: Built

    def open(self) -> Index:
        return self.backend.open(open_files(self.directory, self.record, no_check), no_check)


def make(case: Case, checkpoint: Any, root: Path, report: Callable[[int, int], None], **given: Any) -> Made:
    backend = backend_of(case.kind)
    spec = Spec(kind=case.kind, scorer=case.scorer, fit="" if case.scorer in scorer_names() else "a-fit", **given)
    dim = checkpoint.rows.shape[1]
    backend.check(spec, dim)
    scorer, preconditioner = rule_of(case, checkpoint)
    with drafting(root, case.kind, Disk()) as draft:
        built = backend.build(CheckpointSource(checkpoint, dim, scorer, report, preconditioner), spec, draft)
        files, checksum = draft.add_manifest(case.kind, built.parameters)
    record = IndexRecord("x", case.kind, draft.directory.name, [], files=files, checksum=checksum)
    return Made(backend, draft.directory, record, built)


def never(done: int, total: int) -> None:
    """A report that nobody hears."""


@pytest.fixture(params=CASES, ids=lambda case: f"{case.kind}-{case.scorer}", scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture(scope="module")
def checkpoint() -> ArrayCheckpoint:
    gradients = decaying(ROW_COUNT, DIM)
    gradients[50:60] = 0
    return ArrayCheckpoint.of(gradients, dead=range(100, 200))


@pytest.fixture(scope="module")
def made(case: Case, checkpoint: ArrayCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(case, checkpoint, tmp_path_factory.mktemp(case.kind), never)


def queries(preconditioner: Preconditioner = Identity()) -> np.ndarray:  # noqa: B008 - it never changes
    """float32[12, DIM], at unit RMS, after a map; the last is zero."""
    rows = preconditioner.apply(decaying(12, DIM, seed=4).astype(np.float64))
    rows /= np.sqrt((rows**2).mean(axis=1, keepdims=True))
    rows[-1] = 0
    return rows.astype(np.float32)


def ask(
    made: Made, case: Case, checkpoint: ArrayCheckpoint, count: int, mask: np.ndarray | None = None
) -> tuple[np.ndarray, Candidates]:
    """The exact scores of the live rows, NaN for the others, float64[12, rows], and the candidates."""
    scorer, preconditioner = rule_of(case, checkpoint)
    rows = CheckpointRows(checkpoint, scorer, DIM, mask)  # type: ignore[arg-type]
    vectors = queries(preconditioner)
    found = made.open().candidates(Search(vectors, count, rows, no_check))
    wide = checkpoint.rows.astype(np.float64)
    scores = vectors.astype(np.float64) @ wide.T * checkpoint.scales
    if case.scorer == "cosine":
        norms = np.linalg.norm(wide, axis=1) * checkpoint.scales
        scores = np.divide(scores, norms, out=np.zeros_like(scores), where=norms > 0)
    scores[:, checkpoint.dead] = np.nan
    if mask is not None:
        scores[:, ~mask] = np.nan
    return scores, found


def test_each_kind_has_a_case() -> None:
    assert {case.kind for case in CASES} == set(kinds())


def test_both_ends_are_found(made: Made, case: Case, checkpoint: ArrayCheckpoint) -> None:
    scores, found = ask(made, case, checkpoint, 10 * case.oversampling)
    order = np.argsort(-np.nan_to_num(scores, nan=0.0), axis=1, kind="stable")[:-1]
    for true, ends in ((order[:, :10], found.top), (order[:, -10:], found.bottom)):
        share = np.mean([np.isin(wanted, end).mean() for wanted, end in zip(true, ends, strict=False)])
        assert share >= case.recall


def test_candidates_are_live_distinct_and_as_many_as_asked_for(
    made: Made, case: Case, checkpoint: ArrayCheckpoint
) -> None:
    for count in (1, 37, ROW_COUNT, 2 * ROW_COUNT):
        _, found = ask(made, case, checkpoint, count)
        assert len(found.top) == len(found.bottom) == 12
        for end in (*found.top, *found.bottom):
            assert end.dtype == np.int64
            assert len(end) == min(count, ROW_COUNT - len(checkpoint.dead))
            assert len(np.unique(end)) == len(end)
            assert 0 <= end.min() <= end.max() < ROW_COUNT
            assert not np.isin(end, checkpoint.dead).any()


@pytest.mark.parametrize("matching", [3_000, 60, 1, 0])
def test_only_chosen_rows_come_and_enough_of_them(
    made: Made, case: Case, checkpoint: ArrayCheckpoint, matching: int
) -> None:
    mask = np.zeros(ROW_COUNT, dtype=bool)
    mask[np.random.default_rng(1).choice(np.arange(200, ROW_COUNT), matching, replace=False)] = True
    scores, found = ask(made, case, checkpoint, 10 * case.oversampling, mask)
    for place, (top, bottom) in enumerate(zip(found.top, found.bottom, strict=True)):
        assert mask[top].all()
        assert mask[bottom].all()
        assert len(top) == len(bottom) == min(10 * case.oversampling, matching)
        if matching == 3_000 and place < 11:
            true = np.argsort(-np.nan_to_num(scores[place], nan=-np.inf))[:10]
            assert np.isin(true, top).mean() >= 0.8


def test_the_best_comes_first(made: Made, case: Case, checkpoint: ArrayCheckpoint) -> None:
    """The first half of the candidates is worth more than the second, on the average."""
    scores, found = ask(made, case, checkpoint, 200)
    for place in range(11):
        top, bottom = scores[place][found.top[place]], scores[place][found.bottom[place]]
        assert top[:100].mean() > top[100:].mean()
        assert bottom[:100].mean() < bottom[100:].mean()


def test_any_thread_may_ask(made: Made, case: Case, checkpoint: ArrayCheckpoint) -> None:
    index = made.open()
    rows = CheckpointRows(checkpoint, rule_of(case, checkpoint)[0], DIM)  # type: ignore[arg-type]
    searches = [Search(queries()[place : place + 1], 50, rows, no_check) for place in range(11)]
    alone = [index.candidates(search) for search in searches]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(index.candidates, searches * 8))
    for one, other in zip(alone * 8, together, strict=True):
        np.testing.assert_array_equal(one.top[0], other.top[0])
        np.testing.assert_array_equal(one.bottom[0], other.bottom[0])


def test_what_is_measured(made: Made, case: Case) -> None:
    assert set(made.built.recall) == {"recall@10", "recall@100", "bottom-10"}
    assert all(case.recall - 0.02 <= share <= 1 for share in made.built.recall.values())
    assert case.scorer in made.built.scorers
    assert made.built.oversampling >= 1
    assert made.built.query_elements > 0
    assert made.built.warning == ""


def test_a_recall_that_is_out_of_reach_is_said(case: Case, tmp_path: Path) -> None:
    flat = np.random.default_rng(0).standard_normal((3_000, DIM)).astype(np.float32)
    found = make(case, ArrayCheckpoint.of(flat), tmp_path, never, recall=0.999_999)
    assert min(found.built.recall.values()) >= 0.999_999 or "was asked for" in found.built.warning


def test_two_builds_of_the_same_rows_are_the_same(
    made: Made, case: Case, checkpoint: ArrayCheckpoint, tmp_path: Path
) -> None:
    again = make(case, checkpoint, tmp_path, never)
    assert again.built == made.built
    assert again.record.checksum == made.record.checksum


def test_a_build_stops_when_it_is_told(case: Case, checkpoint: ArrayCheckpoint, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert 0 <= done <= total
        if done > 0:
            raise Stopped

    with pytest.raises(Stopped):
        make(case, checkpoint, tmp_path, stop)
    assert list((tmp_path / "indexes").iterdir()) == []


def test_a_search_stops_when_it_is_told(made: Made, case: Case, checkpoint: ArrayCheckpoint) -> None:
    def stop() -> None:
        raise Stopped

    rows = CheckpointRows(checkpoint, rule_of(case, checkpoint)[0], DIM)  # type: ignore[arg-type]
    with pytest.raises(Stopped):
        made.open().candidates(Search(queries(), 10, rows, stop))


def test_rows_are_left_out_and_blanked_or_the_index_goes(
    made: Made, case: Case, checkpoint: ArrayCheckpoint, tmp_path: Path
) -> None:
    dropped, blank = np.arange(100, 700), np.arange(1_000, 1_010)
    left = np.delete(np.arange(ROW_COUNT), dropped)[:5_000]
    changes = Changes(len(left), dropped, blank)
    with drafting(tmp_path, case.kind, Disk()) as draft:
        files = open_files(made.directory, made.record, no_check)
        parameters = made.backend.rewrite(files, changes, draft, no_check)
        if parameters is None:
            pytest.skip("this kind has to go")
        sizes, checksum = draft.add_manifest(case.kind, parameters)
    record = IndexRecord("x", case.kind, draft.directory.name, [], files=sizes, checksum=checksum)
    rewritten = Made(made.backend, draft.directory, record, made.built)
    dead = np.flatnonzero(np.isin(left, blank))
    moved = ArrayCheckpoint(checkpoint.rows[left], checkpoint.scales[left], dead.tolist())
    rows = CheckpointRows(moved, rule_of(case, moved)[0], DIM)  # type: ignore[arg-type]
    found = rewritten.open().candidates(Search(queries(), 100, rows, no_check))
    scores = queries().astype(np.float64) @ (moved.rows.astype(np.float64) * moved.scales[:, None]).T
    if case.scorer == "dot":
        scores[:, dead] = -np.inf
        shares = [np.isin(np.argsort(-scores[place])[:10], found.top[place]).mean() for place in range(11)]
        assert np.mean(shares) >= case.recall
    assert all(end.max() < 5_000 for end in found.top)


def test_files_that_do_not_fit_together_are_refused(made: Made) -> None:
    files = open_files(made.directory, made.record, no_check)
    for name in files.maps:
        short = {**files.maps, name: files.maps[name][: len(files.maps[name]) // 2]}
        with pytest.raises(CovectorError):
            made.backend.open(type(files)(files.directory, files.parameters, short), no_check)
    with pytest.raises(Corrupt):
        made.backend.open(type(files)(files.directory, {}, files.maps), no_check)


def test_files_of_before_there_were_maps_are_read(made: Made, case: Case, checkpoint: ArrayCheckpoint) -> None:
    """They have no gains, which are 1, and say nothing of bits, which are 8."""
    if case.scorer == "influence":
        return
    files = open_files(made.directory, made.record, no_check)
    maps = {name: data for name, data in files.maps.items() if name != "gains"}
    parameters = {name: value for name, value in files.parameters.items() if name != "bits"}
    old = made.backend.open(type(files)(files.directory, parameters, maps), no_check)
    search = Search(queries(), 50, CheckpointRows(checkpoint, rule_of(case, checkpoint)[0], DIM), no_check)  # type: ignore[arg-type]
    for one, other in zip(old.candidates(search).top, made.open().candidates(search).top, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_not_known_is_refused(case: Case) -> None:
    with pytest.raises(InvalidInput):
        backend_of(case.kind).check(Spec(kind=case.kind, parameters={"no such": 1}), DIM)


@pytest.mark.parametrize("row_count", [1, 2, 17])
def test_few_rows(case: Case, tmp_path: Path, row_count: int) -> None:
    few = ArrayCheckpoint.of(decaying(row_count, DIM))
    found = make(case, few, tmp_path, never)
    rows = CheckpointRows(few, rule_of(case, few)[0], DIM)  # type: ignore[arg-type]
    candidates = found.open().candidates(Search(queries(), 100, rows, no_check))
    assert [sorted(end) for end in (*candidates.top, *candidates.bottom)] == [list(range(row_count))] * 24


@pytest.mark.parametrize("dim", [1, 3, 9_000])
def test_any_dim(case: Case, tmp_path: Path, dim: int) -> None:
    gradients = np.random.default_rng(2).standard_normal((300, 8)) @ np.random.default_rng(3).standard_normal((8, dim))
    wide = ArrayCheckpoint.of(gradients.astype(np.float32))
    found = make(case, wide, tmp_path, never)
    assert min(found.built.recall.values()) >= 0.95


def test_a_build_stays_within_its_memory(case: Case, tmp_path: Path) -> None:
    """Rows of more coordinates than are multiplied at once, in a file that is mapped."""
    dim, row_count = 40_000, 1_200
    path = tmp_path / "rows"
    rows = np.memmap(path, dtype=np.float16, mode="w+", shape=(row_count, dim))
    directions = np.random.default_rng(3).standard_normal((40, dim)).astype(np.float32)
    rows[:] = np.random.default_rng(2).standard_normal((row_count, 40)).astype(np.float32) @ directions / np.sqrt(40)
    mapped = ArrayCheckpoint(rows, np.ones(row_count, dtype=np.float32))
    tracemalloc.start()
    try:
        made = make(case, mapped, tmp_path, never)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < memory_bytes(row_count, dim)
    assert min(made.built.recall.values()) >= 0.9


def test_estimates_of_an_index_that_sums(made: Made, case: Case, checkpoint: ArrayCheckpoint) -> None:
    """They are the products themselves but for what codes leave out, so that those of several checkpoints can be added;
    any range of positions may be asked for, and rows that may not come have none."""
    if not made.backend.can_sum:
        assert not hasattr(made.open(), "products")
        return
    index: Any = made.open()
    vectors = queries(rule_of(case, checkpoint)[1])
    weighted = index.weighted(vectors)
    found = index.products(weighted, 0, ROW_COUNT)
    exact = vectors.astype(np.float64) @ checkpoint.rows.astype(np.float64).T
    live = np.setdiff1d(np.arange(ROW_COUNT), checkpoint.dead)
    assert found.dtype == np.float32
    assert not found[:, checkpoint.dead].any()
    assert not found[-1].any()
    error = np.linalg.norm(found[:-1, live] - exact[:-1, live], axis=1) / np.linalg.norm(exact[:-1, live], axis=1)
    assert error.max() < 0.5
    np.testing.assert_allclose(index.products(weighted, 1_000, 1_250), found[:, 1_000:1_250], rtol=1e-4, atol=1e-3)
