"""Streams: however rows are cut, wherever a job is stopped, and when more rows come, the fit is the same."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.unit import fit_judge as judge

from covector.attribution import fit
from covector.attribution.checkpoint_fit import CheckpointFit
from covector.attribution.inverting import orthonormal
from covector.attribution.learning import FitJob
from covector.attribution.planning import FitPlan, plan_fit
from covector.attribution.preconditioner import LowRank
from covector.attribution.rows import ArrayBlock
from covector.attribution.sums import GramSum, RowSums, batch_row_count
from covector.blocks import scale_rows
from covector.errors import Conflict, InvalidInput
from covector.types import Block, Space

DIM = 48
BLOCKS = (Block("a", 0, 20, 100), Block("b", 20, 23, 3), Block("c", 23, 48, 400))
SPACE = Space(dim=DIM, blocks=BLOCKS)
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("trak", {}),
    ("trak", {"damping": 0.0}),
    ("influence", {"rank": 12}),
    ("influence", {"rank": 12, "range_passes": 3}),
    ("influence", {"by_layer": True, "unit_rows": True}),
    ("datainf", {}),
    ("datainf", {"rank": 9}),
    ("trackstar", {}),
]


def stored_rows(count: int, spread: float = 3.0, seed: int = 0) -> ArrayBlock:
    """Rows as they are stored, whose norms lie ``spread`` orders of magnitude apart; the third is all zero."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((count, DIM)) * np.geomspace(1, 0.05, DIM)
    drawn *= 10.0 ** rng.uniform(-spread / 2, spread / 2, (count, 1))
    drawn[2] = 0
    rows, scales = scale_rows(drawn)
    return ArrayBlock(rows, scales, rng.random(count).astype(np.float32))


def part_of(block: ArrayBlock, start: int, stop: int) -> ArrayBlock:
    return ArrayBlock(block.rows[start:stop], block.scales[start:stop], block.trak_q[start:stop])


def cut(block: ArrayBlock, cuts: Sequence[int]) -> Iterator[ArrayBlock]:
    for start, stop in itertools.pairwise([0, *cuts, len(block.rows)]):
        yield part_of(block, start, stop)


def run(job: FitJob, block: ArrayBlock, cuts: Sequence[int] = ()) -> CheckpointFit:
    more = True
    while more:
        for piece in cut(block, cuts):
            job.update(piece)
        more = job.end_pass()
    return job.finish()


def plan_of(method: str, rows: int, **options: Any) -> FitPlan:
    return plan_fit(method, SPACE, rows, **options)


def assert_same(left: CheckpointFit, right: CheckpointFit) -> None:
    ours, theirs = left.arrays(), right.arrays()
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)
    assert left.facts == right.facts


@pytest.mark.parametrize(("method", "options"), METHODS)
@pytest.mark.parametrize("cuts", [[1], [100, 100, 101], list(range(1, 300)), [299]])
def test_any_chunking_gives_the_same_bits(method: str, options: dict[str, Any], cuts: list[int]) -> None:
    block = stored_rows(300)
    plan = plan_of(method, 300, **options)
    assert_same(run(FitJob(plan), block, cuts), run(FitJob(plan), block))


