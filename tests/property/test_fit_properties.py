"""What holds of every fit, whatever the rows: drawn by hypothesis, small shapes, any norms, zero rows among them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from covector.attribution import FitJob, fit, plan_fit
from covector.attribution.rows import ArrayBlock
from covector.blocks import scale_rows
from covector.types import Block, Space

Float64 = npt.NDArray[np.float64]
METHODS = ("trak", "influence", "datainf", "trackstar", "less")


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """Rows and queries with norms up to eight orders of magnitude apart, few or many, some zero; a method."""
    count, dim = draw(st.integers(1, 40)), draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    spread, size = draw(st.sampled_from([0, 3, 8])), draw(st.sampled_from([1e-25, 1e-6, 1.0, 1e25]))
    rows = rng.standard_normal((count, dim)) * 10.0 ** rng.uniform(-spread / 2, spread / 2, (count, 1)) * size
    rows[rng.random(count) < draw(st.sampled_from([0.0, 0.3]))] = 0
    rows[0] = size  # never all zero
    cut = draw(st.integers(1, dim))
    blocks = (Block("a", 0, cut, 3 * cut), *((Block("b", cut, dim, dim),) if cut < dim else ()))
    return {
        "rows": rows,
        "queries": rng.standard_normal((3, dim)),
        "q": rng.random(count),
        "method": draw(st.sampled_from(METHODS)),
        "space": Space(dim=dim, blocks=blocks),
        "damping": draw(st.sampled_from([None, 0.05, 1.0, 30.0])),
        "rank": draw(st.one_of(st.none(), st.integers(1, min(count, cut)))),
        "rng": rng,
    }


def scores(problem: dict[str, Any], rows: Float64, queries: Float64, q: Float64) -> Float64:
    learnt = fit(
        problem["method"], rows, trak_q=q, space=problem["space"], damping=problem["damping"], rank=problem["rank"]
    )
    return learnt.scores(queries, rows, trak_q=q)


def close(left: Float64, right: Float64, tolerance: float = 2e-4) -> bool:
    return bool((np.abs(left - right) <= tolerance * np.abs(right).max(axis=1, keepdims=True) + 1e-300).all())


@settings(max_examples=150)
@given(problems())
def test_scores_are_finite_and_zero_rows_score_zero(problem: dict[str, Any]) -> None:
    found = scores(problem, problem["rows"], problem["queries"], problem["q"])
    assert np.isfinite(found).all()
    assert (found[:, ~problem["rows"].any(axis=1)] == 0).all()


@settings(max_examples=100)
@given(problems())
def test_the_order_of_rows_means_nothing_to_a_dense_fit(problem: dict[str, Any]) -> None:
    problem["rank"] = None
    rows, queries, q = problem["rows"], problem["queries"], problem["q"]
    order = problem["rng"].permutation(len(rows))
    assert close(scores(problem, rows[order], queries, q[order]), scores(problem, rows, queries, q)[:, order])


@settings(max_examples=100)
@given(problems())
def test_scores_are_linear_in_the_query_or_see_its_direction_only(problem: dict[str, Any]) -> None:
    rows, queries, q = problem["rows"], problem["queries"], problem["q"]
    plain, scaled = scores(problem, rows, queries, q), scores(problem, rows, 7.5 * queries, q)
    assert close(scaled, plain * (1.0 if problem["method"] in {"trackstar", "less"} else 7.5), 1e-9)


@settings(max_examples=100)
@given(problems())
def test_a_row_is_a_proponent_of_itself(problem: dict[str, Any]) -> None:
    """A is positive definite, so <A g, g> > 0; a cosine of a row with itself is 1."""
    rows, q = problem["rows"], problem["q"]
    own = np.diag(scores(problem, rows, rows, q))
    alive = rows.any(axis=1)
    assert (own[alive] > 0).all()
    if problem["method"] in {"trackstar", "less"}:
        np.testing.assert_allclose(own[alive], 1, rtol=1e-5)


@settings(max_examples=100)
@given(problems(), st.lists(st.integers(0, 40), max_size=5), st.integers(0, 40))
def test_cuts_and_stops_change_no_bit(problem: dict[str, Any], cuts: list[int], stop: int) -> None:
    unit, scales = scale_rows(problem["rows"])
    block = ArrayBlock(unit, scales, problem["q"])
    options = {"damping": problem["damping"], "rank": problem["rank"]}
    plan = plan_fit(problem["method"], problem["space"], len(unit), **options)

    def run(edges: list[int], stopped_at: int | None) -> dict[str, npt.NDArray[Any]]:
        job, more = FitJob(plan), bool(plan.stages)
        while more:
            for start, end in itertools.pairwise(edges):
                if start == stopped_at:
                    job = FitJob.restore(plan, {name: values.copy() for name, values in job.state().items()})
                job.update(ArrayBlock(block.rows[start:end], block.scales[start:end], block.trak_q[start:end]))
            more = job.end_pass()
        return job.finish().arrays()

    count = len(unit)
    edges = sorted({0, count, *(min(cut, count) for cut in (*cuts, stop))})
    whole, pieces = run([0, count], None), run(edges, min(stop, count))
    assert whole.keys() == pieces.keys()
    for name, values in whole.items():
        np.testing.assert_array_equal(values, pieces[name])
