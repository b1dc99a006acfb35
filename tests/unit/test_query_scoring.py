"""Scorers on two arrays, judged by their formulas one pair at a time."""

from __future__ import annotations

import numpy as np
import pytest

from covector.attribution import score, scorer_names
from covector.attribution.scoring import (
    check_kinds,
    check_weights,
    group_means,
    scorer_named,
    sign,
    split_scale,
    to_float32,
)
from covector.errors import InvalidInput, NotFound
from covector.types import Correction, GradientKind, Gradients, Space


def test_every_scorer_has_its_formula() -> None:
    rng = np.random.default_rng(0)
    queries, rows = rng.standard_normal((3, 7)), rng.standard_normal((5, 7))
    product = np.array([[sum(a * b for a, b in zip(q, g, strict=True)) for g in rows] for q in queries])
    sizes = np.array([[np.sqrt((q * q).sum() * (g * g).sum()) for g in rows] for q in queries])
    judges = {"dot": product, "tracin": product, "cosine": product / sizes, "less": product / sizes}
    assert set(judges) == set(scorer_names())
    for name, judge in judges.items():
        np.testing.assert_allclose(score(queries, rows, scorer=name), judge, rtol=0, atol=1e-13)


def test_one_query_may_come_without_its_axis() -> None:
    assert score([1.0, 2.0], [[3.0, 4.0]]).tolist() == [[11.0]]


@pytest.mark.parametrize("size", [1e-150, 1e-30, 1e30, 1e150])
def test_cosine_does_not_see_the_norm(size: float) -> None:
    rng = np.random.default_rng(1)
    queries, rows = rng.standard_normal((2, 9)), rng.standard_normal((4, 9))
    np.testing.assert_allclose(
        score(queries * size, rows / size, scorer="cosine"), score(queries, rows, scorer="cosine"), rtol=1e-12
    )


def test_zero_vectors_have_cosine_zero() -> None:
    assert score([[0.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [2.0, 0.0]], scorer="cosine").tolist() == [[0, 0], [0, 1]]


def test_margins_against_losses_turn_the_sign() -> None:
    loss, margin, unstated = GradientKind("loss"), GradientKind("margin"), GradientKind()
    assert [sign(loss, loss), sign(margin, margin), sign(loss, margin), sign(margin, loss)] == [1, 1, -1, -1]
    assert sign(unstated, margin) == sign(loss, unstated) == 1
    space, ones = Space(dim=2), np.ones((1, 2), dtype=np.float32)
    rows, queries = Gradients(ones, space, loss), Gradients(ones, space, margin)
    assert score(queries, rows).tolist() == [[-2.0]]


def test_an_unknown_scorer_names_the_near_ones() -> None:
    with pytest.raises(NotFound, match=r"no scorer 'cosin'; did you mean 'cosine'"):
        scorer_named("cosin")


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidInput, match="queries have dim 2, gradients 3"):
        score(np.ones((1, 2)), np.ones((1, 3)))
    with pytest.raises(InvalidInput, match="gradients: row 1 holds NaN"):
        score(np.ones((1, 2)), np.array([[1, 1], [np.nan, 1]]))
    with pytest.raises(InvalidInput, match=r"of shape \(1, 1, 2\)"):
        score(np.ones((1, 1, 2)), np.ones((1, 2)))


def test_gradients_of_other_origin_are_refused() -> None:
    ones = np.ones((1, 2), dtype=np.float32)
    rows = Gradients(ones, Space(dim=2, architecture="a"), checkpoint="1" * 64)
    with pytest.raises(InvalidInput, match="architecture: a here, b there"):
        score(Gradients(ones, Space(dim=2, architecture="b")), rows)
    with pytest.raises(InvalidInput, match=r"other weights \(222222222222...\) than the gradients \(111111111111...\)"):
        score(Gradients(ones, rows.space, checkpoint="2" * 64), rows)


@pytest.mark.parametrize(("rows", "query", "fits"), [
    (None, "adam", True), ("none", None, True), ("none", "none", True), ("adam", "adam", True),
    ("adam", "none", False), ("none", "adam", False),
])  # fmt: skip
def test_corrections_that_a_scorer_accepts(rows: Correction | None, query: Correction | None, fits: bool) -> None:
    kinds = GradientKind(correction=rows), GradientKind(correction=query)
    if fits:
        check_kinds(scorer_named("dot"), *kinds)
    else:
        with pytest.raises(InvalidInput, match=f"correction is {rows} of the rows, {query} of the query; dot accepts"):
            check_kinds(scorer_named("dot"), *kinds)


def test_reductions_must_agree() -> None:
    with pytest.raises(InvalidInput, match="reduction is token_mean of the rows, token_sum of the query"):
        check_kinds(scorer_named("dot"), GradientKind(reduction="token_mean"), GradientKind(reduction="token_sum"))


def test_weights_are_compared_where_both_are_stated() -> None:
    check_weights("x", None, "a")
    check_weights("x", "a", None)
    check_weights("x", "a", "a")
    with pytest.raises(InvalidInput):
        check_weights("x", "a", "b")


def test_split_scale_rounds_nothing() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((50, 33)) * 10.0 ** rng.uniform(-100, 100, (50, 1))
    vectors[7] = 0
    unit, scales = split_scale(vectors)
    np.testing.assert_array_equal(unit * scales[:, None], vectors)
    rms = np.sqrt((unit**2).mean(axis=1))
    assert scales[7] == 0
    assert ((rms >= 0.5) & (rms <= 1) | (scales == 0)).all()


def test_group_means() -> None:
    vectors = np.arange(8.0).reshape(4, 2)
    assert group_means(vectors, [1, 0, 1, 1]).tolist() == [[2, 3], [10 / 3, 13 / 3]]


def test_scores_past_float32_leave_as_its_largest() -> None:
    assert np.isfinite(to_float32(np.array([1e300, -np.inf, 1.0]))).all()