@pytest.mark.parametrize("spread", [0.0, 20.0])
def test_chunks_larger_and_smaller_than_the_buffer(spread: float) -> None:
    """A buffer of few rows; norms that rise and fall, so that the common exponent is raised many times."""
    block = stored_rows(500, spread)
    wide = block.rows.astype(np.float64) * block.scales[:, None].astype(np.float64)

    def summed(cuts: Sequence[int]) -> RowSums:
        sums = RowSums([(0, DIM)], [GramSum(DIM)])
        sums._buffer = sums._buffer[:7]
        for piece in cut(block, cuts):
            sums.update(piece.rows, piece.scales.astype(np.float64))
        sums.flush()
        return sums

    whole = summed([])
    for cuts in ([3], [250, 251], list(range(0, 500, 6))):
        np.testing.assert_array_equal(summed(cuts).mean(0), whole.mean(0))
    expected = np.triu(wide.T @ wide / 500)
    np.testing.assert_allclose(np.triu(whole.mean(0)), expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_allclose(whole.mean_squares(), [(wide**2).sum() / 500], rtol=1e-6)


def test_tiles_of_a_wide_moment_fit_together() -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((64, 1100))
    part = next(iter(fit("influence", rows).parts.values()))
    queries = rng.standard_normal((3, 1100))
    expected = queries @ judge.damped_inverse(rows, 1.0)
    np.testing.assert_allclose(part.preconditioner.apply(queries), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_a_job_goes_on_from_its_state(method: str, options: dict[str, Any]) -> None:
    """Stopped after every stretch of rows and at every end of a pass, saved as bytes, begun again."""
    block, plan = stored_rows(200), plan_of(method, 200, **options)
    job, more = FitJob(plan), True
    while more:
        for start in range(0, 200, 37):
            job = restored(plan, job)
            assert job.row_count == start
            job.update(part_of(block, start, min(start + 37, 200)))
        job = restored(plan, job)
        more = job.end_pass()
    assert_same(job.finish(), run(FitJob(plan), block))


def restored(plan: FitPlan, job: FitJob) -> FitJob:
    return FitJob.restore(plan, {name: np.array(values) for name, values in job.state().items()})


def test_the_task_is_in_the_state() -> None:
    block, task = stored_rows(200), stored_rows(20, seed=5)
    plan = plan_of("trackstar", 200, task_row_count=20)
    job = FitJob(plan, task)
    job.update(part_of(block, 0, 50))
    job = restored(plan, job)
    job.update(part_of(block, 50, 200))
    assert_same(job.finish(), run(FitJob(plan, task), block))


@pytest.mark.parametrize("options", [{}, {"rank": 48}, {"by_layer": True}, {"damping": 0.0}])
def test_new_rows_are_folded_in(options: dict[str, Any]) -> None:
    """One more stretch of rows, no full pass; with all directions followed, the result is that of all rows at once."""
    block, plan = stored_rows(300), plan_of("influence", 200, **options)
    job = FitJob(plan)
    run(job, part_of(block, 0, 200))
    job.update(part_of(block, 200, 300))
    folded, fresh = job.finish(), run(FitJob(plan_of("influence", 300, **options)), block)
    assert folded.row_count == 300
    queries = np.random.default_rng(3).standard_normal((4, DIM))
    ours, theirs = folded.preconditioner.apply(queries), fresh.preconditioner.apply(queries)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_weights_of_new_rows_need_no_other_rows() -> None:
    block = stored_rows(300)
    part = run(FitJob(plan_of("trackstar", 200)), part_of(block, 0, 200))
    together = part.row_factors(block)
    for start in (0, 200, 299):
        np.testing.assert_allclose(part.row_factors(part_of(block, start, 300)), together[start:], rtol=1e-6)
    assert together[2] == 0


def test_low_rank_finds_the_top_of_the_spectrum() -> None:
    """Close to the best A of its rank, which a whole eigendecomposition gives; more passes come closer."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((600, DIM)) * np.geomspace(1, 0.01, DIM)
    queries = rng.standard_normal((5, DIM))
    values, vectors = np.linalg.eigh(rows.T @ rows / 600)
    lam = values.mean()
    top, directions = values[-8:], vectors[:, -8:]
    best = (queries - (queries @ directions * (top / (top + lam))) @ directions.T) / lam
    errors = []
    for range_passes in (1, 3):
        part = next(iter(fit("influence", rows, rank=8, range_passes=range_passes).parts.values()))
        errors.append(np.abs(part.preconditioner.apply(queries) - best).max() / np.abs(best).max())
    assert errors[0] < 0.05
    assert errors[1] < 1e-4


def test_passes_must_see_the_same_rows() -> None:
    block, plan = stored_rows(100), plan_of("datainf", 100)
    job = FitJob(plan)
    job.update(block)
    assert job.end_pass()
    job.update(part_of(block, 0, 60))
    with pytest.raises(Conflict, match="pass 2 saw 60 rows, the one before 100"):
        job.finish()
    three = FitJob(plan_of("influence", 100, rank=5, range_passes=2))
    three.update(block)
    assert three.end_pass()
    three.update(block)
    three.update(block)
    with pytest.raises(Conflict, match="pass 2 saw 200 rows, the one before 100"):
        three.end_pass()
    with pytest.raises(Conflict, match=r"pass 2 of 3 is not over yet"):
        three.finish()


@pytest.mark.parametrize("options", [{}, {"rank": 100}, {"by_layer": True}, {"damping": 0.001}])
@pytest.mark.parametrize("method", ["influence", "datainf", "trackstar"])
def test_memory_stays_below_what_the_plan_says(method: str, options: dict[str, Any]) -> None:
    """TrackStar with gradients of its task, which have sums of their own."""
    dim, count = 1500, 400
    blocks = (Block("a", 0, 900, 900), Block("b", 900, 1500, 600))
    task_row_count = 40 if method == "trackstar" else 0
    plan = plan_fit(method, Space(dim=dim, blocks=blocks), count, task_row_count=task_row_count, **options)
    rows, scales = scale_rows(np.random.default_rng(0).standard_normal((count, dim)))
    block = ArrayBlock(rows, scales, np.full(count, np.nan))
    tracemalloc.start()
    try:
        run(FitJob(plan, part_of(block, 0, 40) if task_row_count else None), block, [100, 200])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0.3 * plan.memory_bytes < peak <= plan.memory_bytes


@pytest.mark.parametrize("options", ["", "rank=256", "by_layer=True", "damping=0.001",
                                     "damping='held_out'", "damping='held_out', rank=256"])  # fmt: skip
def test_the_process_grows_by_no_more_than_the_plan_says(options: str) -> None:
    """What LAPACK takes for itself included."""
    code = f"""
from pathlib import Path
import numpy as np
from covector.attribution import FitJob, plan_fit
from covector.attribution.rows import ArrayBlock
from covector.types import Block, Space

rows = np.random.default_rng(0).standard_normal((2048, 2400)).astype(np.float16)
block = ArrayBlock(rows, np.ones(2048), np.full(2048, np.nan))
small = np.linalg.inv(np.eye(500)) @ np.linalg.qr(np.ones((600, 500)))[0].T  # the libraries' own buffers
space = Space(dim=2400, blocks=(Block("a", 0, 1800, 1800), Block("b", 1800, 2400, 600)))
plan = plan_fit("influence", space, 2048, {options})
def kib(name):  # of this process alone: what getrusage says may be its parent's
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
before = kib("VmRSS")
job, more = FitJob(plan), True
while more:
    job.update(block)
    more = job.end_pass()
job.finish()
print((kib("VmHWM") - before) * 1024, plan.memory_bytes)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, planned = map(int, done.stdout.split())
    assert 0.3 * planned < grown <= planned + (16 << 20)


@pytest.mark.parametrize("width", [3, 60])
def test_a_tall_basis_is_made_orthonormal_block_by_block(width: int) -> None:
    tall = np.random.default_rng(0).standard_normal((20_000, width)) * np.geomspace(1, 1e-9, width)
    basis = orthonormal(tall.copy())
    np.testing.assert_allclose(basis.T @ basis, np.eye(width), rtol=0, atol=1e-12)
    np.testing.assert_allclose(basis @ (basis.T @ tall), tall, rtol=0, atol=1e-12)


def test_a_large_low_rank_map_works_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.standard_normal((100, 6)))[0].astype(np.float32)
    a, queries = LowRank(vectors, np.linspace(0.1, 0.9, 6), 2.0), rng.standard_normal((3, 100))
    expected = a.apply(queries)
    monkeypatch.setattr("covector.attribution.preconditioner.BLOCK_DIM", 7)
    monkeypatch.setattr("covector.attribution.preconditioner.KEPT_ELEMENTS_MAX", 0)
    np.testing.assert_allclose(LowRank(vectors, a.shares, 2.0).apply(queries), expected, rtol=1e-12)


def test_the_batch_depends_on_dim_alone() -> None:
    assert batch_row_count(1 << 20) * 4 << 20 <= 1 << 28
    assert batch_row_count(64) == 2048


def test_accuracy_where_the_spectrum_is_steep() -> None:
    """A largest eigenvalue of a hundred times the mean, queries along it and across it: A q to 1e-5 at any damping."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((256, 256)))[0]
    rows, scales = scale_rows((rng.standard_normal((4000, 256)) * np.arange(1, 257) ** -1.0) @ turn)
    wide = rows.astype(np.float64) * scales[:, None].astype(np.float64)
    moments = wide.T @ wide / 4000
    unit = np.trace(moments) / 256
    assert np.linalg.eigvalsh(moments)[-1] > 100 * unit
    queries = np.concatenate([wide[:3], turn[:3], turn[-3:], rng.standard_normal((3, 256))])
    for damping in (10.0, 1.0, 0.3, 0.1, 1e-6):
        job = FitJob(plan_fit("influence", Space(dim=256), 4000, damping=damping))
        job.update(ArrayBlock(rows, scales, np.full(4000, np.nan)))
        ours = job.finish().preconditioner.apply(queries)
        exact = np.linalg.solve(moments + damping * unit * np.eye(256), queries.T).T
        assert (np.linalg.norm(ours - exact, axis=1) <= 1e-5 * np.linalg.norm(exact, axis=1)).all()


def test_many_dampings_of_one_job() -> None:
    block = stored_rows(100)
    job = FitJob(plan_of("influence", 100, damping=[1.0, 10.0]))
    job.update(block)
    for damping in (1.0, 10.0):
        single = FitJob(plan_of("influence", 100, damping=damping))
        single.update(block)
        np.testing.assert_array_equal(job.finish(damping).arrays()["unit"], single.finish().arrays()["unit"])
    with pytest.raises(InvalidInput, match=r"damping 5\.0 is none of the plan's candidates"):
        job.finish(5.0)


@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize("method", ["trak", "influence", "datainf", "trackstar"])
def test_no_norm_is_too_small_or_too_large(method: str, size: float) -> None:
    """A method that inverts has no unit: scores of rows and queries times s are the same scores."""
    rng = np.random.default_rng(7)
    rows, queries, q = rng.standard_normal((200, DIM)), rng.standard_normal((3, DIM)), rng.random(200)

    def scored(factor: float) -> npt.NDArray[np.float64]:
        learnt = fit(method, rows * factor, trak_q=q, space=SPACE)
        return learnt.scores(queries * factor, rows * factor, trak_q=q)

    plain = scored(1.0)
    np.testing.assert_allclose(scored(size), plain, rtol=0, atol=1e-5 * np.abs(plain).max())
