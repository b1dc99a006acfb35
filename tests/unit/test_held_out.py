"""A damping chosen by rows held out, against the same in plain float64: a normal law's log-likelihood, row by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fit_rig import FitRig
from tests.index_rig import decaying
from tests.unit.fit_judge import Float64, mean_eigenvalue
from tests.unit.test_fit_jobs import part_of, restored, run, stored_rows

from covector.attribution import fit
from covector.attribution.held_out import CANDIDATES, HeldRows
from covector.attribution.learning import FitJob
from covector.attribution.planning import plan_fit
from covector.errors import InvalidInput
from covector.types import Block, Space
from covector_server.fit.spec import FitSpec

DIM, COUNT = 24, 300
ROWS = decaying(COUNT, DIM).astype(np.float64)
Q = np.random.default_rng(1).uniform(0.05, 1, COUNT)
SPACE = Space(dim=DIM, blocks=(Block("a", 0, 10, 50), Block("b", 10, DIM, 90)))


def plain_score(rows: Float64, damping: float, spans: Sequence[tuple[int, int]] = ((0, DIM),)) -> float:
    """Every tenth row is held out; the others make the map."""
    held = rows[::10]
    rest = np.delete(rows, np.arange(0, len(rows), 10), axis=0)
    damped = np.zeros((DIM, DIM))
    for start, stop in spans:
        moments = rest[:, start:stop].T @ rest[:, start:stop] / len(rest)
        unit = mean_eigenvalue(moments, len(rest))
        damped[start:stop, start:stop] = moments + damping * unit * np.eye(stop - start)
    likelihoods = [-(np.linalg.slogdet(damped)[1] + row @ np.linalg.solve(damped, row)) / 2 for row in held]
    return float(np.mean(likelihoods))


@pytest.mark.parametrize(("method", "options", "rows", "spans"), [
    ("influence", {}, ROWS, ((0, DIM),)),
    ("trak", {"trak_q": Q}, ROWS, ((0, DIM),)),
    ("trackstar", {}, ROWS * 1e-9, ((0, DIM),)),
    ("influence", {"by_layer": True, "space": SPACE}, ROWS, ((0, 10), (10, DIM))),
    ("influence", {"unit_rows": True}, ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True), ((0, DIM),)),
    ("influence", {"rank": DIM}, ROWS, ((0, DIM),)),
])  # fmt: skip
def test_it_is_the_likelihood_of_the_rows_held_out(
    method: str, options: dict[str, Any], rows: Float64, spans: Sequence[tuple[int, int]]
) -> None:
    learnt = fit(method, rows, damping="held_out", **options)
    expected = [plain_score(rows, damping, spans) for damping in CANDIDATES]
    assert [damping for damping, _ in learnt.damping_scores] == list(CANDIDATES)
    np.testing.assert_allclose([score for _, score in learnt.damping_scores], expected, rtol=1e-5)
    assert learnt.damping == CANDIDATES[int(np.argmax(expected))]
    given = fit(method, rows, damping=learnt.damping, **options)
    asked = rows[:4]
    q = {"trak_q": Q} if method == "trak" else {}
    expected_scores = given.scores(asked, rows, **q)
    reach = 1e-5 * np.abs(expected_scores).max()
    np.testing.assert_allclose(learnt.scores(asked, rows, **q), expected_scores, rtol=0, atol=reach)


def test_the_choice_follows_the_rows() -> None:
    """Few rows for many coordinates ask for more damping than many rows do."""
    rng = np.random.default_rng(0)
    candidates = [0.01, 0.1, 1.0, 10.0]
    few = fit("influence", rng.standard_normal((60, 200)), damping=candidates)
    many = fit("influence", rng.standard_normal((6000, 20)), damping=candidates)
    assert few.damping > many.damping


def test_moments_that_are_known_well_need_little_damping() -> None:
    rows = np.random.default_rng(3).standard_normal((20_000, 6)) * np.geomspace(1, 0.01, 6)
    found = fit("influence", rows, damping=[0.001, 0.1, 1.0, 100.0]).damping_scores
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


def test_one_heavy_row_does_not_choose() -> None:
    """The rows held out are judged by likelihood, in which a row counts by its square, not by its fourth power."""
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((1000, 40)) * np.geomspace(1, 0.05, 40) * rng.lognormal(0, 1, (1000, 1))
    rows[10] *= 20
    assert fit("influence", rows, damping="held_out").damping <= 1.0


@pytest.mark.parametrize("options", [{}, {"rank": 12}, {"by_layer": True}])
def test_chunks_and_stops_change_no_bit(options: dict[str, Any]) -> None:
    block = stored_rows(200)
    space = Space(dim=48, blocks=(Block("a", 0, 20, 100), Block("b", 20, 48, 400)))
    plan = plan_fit("influence", space, 200, damping="held_out", **options)
    straight = run(FitJob(plan), block)
    assert run(FitJob(plan), block, [1, 7, 100]).facts == straight.facts
    job, more = FitJob(plan), True
    while more:
        for start in range(0, 200, 37):
            job = restored(plan, job)
            job.update(part_of(block, start, min(start + 37, 200)))
        more = job.end_pass()
    assert job.finish().facts == straight.facts
    assert len(straight.damping_scores) == len(CANDIDATES)


def test_never_nan() -> None:
    """Rows held out that are all zero, a layer that is, and rows of which most are."""
    rows = ROWS.copy()
    rows[::20] = 0
    rows[:, :10] = 0
    for given in (rows, np.where(np.arange(COUNT)[:, None] % 10 == 0, 0.0, rows)):
        for options in ({}, {"by_layer": True, "space": SPACE}, {"rank": 4}):
            learnt = fit("influence", given, damping="held_out", **options)
            assert np.isfinite([score for _, score in learnt.damping_scores]).all()
            assert np.isfinite(learnt.scores(ROWS[:3], given)).all()
    alone = np.where(np.arange(COUNT)[:, None] % 10 == 0, rows, 0.0)
    with pytest.raises(InvalidInput, match="gradients are zero"):
        fit("influence", alone, damping="held_out")


def test_rows_held_out_are_bounded_and_spread() -> None:
    held = HeldRows(1 << 20, 100_000, np.dtype(np.float32))
    assert held._rows.nbytes <= 256 << 20
    held = HeldRows(4, 100_000, np.dtype(np.float32))
    block = stored_rows(10)
    for first in range(0, 100_000, 10):
        held.take(type(block)(block.rows[:, :4], block.scales, block.trak_q), first)
    assert 900 <= held.count <= 1024
    assert held._stride * (held.count - 1) > 99_000


def test_one_candidate_is_no_choice() -> None:
    learnt = fit("influence", ROWS[:20], damping=[0.5])
    assert (learnt.damping, learnt.damping_scores) == (0.5, ())
    with pytest.raises(InvalidInput, match="of 20 rows that is too few; write at least 50, or give one damping"):
        fit("influence", ROWS[:20], damping="held_out")


# -- on the server ----------------------------------------------------------------------------------------------------


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[FitRig]:
    made = FitRig(tmp_path / "store", DIM)
    made.write(range(COUNT), ROWS.astype(np.float32), trak_q=Q.astype(np.float32))
    yield made
    made.close()


def test_a_served_fit_has_what_arrays_choose(rig: FitRig) -> None:
    given = [0.01, 0.1, 1.0]
    record = rig.fit_record(rig.fitted("trak", damping=given))
    expected = fit("trak", rig.stored(range(COUNT)), trak_q=Q, damping=given)
    assert record.damping == expected.damping
    assert [damping for damping, _ in record.damping_scores] == given
    np.testing.assert_allclose([score for _, score in record.damping_scores],
                               [score for _, score in expected.damping_scores], rtol=1e-5)  # fmt: skip
    found = rig.scored(ROWS[:3], "trak")
    scores = expected.scores(ROWS[:3].astype(np.float32), rig.stored(range(COUNT)), trak_q=Q)
    np.testing.assert_allclose(np.stack([found[key] for key in range(COUNT)], 1), scores, rtol=1e-3, atol=1e-6)


def test_the_first_checkpoint_chooses_for_all(rig: FitRig) -> None:
    rig.write(range(COUNT), decaying(COUNT, DIM, seed=9) * 3, checkpoint="two", trak_q=Q.astype(np.float32))
    given = (0.01, 0.1, 1.0, 10.0)
    record = rig.fit_record(rig.fitted("influence", damping=given, checkpoints=["one", "two"]))
    both = {name: rig.stored(range(COUNT), name) for name in ("one", "two")}
    expected = fit("influence", both, damping=given)
    alone = fit("influence", both["one"], damping=given)
    assert record.damping == expected.damping == alone.damping
    assert record.damping_scores == [pytest.approx(list(one), rel=1e-5) for one in alone.damping_scores]
    assert {part.damping for part in expected.parts.values()} == {alone.damping}


def test_no_single_row_is_kept_with_the_fit(rig: FitRig) -> None:
    record = rig.fit_record(rig.fitted("influence", damping=CANDIDATES))
    arrays = {path.name for path in (rig.collection.directory / "fits" / record.stored[0].directory).rglob("*")}
    assert not any("held" in name or "waiting" in name for name in arrays)
    rig.write(range(COUNT, COUNT + 50), decaying(50, DIM, seed=4))
    again = rig.fit_record(rig.fitted("influence", damping=CANDIDATES))
    assert again.covered[0].learnt_count == COUNT + 50
    assert again.damping_scores != record.damping_scores


def test_what_cannot_be_chosen_is_refused_before_it_starts(rig: FitRig) -> None:
    rig.write(range(40), ROWS[:40].astype(np.float32), checkpoint="few")
    for spec, message in (
        (FitSpec(method="influence", checkpoints=["few"], damping=CANDIDATES), "of 40 rows that is too few"),
        (FitSpec(method="datainf", checkpoints=["one"], damping=CANDIDATES, by_layer=False), "one damping"),
        (FitSpec(method="less", checkpoints=["one"], damping=CANDIDATES), "damps nothing"),
    ):
        with pytest.raises(InvalidInput, match=message):
            rig.fitter.start("c", spec)
