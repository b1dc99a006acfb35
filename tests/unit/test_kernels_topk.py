"""Pools of candidates against a plain sort, compiled and in numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covector_server.kernels import topk
from covector_server.kernels.library import LIBRARY
from covector_server.kernels.topk import Pools, Scored, accumulate


@pytest.fixture(params=["compiled", "numpy"])
def either(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(topk, "LIBRARY", None)


def scored_of(rng: np.random.Generator, result_count: int, row_count: int, first: int = 0) -> Scored:
    return Scored(
        products=rng.standard_normal((result_count, row_count)),
        coefficients=rng.uniform(-2, 2, result_count),
        factors=rng.uniform(0, 3, row_count),
        reaches=rng.uniform(0, 1e-3, result_count),
        row_reaches=rng.uniform(0, 1, row_count),
        row_ids=np.arange(first, first + row_count),
    )


def settle_exactly(pools: Pools, numbers, exact: dict[int, np.ndarray]) -> None:
    """What a caller does about full pools: exact scores, the k best, ties by row id."""
    for number in numbers:
        _, _, row_ids = pools.kept(number)
        turn = -1.0 if number % 2 else 1.0
        scores = turn * exact[number // 2][row_ids]
        best = sorted(range(len(row_ids)), key=lambda i: (-scores[i], row_ids[i]))[: pools.k]
        pools.replace(number, scores[best].copy(), row_ids[best].copy())


def run(blocks: list[Scored], exact: dict[int, np.ndarray], k: int, result_count: int) -> Pools:
    pools = Pools(result_count, k)
    for block in blocks:
        pools.begin()
        while full := pools.offer(block):
            settle_exactly(pools, full, exact)
    pools.settle()
    return pools


def check_best(pools: Pools, exact: dict[int, np.ndarray], k: int) -> None:
    settle_exactly(pools, range(2 * len(exact)), exact)
    for result, scores in exact.items():
        for end, turned in ((0, scores), (1, -scores)):
            found, _, row_ids = pools.kept(2 * result + end)
            wanted = np.sort(turned)[::-1][:k]
            np.testing.assert_array_equal(np.sort(found)[::-1], wanted)
            assert len(set(row_ids.tolist())) == len(row_ids)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("k", [1, 10, 700])
@pytest.mark.parametrize("ascending", [False, True])
def test_the_best_of_a_plain_sort_are_kept(k, ascending):
    """Approximate scores are off by up to their error, to either side; in ascending order every row enters."""
    rng = np.random.default_rng(k)
    blocks = [scored_of(rng, 3, 2500, 2500 * block) for block in range(3)]
    if ascending:
        for block in blocks:
            block.products.sort(axis=1)
            block.factors[:] = 1.0
    exact = {}
    for result in range(3):
        parts = []
        for block in blocks:
            off = rng.uniform(-1, 1, 2500) * block.reaches[result] * block.row_reaches
            parts.append(block.scores()[result] + off)
        exact[result] = np.concatenate(parts)
    check_best(run(blocks, exact, k, 3), exact, k)


@pytest.mark.usefixtures("either")
def test_few_are_left_where_errors_are_small():
    rng = np.random.default_rng(0)
    block = scored_of(rng, 1, 100_000)
    pools = run([block], {}, 10, 1)
    assert [len(pools.kept(number)[2]) for number in (0, 1)] == [10, 10]


@pytest.mark.usefixtures("either")
def test_more_ties_than_a_pool_holds():
    count, k = 20_000, 5
    scores = np.zeros((1, count))
    scores[0, [17, 9000]] = 1.0
    block = Scored.plain(scores, np.full((1, count), 1e-6), np.arange(count))
    exact = {0: scores[0]}
    pools = Pools(1, k)
    pools.begin()
    waits = 0
    while full := pools.offer(block):
        settle_exactly(pools, full, exact)
        waits += 1
    assert waits > 0
    pools.settle()
    settle_exactly(pools, range(2), exact)
    assert sorted(pools.kept(0)[2].tolist()) == [0, 1, 2, 17, 9000]
    assert sorted(pools.kept(1)[2].tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("either")
def test_fewer_rows_than_k_all_stay():
    rng = np.random.default_rng(3)
    pools = run([scored_of(rng, 2, 5), scored_of(rng, 2, 4, 5), scored_of(rng, 2, 0, 9)], {}, 50, 2)
    for number in range(4):
        assert sorted(pools.kept(number)[2].tolist()) == list(range(9))
        assert pools.thresholds[number] == -np.inf


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=400),
    error=st.sampled_from([0.0, 1e-9, 0.3]),
    k=st.integers(1, 30),
)
def test_compiled_and_numpy_find_the_same(values, error, k):
    """With many ties and errors that blur them; both against the sort."""
    scores = np.array([values])
    for library in (LIBRARY, None):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(topk, "LIBRARY", library)
            patched.setattr(topk, "SLACK", 8)
            patched.setattr(topk, "SLACK_MIN", 8)
            block = Scored.plain(scores, np.full_like(scores, error), np.arange(len(values)))
            check_best(run([block], {0: scores[0]}, k, 1), {0: scores[0]}, k)


@pytest.mark.usefixtures("either")
def test_scores_are_added_up_by_place():
    rng = np.random.default_rng(4)
    totals, errors = np.zeros((2, 50)), np.zeros((2, 50))
    expected, expected_errors = np.zeros((2, 50)), np.zeros((2, 50))
    for _ in range(3):
        block, places = scored_of(rng, 2, 30), rng.permutation(50)[:30]
        accumulate(block, places, totals, errors)
        for i, place in enumerate(places):
            expected[:, place] += block.products[:, i] * block.coefficients * block.factors[i]
            expected_errors[:, place] += block.reaches * block.row_reaches[i]
    np.testing.assert_allclose(totals, expected, rtol=1e-14)
    np.testing.assert_allclose(errors, expected_errors, rtol=1e-14)


def test_pools_of_many_results_stay_small():
    pools = Pools(4096, 10)
    assert pools.capacity * 24 * 8192 <= topk.SLACK_BYTES * 2
    assert pools.capacity >= 2 * pools.k
