"""Both ends of a stream of scores, compiled and in numpy, against a sort of all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covector_server.kernels import extremes, library
from covector_server.kernels.extremes import Extremes


@pytest.fixture(params=["compiled", "numpy"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "numpy":
        monkeypatch.setattr(extremes, "LIBRARY", None)
    else:
        assert library.LIBRARY is not None, "python native/compile.py"


def sorted_ends(scores: np.ndarray, count: int) -> tuple[list[int], list[int]]:
    """The positions of the largest and of the smallest of one vector's scores, NaN left out."""
    there = [place for place in range(len(scores)) if not np.isnan(scores[place])]
    top = sorted(there, key=lambda place: (-scores[place], place))[:count]
    bottom = sorted(there, key=lambda place: (scores[place], place))[:count]
    return top, bottom


@pytest.mark.parametrize("count", [0, 1, 5, 64, 200, 2_000])
@pytest.mark.parametrize("piece", [1, 7, 64, 65, 1_000])
@pytest.mark.usefixtures("either")
def test_ends_are_those_of_a_sort(count: int, piece: int) -> None:
    rng = np.random.default_rng(count)
    products = rng.integers(-50, 50, (3, 1_000)).astype(np.float32)  # most scores are there more than once
    factors = rng.integers(0, 3, 1_000).astype(np.float32)
    weights = rng.integers(-2, 3, 1_000).astype(np.float64)
    chosen = rng.random(1_000) < 0.9
    products[:, rng.random(1_000) < 0.05] = np.nan
    found = Extremes(3, count)
    for start in range(0, 1_000, piece):
        some = slice(start, start + piece)
        found.offer(start, products[:, some], factors[some], weights[some], chosen[some])
    scores = products * factors * weights
    scores[:, ~chosen] = np.nan
    for vector, top, bottom in zip(scores, found.top(), found.bottom(), strict=True):
        assert (top.tolist(), bottom.tolist()) == sorted_ends(vector, count)


@given(
    scores=st.lists(st.integers(-4, 4), min_size=1, max_size=200),
    count=st.integers(1, 30),
    piece=st.integers(1, 70),
)
@settings(max_examples=200)
def test_ties_are_broken_by_position(scores: list[int], count: int, piece: int) -> None:
    products = np.array([scores], dtype=np.float32)
    found = Extremes(1, count)
    for start in range(0, len(scores), piece):
        found.offer(start, products[:, start : start + piece])
    assert (found.top()[0].tolist(), found.bottom()[0].tolist()) == sorted_ends(products[0], count)


@pytest.mark.parametrize("name", ["factors", "weights", "chosen"])
@pytest.mark.usefixtures("either")
def test_each_of_what_may_be_left_out(name: str) -> None:
    rng = np.random.default_rng(1)
    products = rng.standard_normal((1, 300)).astype(np.float32)
    whole: dict[str, Any] = {
        "factors": rng.random(300).astype(np.float32),
        "weights": rng.random(300),
        "chosen": rng.random(300) < 0.5,
    }
    found = Extremes(1, 20)
    found.offer(7, products, **{name: whole[name]})
    scores = products[0].copy()
    if name == "chosen":
        scores[~whole["chosen"]] = np.nan
    else:
        scores *= whole[name].astype(np.float32)
    expected = [[place + 7 for place in end] for end in sorted_ends(scores, 20)]
    assert [found.top()[0].tolist(), found.bottom()[0].tolist()] == expected


@pytest.mark.usefixtures("either")
def test_nothing_was_offered() -> None:
    found = Extremes(2, 4)
    assert [len(end) for end in (*found.top(), *found.bottom())] == [0, 0, 0, 0]


@pytest.mark.usefixtures("either")
def test_a_weight_that_float32_cannot_hold() -> None:
    """The factor brings it back."""
    found = Extremes(1, 1)
    factors, weights = np.array([1e-30, 1e-30], dtype=np.float32), np.array([1e50, 2e50])
    found.offer(0, np.ones((1, 2), dtype=np.float32), factors, weights)
    assert found.top()[0].tolist() == [1]
