"""Every method on real gradients (two epochs of an MLP on digits) against its formula in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.golden.oracle_scores import BLOCKS
from tests.unit import fit_judge as judge

from covector.attribution import Fit, fit, score
from covector.attribution.checkpoint_fit import CheckpointFit
from covector.attribution.rows import ArrayBlock
from covector.attribution.scoring import RowFacts, norms, split_scale
from covector.errors import InvalidInput
from covector.types import GradientKind, Gradients, Space

Float64 = npt.NDArray[np.float64]
TOLERANCE = 1e-5


class Problem:
    """Two checkpoints of 240 rows and 20 queries, 64 coordinates in 4 layers."""

    def __init__(self, path: Path) -> None:
        arrays = np.load(path)
        self.rows = arrays["rows"].astype(np.float64)
        self.queries = arrays["queries"].astype(np.float64)
        self.q = arrays["trak_q"].astype(np.float64)
        self.space = Space(dim=self.rows.shape[2], blocks=BLOCKS)

    def named(self, values: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        return {"early": values[0], "late": values[1]}


@pytest.fixture(scope="module")
def problem(repository: Path) -> Problem:
    return Problem(repository / "tests/golden/oracles/problem.npz")


def assert_close(ours: Float64, theirs: Float64) -> None:
    """To 1e-5 of each query's largest score: near zero a score has no relative error to speak of."""
    assert np.isfinite(ours).all()
    assert (np.abs(ours - theirs) <= TOLERANCE * np.abs(theirs).max(axis=1, keepdims=True)).all()


Judge = Callable[[Problem], Float64]

METHODS: dict[str, tuple[dict[str, Any], Judge]] = {
    "trak": ({}, lambda p: judge.trak(p.queries[1], p.rows[1], p.q[1])),
    "influence": ({}, lambda p: judge.influence(p.queries[1], p.rows[1])),
    "datainf": ({}, lambda p: judge.datainf(p.queries[1], p.rows[1], BLOCKS)),
    "trackstar": ({}, lambda p: judge.trackstar(p.queries[1], p.rows[1])),
    "less": ({}, lambda p: judge.cosine(p.queries[1], p.rows[1])),
}
DAMPINGS = [("trak", 0.0), ("trak", 0.1), ("influence", 0.001), ("influence", 100.0), ("datainf", 1.0)]


def learn(problem: Problem, method: str, **options: Any) -> Float64:
    found = fit(method, problem.rows[1], trak_q=problem.q[1], space=problem.space, **options)
    return found.scores(problem.queries[1], problem.rows[1], trak_q=problem.q[1])


@pytest.mark.parametrize("method", METHODS)
def test_a_dense_fit_has_its_formula(method: str, problem: Problem) -> None:
    options, formula = METHODS[method]
    assert_close(learn(problem, method, **options), formula(problem))


@pytest.mark.parametrize("method", ["trak", "influence", "trackstar", "datainf"])
def test_a_low_rank_fit_of_full_rank_is_the_dense_one(method: str, problem: Problem) -> None:
    assert_close(learn(problem, method, rank=64 if method != "datainf" else 40), METHODS[method][1](problem))


@pytest.mark.parametrize(("method", "damping"), DAMPINGS)
def test_other_dampings(method: str, damping: float, problem: Problem) -> None:
    formulas: dict[str, Judge] = {
        "trak": lambda p: judge.trak(p.queries[1], p.rows[1], p.q[1], damping),
        "influence": lambda p: judge.influence(p.queries[1], p.rows[1], damping),
        "datainf": lambda p: judge.datainf(p.queries[1], p.rows[1], BLOCKS, damping),
    }
    assert_close(learn(problem, method, damping=damping), formulas[method](problem))


def test_the_mean_nonzero_eigenvalue_where_rows_are_few(problem: Problem) -> None:
    few = problem.rows[1][:30]
    assert_close(fit("influence", few).scores(problem.queries[1], few), judge.influence(problem.queries[1], few))
    assert_close(
        fit("influence", few, rank=30).scores(problem.queries[1], few), judge.influence(problem.queries[1], few)
    )


