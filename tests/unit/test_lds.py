"""The linear datamodelling score against its definition, one subset and one query at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from covector.attribution import agreement, lds
from covector.attribution.evaluation import Ranking
from covector.errors import InvalidInput

Float64 = npt.NDArray[np.float64]


def plain_ranks(values: list[float]) -> list[float]:
    """Equal values share the mean of their places."""
    return [1 + sum(b < a for b in values) + (sum(b == a for b in values) - 1) / 2 for a in values]


def plain_spearman(left: list[float], right: list[float]) -> float:
    a, b = np.array(plain_ranks(left)), np.array(plain_ranks(right))
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / np.sqrt((a @ a) * (b @ b))) if a.any() and b.any() else 0.0


def plain_lds(scores: Float64, masks: Float64, outputs: Float64) -> list[float]:
    return [
        plain_spearman([float(mask @ query) for mask in masks], outputs[:, number].tolist())
        for number, query in enumerate(scores)
    ]


def problem(noise: float = 1.0, subsets: int = 40) -> tuple[Float64, Float64, Float64]:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((6, 50))
    masks = (rng.random((subsets, 50)) < 0.5).astype(np.float64)
    outputs = masks @ scores.T + noise * rng.standard_normal((subsets, 6)) * 5
    return scores, masks, outputs


def test_it_is_the_mean_of_spearmans() -> None:
    scores, masks, outputs = problem()
    found = lds(scores, masks, outputs)
    np.testing.assert_allclose(found.by_query, plain_lds(scores, masks, outputs), rtol=1e-12)
    assert found.mean == pytest.approx(np.mean(found.by_query))
    assert found.subset_count == 40
    assert found.low < found.mean < found.high


def test_ties_share_their_ranks() -> None:
    scores, masks, outputs = problem()
    scores, outputs = np.round(scores), np.round(outputs / 8)
    assert len(np.unique(outputs[:, 0])) < 10
    np.testing.assert_allclose(lds(scores, masks, outputs).by_query, plain_lds(scores, masks, outputs), rtol=1e-12)


def test_weighted_ranks_are_ranks_of_repeated_values() -> None:
    rng = np.random.default_rng(2)
    values = rng.integers(0, 6, (12, 3)).astype(np.float64)
    weights = rng.integers(0, 4, 12)
    weighted = Ranking.of(values).ranks(weights.astype(np.float64))
    repeated = np.repeat(np.arange(12), weights)
    for column in range(3):
        expected = plain_ranks(values[repeated, column].tolist())
        np.testing.assert_allclose(weighted[repeated, column], expected)


def test_a_perfect_predictor_scores_one_and_its_opposite_minus_one() -> None:
    scores, masks, outputs = problem(noise=0.0)
    found = lds(scores, masks, outputs)
    assert (found.mean, found.low, found.high) == pytest.approx((1, 1, 1))
    assert lds(-scores, masks, outputs).mean == pytest.approx(-1)


def test_the_interval_covers_and_narrows() -> None:
    """Over many draws of subsets, the 90% interval holds the value of very many subsets about nine times in ten."""
    scores, _, _ = problem()
    truth = lds(*problem(subsets=4000), resamples=0).mean
    covered, widths = 0, []
    for seed in range(60):
        rng = np.random.default_rng([1, seed])
        masks = (rng.random((60, 50)) < 0.5).astype(np.float64)
        outputs = masks @ scores.T + rng.standard_normal((60, 6)) * 5
        found = lds(scores, masks, outputs, confidence=0.9, resamples=200)
        covered += found.low <= truth <= found.high
        widths.append(found.high - found.low)
    assert 44 <= covered <= 60
    many = lds(*problem(subsets=960), confidence=0.9, resamples=200)
    assert many.high - many.low < np.mean(widths) / 2.5


def test_the_interval_holds_the_score_where_it_is_near_one() -> None:
    """Resampled correlations lie below the score there; the interval must not."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        scores = rng.standard_normal((6, 50))
        masks = (rng.random((40, 50)) < 0.5).astype(np.float64)
        found = lds(scores, masks, masks @ scores.T + rng.standard_normal((40, 6)), resamples=200)
        assert found.mean > 0.9
        assert found.low < found.mean < found.high <= 1


def test_the_interval_is_the_same_in_every_run() -> None:
    first, second = lds(*problem(), resamples=50), lds(*problem(), resamples=50)
    assert (first.low, first.high) == (second.low, second.high)
    assert lds(*problem(), resamples=50, seed=1).low != first.low


def test_constant_outputs_count_as_zero() -> None:
    scores, masks, outputs = problem()
    outputs[:, 2] = 7.0
    assert lds(scores, masks, outputs).by_query[2] == 0
    scores[3] = 0
    found = lds(scores, masks, outputs)
    assert found.by_query[3] == 0
    assert np.isfinite([found.mean, found.low, found.high]).all()


@pytest.mark.parametrize(("change", "message"), [
    ({"masks": np.ones((40, 9))}, r"scores \(6, 50\), masks \(40, 9\) and outputs \(40, 6\) do not fit"),
    ({"outputs": np.ones((39, 6))}, "do not fit"),
    ({"outputs": np.ones(40)}, r"outputs \[subsets, queries\]"),
    ({"masks": np.ones((2, 50)), "outputs": np.ones((2, 6))}, "2 subsets and 6 queries; at least 3 and 1 are needed"),
    ({"scores": np.full((6, 50), np.nan)}, r"scores hold NaN or infinity, first at \(0, 0\)"),
    ({"outputs": np.full((40, 6), np.inf)}, "outputs hold NaN or infinity"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    given = dict(zip(("scores", "masks", "outputs"), problem(), strict=True)) | change
    with pytest.raises(InvalidInput, match=message):
        lds(**given)


def test_agreement_of_both_ends() -> None:
    reference = np.array([[5.0, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5]])
    assert agreement(reference, reference, k=2) == (1.0, 1.0)
    assert agreement(-reference, reference, k=3) == (0.0, 0.0)
    changed = np.array([[5.0, 2, 3, 4, 1, 0], [0, 1, 2, 3, 4, 5]])
    assert agreement(changed, reference, k=2) == (0.75, 1.0)
    with pytest.raises(InvalidInput, match="k is 7; there are 6 rows"):
        agreement(reference, reference, k=7)
    with pytest.raises(InvalidInput, match=r"scores have shape \(2, 5\), the reference \(2, 6\)"):
        agreement(reference[:, 1:], reference)
    with pytest.raises(InvalidInput, match="the reference hold NaN"):
        agreement(reference, reference * np.nan, k=1)
