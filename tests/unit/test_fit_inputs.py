"""What cannot be fitted is refused, and the message says what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from covector.attribution import Fit, fit, method_names
from covector.attribution.learning import FitJob
from covector.attribution.planning import plan_fit
from covector.attribution.rows import ArrayBlock
from covector.errors import InvalidInput, LimitExceeded, NotFound
from covector.types import Block, GradientKind, Gradients, Space

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((50, 12))
QUERIES = RNG.standard_normal((3, 12))
Q = RNG.random(50)
SPACE = Space(dim=12, blocks=(Block("a", 0, 5, 50), Block("b", 5, 12, 90)))


@pytest.mark.parametrize(("options", "message"), [
    ({"rank": 51}, "rank 51 needs at least 51 rows, and there are 50; add rows, or ask for rank=50"),
    ({"rank": 13}, "rank 13 is more than the 12 coordinates; ask for rank=12"),
    ({"rank": 0}, "rank is 0; it must be at least 1"),
    ({"damping": -1.0}, "damping is -1.0; it is a number from 0 on, in units of the mean nonzero eigenvalue"),
    ({"damping": float("nan")}, "damping is nan"),
    ({"damping": []}, "no candidates"),
    ({"damping": "heldout"}, "damping is 'heldout'; it is a number, several, or 'held_out'"),
    ({"damping": [0.0, 1.0]}, "dampings to choose among are above 0; leave 0 out"),
    ({"damping": 0.0, "rank": 5}, "a low-rank fit divides by its damping"),
    ({"range_passes": 0}, "at least one pass"),
    ({"task_gradients": QUERIES}, "influence takes no task_gradients; trackstar does"),
    ({"task_share": 0.5}, "no task_gradients are given"),
    ({"by_layer": True}, r"the space has no blocks.*CountSketch\(blocks='layer'\)"),
    ({"space": Space(dim=9)}, "rows have dim 12, the space has 9"),
    ({"etas": {"a": 1.0}}, "etas are given for 'a', the fit is over ''"),
])  # fmt: skip
def test_what_a_fit_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        fit("influence", ROWS, **options)


@pytest.mark.parametrize(("method", "options", "message"), [
    ("datainf", {"damping": 0.0, "by_layer": False}, "datainf divides by its damping"),
    ("datainf", {"damping": [0.1, 1.0], "by_layer": False}, "so a fit has one damping; give one"),
    ("less", {"damping": "held_out"}, "less damps nothing, so there is no damping to choose"),
    ("trackstar", {"damping": "held_out", "task_gradients": QUERIES}, "with task_gradients the moments are not those"),
    ("datainf", {"unit_rows": True, "by_layer": False}, "unit_rows=True has no meaning for datainf"),
    ("trackstar", {"task_gradients": QUERIES, "task_share": 1.0}, "task_share is 1.0; it must lie between 0 and 1"),
    ("trackstar", {"task_gradients": QUERIES[:, :5]}, r"rows have shape \(3, 5\); this fit is over dim 12"),
    ("trak", {}, r"trak needs trak_q .* of every row; 50 of 50 have none, the first at position 0"),
    ("trak", {"trak_q": np.where(np.arange(50) == 7, np.nan, Q)}, "1 of 50 have none, the first at position 7"),
    ("trak", {"trak_q": Q[:4]}, r"trak_q must be float\[50\], one a row, not of shape \(4,\)"),
    ("cosine", {}, "cosine learns nothing: score with it directly"),
])  # fmt: skip
def test_what_a_method_refuses(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        fit(method, ROWS, **options)


def test_an_unknown_method_names_the_near_ones() -> None:
    with pytest.raises(NotFound, match="no method 'trakk' to fit; did you mean 'trak'"):
        fit("trakk", ROWS)
    assert method_names() == ["trak", "influence", "datainf", "trackstar", "less"]


def test_rows_that_cannot_be_summed_are_refused() -> None:
    with pytest.raises(InvalidInput, match="rows: row 3 holds NaN or infinity"):
        fit("influence", np.where(np.arange(50)[:, None] == 3, np.inf, ROWS))
    with pytest.raises(InvalidInput, match="all gradients are zero"):
        fit("influence", np.zeros((50, 12)))
    with pytest.raises(InvalidInput, match="there are no rows to fit"):
        fit("influence", np.zeros((0, 12)))
    with pytest.raises(InvalidInput, match=r"rows must be float\[n, dim\], not of shape \(12,\)"):
        fit("influence", ROWS[0])
    with pytest.raises(InvalidInput, match="there are no checkpoints"):
        fit("influence", {})


def test_a_stored_row_that_is_not_finite_never_reaches_a_score() -> None:
    """Stored rows are checked when they come; should one be bad all the same, the fit fails."""
    for options in ({}, {"rank": 4}):
        rows = ROWS.astype(np.float16)
        rows[3, 4] = np.nan
        job = FitJob(plan_fit("influence", Space(dim=12), 50, **options))  # type: ignore[arg-type]
        job.update(ArrayBlock(rows, np.ones(50), Q))
        with pytest.raises(InvalidInput, match="not finite"):
            _ = job.end_pass() or job.finish()


def test_singular_moments_without_damping() -> None:
    with pytest.raises(
        InvalidInput, match="without damping 12 coordinates need at least as many rows, and there are 9"
    ):
        fit("trak", ROWS[:9], trak_q=Q[:9], damping=0)
    flat = ROWS.copy()
    flat[:, 3] = flat[:, 4]
    with pytest.raises(InvalidInput, match=r"the second moments of 'all' are singular.*give a damping above 0"):
        fit("trak", flat, trak_q=Q, damping=0)
    flat[:, 3] = 0
    with pytest.raises(InvalidInput, match="singular"):
        fit("trak", flat, trak_q=Q, damping=0)
    assert np.isfinite(fit("trak", flat, trak_q=Q).scores(QUERIES, flat, trak_q=Q)).all()


def test_a_layer_without_gradients_adds_nothing() -> None:
    rows, queries = ROWS.copy(), QUERIES.copy()
    rows[:, :5] = 0
    for method in ("influence", "datainf"):
        whole = fit(method, rows, by_layer=True, space=SPACE).scores(queries, rows)
        other = Space(dim=7, blocks=(Block("b", 0, 7, 90),))
        np.testing.assert_allclose(
            whole, fit(method, rows[:, 5:], space=other).scores(queries[:, 5:], rows[:, 5:]), rtol=1e-5
        )


def test_fewer_rows_came_than_the_rank() -> None:
    job = FitJob(plan_fit("influence", Space(dim=12), 50, rank=10))
    block = ArrayBlock(ROWS[:6], np.ones(6), Q[:6])
    job.update(block)
    job.end_pass()
    job.update(block)
    with pytest.raises(InvalidInput, match="6 rows came, fewer than the rank 10"):
        job.finish()


def test_datainf_without_blocks_is_told_to_take_all_for_one_layer() -> None:
    with pytest.raises(InvalidInput, match=r"datainf works layer by layer, but the space has no.*by_layer=False"):
        fit("datainf", ROWS)
    with pytest.raises(InvalidInput, match=r"by_layer=True, but the space has no blocks.*CountSketch"):
        fit("datainf", ROWS, by_layer=True)
    whole = fit("datainf", ROWS, by_layer=False)
    assert whole.notes == ("datainf works layer by layer; here all coordinates are one layer of 12 parameters",)
    one = Space(dim=12, blocks=(Block("all", 0, 12, 12),))
    np.testing.assert_array_equal(whole.scores(QUERIES, ROWS), fit("datainf", ROWS, space=one).scores(QUERIES, ROWS))
    assert fit("datainf", ROWS, space=SPACE).notes == ()


@pytest.mark.parametrize("blocks", [
    (Block("a", 0, 5, 50),), (Block("a", 0, 5, 50), Block("b", 6, 12, 90)), (Block("a", 0, 12, 0),),
])  # fmt: skip
def test_blocks_must_cover_the_space(blocks: tuple[Block, ...]) -> None:
    with pytest.raises(InvalidInput, match="do not lie end to end over its 12 coordinates"):
        fit("datainf", ROWS, space=Space(dim=12, blocks=blocks))


def test_memory_is_known_before_and_limited() -> None:
    space = Space(dim=8192)
    dense = plan_fit("influence", space, 100_000)
    assert dense.rank is None
    assert dense.memory_bytes > 8 * 8192**2
    lower = plan_fit("influence", space, 100_000, memory_bytes_max=dense.memory_bytes // 3)
    assert lower.rank == 1024
    assert lower.memory_bytes <= dense.memory_bytes // 3
    assert f"a dense fit would need {dense.memory_bytes >> 20} MiB" in lower.notes[0]
    with pytest.raises(LimitExceeded, match=r"needs \d+ MiB of memory, and may take 1; ask for a lower rank="):
        plan_fit("influence", space, 100_000, memory_bytes_max=1 << 20)
    with pytest.raises(LimitExceeded, match="ask for a lower rank="):
        plan_fit("influence", space, 100_000, rank=4000, memory_bytes_max=dense.memory_bytes // 3)


def test_wide_spaces_get_a_rank() -> None:
    plan = plan_fit("influence", Space(dim=1 << 20), 500)
    assert plan.rank == 500
    assert plan.memory_bytes < 24 << 30
    assert "past the 16384 of a dense fit" in plan.notes[0]
    assert plan_fit("influence", Space(dim=16_384), 500).rank is None


# -- scoring -----------------------------------------------------------------------------------------------------------


def test_scores_refuse_what_does_not_fit() -> None:
    learnt = fit("trak", ROWS, trak_q=Q)
    with pytest.raises(InvalidInput, match="50 of 50 have none"):
        learnt.scores(QUERIES, ROWS)
    with pytest.raises(InvalidInput, match="queries have dim 5, the fit has 12"):
        learnt.scores(QUERIES[:, :5], ROWS, trak_q=Q)
    with pytest.raises(InvalidInput, match="rows have dim 5, the fit has 12"):
        fit("influence", ROWS).scores(QUERIES, ROWS[:, :5])
    with pytest.raises(InvalidInput, match="queries: row 1 holds NaN"):
        learnt.scores(np.where(np.arange(3)[:, None] == 1, np.nan, QUERIES), ROWS, trak_q=Q)
    with pytest.raises(InvalidInput, match="queries are given for 'a', the fit is over ''"):
        learnt.scores({"a": QUERIES}, ROWS, trak_q=Q)


def two() -> Fit:
    return fit("influence", {"a": ROWS, "b": ROWS * 2})


def test_several_checkpoints_are_named() -> None:
    with pytest.raises(InvalidInput, match="queries: the fit is over 'a', 'b'; give a mapping of these"):
        two().scores(QUERIES, {"a": ROWS, "b": ROWS})
    with pytest.raises(InvalidInput, match="rows are given for 'a', the fit is over 'a', 'b'"):
        two().scores({"a": QUERIES, "b": QUERIES}, {"a": ROWS})
    with pytest.raises(InvalidInput, match="different numbers of queries and rows"):
        two().scores({"a": QUERIES, "b": QUERIES}, {"a": ROWS, "b": ROWS[:9]})


def test_a_fit_of_another_checkpoint_space_or_kind_is_refused() -> None:
    space, adam = Space(dim=12, architecture="mine"), GradientKind(correction="adam")

    def taken(values: Any, *, where: Space = space, kind: GradientKind = adam, digest: str = "1" * 64) -> Gradients:
        return Gradients(values.astype(np.float32), where, kind, digest)

    rows = taken(ROWS)
    learnt = fit("influence", rows)
    assert np.isfinite(learnt.scores(taken(QUERIES), rows)).all()
    with pytest.raises(InvalidInput, match=r"the queries are of another space.*architecture: mine here, other there"):
        learnt.scores(taken(QUERIES, where=Space(dim=12, architecture="other")), rows)
    with pytest.raises(InvalidInput, match="taken at other weights"):
        learnt.scores(taken(QUERIES, digest="2" * 64), rows)
    with pytest.raises(InvalidInput, match="these rows are of another space"):
        learnt.scores(taken(QUERIES), taken(ROWS, where=Space(dim=12)))
    with pytest.raises(InvalidInput, match="correction is adam of the rows, none of the query; influence accepts"):
        learnt.scores(taken(QUERIES, kind=GradientKind(correction="none")), rows)
    plain = taken(QUERIES, kind=GradientKind(correction="none"))
    assert np.isfinite(fit("less", rows).scores(plain, rows)).all()
    with pytest.raises(InvalidInput, match="less accepts, of rows and query: adam with none"):
        fit("less", rows).scores(taken(QUERIES), rows)


def test_damping_is_chosen_by_a_held_out_score() -> None:
    tried = []

    def held_out(candidate: Fit) -> float:
        tried.append(candidate.damping)
        return -abs(candidate.damping - 0.1)

    chosen = fit("influence", ROWS, damping=[1.0, 0.1, 10.0], held_out=held_out)
    assert tried == [1.0, 0.1, 10.0]
    assert chosen.damping == 0.1
    assert chosen.damping_unit == "mean nonzero eigenvalue"
    assert [damping for damping, _ in chosen.damping_scores] == tried
    np.testing.assert_allclose(chosen.scores(QUERIES, ROWS), fit("influence", ROWS, damping=0.1).scores(QUERIES, ROWS))
    assert fit("influence", ROWS, damping=[1.0, 0.1], held_out=lambda _: 0.5).damping == 1.0
    with pytest.raises(InvalidInput, match=r"held_out gave nan at damping 1\.0"):
        fit("influence", ROWS, damping=[1.0, 0.1], held_out=lambda _: float("nan"))