def test_layers_apart(problem: Problem) -> None:
    parts = [
        judge.influence(problem.queries[1][:, b.start : b.stop], problem.rows[1][:, b.start : b.stop]) for b in BLOCKS
    ]
    assert_close(learn(problem, "influence", by_layer=True), np.sum(parts, axis=0))
    assert_close(learn(problem, "influence", by_layer=True, rank=40), np.sum(parts, axis=0))


def test_trackstar_mixes_in_the_task(problem: Problem) -> None:
    task = problem.queries[0]
    for rank in (None, 64):
        for share in (None, 0.3):
            ours = learn(problem, "trackstar", task_gradients=task, task_share=share, rank=rank)
            assert_close(ours, judge.trackstar(problem.queries[1], problem.rows[1], task, share or 0.9))


def test_rows_of_the_task_count_among_the_few(problem: Problem) -> None:
    """30 rows and 20 of the task: 50 eigenvalues of 64 can be above zero."""
    rows, task = problem.rows[1][:30], problem.queries[0]
    ours = fit("trackstar", rows, task_gradients=task).scores(problem.queries[1], rows)
    assert_close(ours, judge.trackstar(problem.queries[1], rows, task))


def test_unit_rows_count_by_their_direction(problem: Problem) -> None:
    queries, rows = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (problem.queries[1], problem.rows[1]))
    assert_close(learn(problem, "influence", unit_rows=True), judge.influence(queries, rows))
    assert_close(learn(problem, "trak", unit_rows=True), judge.trak(queries, rows, problem.q[1]))


# -- several checkpoints -----------------------------------------------------------------------------------------------


def learn_both(problem: Problem, method: str, etas: dict[str, float] | None = None) -> Float64:
    rows, queries, q = (problem.named(values) for values in (problem.rows, problem.queries, problem.q))
    found = fit(method, rows, trak_q=q, etas=etas, space=problem.space)
    return found.scores(queries, rows, trak_q=q)


def test_trak_is_a_mean_of_scores_times_a_mean_of_q(problem: Problem) -> None:
    ones = np.ones(len(problem.q[0]))
    parts = [judge.trak(problem.queries[c], problem.rows[c], ones) for c in range(2)]
    expected = np.mean(parts, axis=0) * problem.q.mean(axis=0)
    assert_close(learn_both(problem, "trak"), expected)
    assert_close(learn_both(problem, "trak", {"early": 5.0, "late": 1.0}), expected)


def test_other_methods_weigh_checkpoints_by_eta(problem: Problem) -> None:
    parts = [judge.influence(problem.queries[c], problem.rows[c]) for c in range(2)]
    assert_close(learn_both(problem, "influence"), parts[0] + parts[1])
    assert_close(learn_both(problem, "influence", {"early": 2.0, "late": 0.5}), 2 * parts[0] + 0.5 * parts[1])


def test_less_weighs_by_the_share_of_eta(problem: Problem) -> None:
    expected = judge.less(list(problem.queries), list(problem.rows), [0.3, 0.1])
    assert_close(learn_both(problem, "less", {"early": 0.3, "late": 0.1}), expected)


def test_tracin_and_cosine(problem: Problem) -> None:
    for c in range(2):
        assert_close(
            score(problem.queries[c], problem.rows[c], scorer="tracin"), problem.queries[c] @ problem.rows[c].T
        )
        assert_close(
            score(problem.queries[c], problem.rows[c], scorer="less"), judge.cosine(problem.queries[c], problem.rows[c])
        )


# -- what is shared with the server ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["trak", "influence", "datainf", "trackstar", "less"])
def test_the_scorer_of_a_fit_says_the_same_on_stored_rows(method: str, problem: Problem) -> None:
    found = fit(method, problem.rows[1], trak_q=problem.q[1], space=problem.space)
    part = next(iter(found.parts.values()))
    unit, scales = split_scale(problem.rows[1])
    block = ArrayBlock(unit.astype(np.float16), scales.astype(np.float32), problem.q[1].astype(np.float32))
    prepared = part.scorer().prepare(problem.queries[1])
    ours = (prepared @ block.rows.astype(np.float64).T) * part.row_factors(block)
    stored = block.rows.astype(np.float64) * block.scales[:, None]
    expected = found.scores(problem.queries[1], stored, trak_q=block.trak_q)
    assert_close(ours, expected)


@pytest.mark.parametrize(("method", "unit_rows"), [
    ("trak", False), ("trak", True), ("influence", False), ("influence", True),
    ("datainf", False), ("trackstar", False), ("less", False),
])  # fmt: skip
def test_factors_follow_from_what_a_scan_knows_of_rows(method: str, unit_rows: bool, problem: Problem) -> None:
    """Norms, scales, Q and row ids of rows in any order; weights that need the rows themselves come from a column."""
    unit, scales = split_scale(problem.rows[1])
    scales[4] = 0
    part = fit(method, problem.rows[1], trak_q=problem.q[1], space=problem.space, unit_rows=unit_rows).parts[""]
    stored = part.row_factors(ArrayBlock(unit, scales, problem.q[1]))
    ids = np.array([7, 4, 239, 0])
    facts = RowFacts(norms(unit[ids]), scales[ids], problem.q[1][ids].astype(np.float32), ids)
    if method == "trackstar":
        with pytest.raises(InvalidInput, match="trackstar needs the weights of its rows; make them by row_factors"):
            part.scorer().row_factor(facts)
    column = {"trackstar": lambda row_ids: stored[row_ids], "trak": lambda row_ids: problem.q[1][row_ids]}.get(method)
    np.testing.assert_allclose(part.scorer(column).row_factor(facts), stored[ids], rtol=1e-6)
    assert stored[4] == 0


@pytest.mark.parametrize("rank", [None, 20])
@pytest.mark.parametrize("by_layer", [False, True])
def test_whitened_products_are_products_with_a(rank: int | None, by_layer: bool, problem: Problem) -> None:
    found = fit("influence", problem.rows[1], rank=rank, by_layer=by_layer, space=problem.space)
    a = next(iter(found.parts.values())).preconditioner
    expected = found.scores(problem.queries[1], problem.rows[1])
    assert_close(a.whiten(problem.queries[1]) @ a.whiten(problem.rows[1]).T, expected)
    narrow = a.whiten(problem.queries[1].astype(np.float32)) @ a.whiten(problem.rows[1].astype(np.float32)).T
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("options", [{}, {"rank": 20}, {"by_layer": True}, {"by_layer": True, "rank": 10}])
def test_a_fit_comes_back_from_its_arrays(options: dict[str, Any], problem: Problem) -> None:
    found = fit("influence", problem.rows[1], space=problem.space, **options)
    part = next(iter(found.parts.values()))
    again = CheckpointFit.of(part.facts, part.arrays())
    assert again.facts == part.facts
    assert again.plan == part.plan
    restored = Fit(method=found.method, parts={"": again}, etas=found.etas, origins=found.origins)
    assert_close(
        restored.scores(problem.queries[1], problem.rows[1]), found.scores(problem.queries[1], problem.rows[1])
    )


def test_gradients_bring_their_layers_q_and_sign(problem: Problem) -> None:
    margin, loss = GradientKind(function="margin"), GradientKind(function="loss")
    q = problem.q[1].astype(np.float32)
    rows = Gradients(problem.rows[1].astype(np.float32), problem.space, margin, trak_q=q)
    queries = Gradients(problem.queries[1].astype(np.float32), problem.space, margin)
    assert_close(fit("trak", rows).scores(queries, rows), METHODS["trak"][1](problem))
    assert_close(fit("datainf", rows).scores(queries, rows), METHODS["datainf"][1](problem))
    turned = Gradients(queries.values, problem.space, loss)
    assert_close(fit("influence", rows).scores(turned, rows), -METHODS["influence"][1](problem))
