"""Strips that are scored and offered in one compiled call, against products, factors and offers by separate calls."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from covector_server.kernels import strip as kernels_strip
from covector_server.kernels.scan import ChunkedRows, ScatteredRows, exact_products, fast_products, path_count
from covector_server.kernels.strip import OpenStrip, StripQuestion
from covector_server.kernels.topk import NO_ORIGIN, Pools, Scored, is_compiled

pytestmark = pytest.mark.skipif(not is_compiled(), reason="the library is not built")
PATHS = range(path_count())
ORIGIN = 5 << 32


class Case:
    """Rows in chunks that lie apart, and vectors."""

    def __init__(self, seed: int, count: int, dim: int, vector_count: int = 2) -> None:
        rng = np.random.default_rng(seed)
        chunk_rows, gap_bytes = 37, 4
        chunk_count = -(-count // chunk_rows) + 1
        stride_bytes = 2 * dim * chunk_rows + gap_bytes
        self.memory = np.zeros(chunk_count * stride_bytes, dtype=np.uint8)
        shape, strides = (chunk_count, chunk_rows, dim), (stride_bytes, 2 * dim, 2)
        self.chunks = np.ndarray(shape, np.float16, self.memory, 0, strides)
        self.chunks[:] = rng.standard_normal(shape)
        self.rows = ChunkedRows(self.chunks, range(3, 3 + count))
        self.vectors = rng.standard_normal((vector_count, dim)).astype(np.float32)
        self.coefficients = rng.uniform(-2, 2, vector_count)
        self.reaches = rng.uniform(1e-6, 1e-4, vector_count)
        self.scales = np.where(rng.random(count) < 0.1, 0.0, rng.uniform(0, 3, count)).astype(np.float32)
        self.row_ids = rng.permutation(count) + 1000

    def question(self, path: int, *, over_norm: bool) -> StripQuestion:
        return StripQuestion(self.vectors, self.coefficients, self.reaches, over_norm=over_norm, path=path)

    def open(self, origin: int = ORIGIN) -> OpenStrip:
        return OpenStrip(self.rows, self.scales, self.row_ids, origin)

    def scored(self, path: int, *, over_norm: bool) -> Scored:
        """By separate calls."""
        products, norms = fast_products(self.rows, self.vectors, path)
        factors = np.where(self.scales > 0, 1 / norms, 0.0) if over_norm else self.scales.astype(np.float64)
        reaches = np.abs(factors) * norms
        return Scored(products, self.coefficients, factors, self.reaches, reaches, self.row_ids)


def contents(pools: Pools, number: int) -> dict[int, tuple[float, float]]:
    """What a pool keeps of each row."""
    scores, errors, row_ids = pools.kept(number)
    assert len(set(row_ids.tolist())) == len(row_ids)
    return dict(zip(row_ids.tolist(), zip(scores.tolist(), errors.tolist(), strict=True), strict=True))


def offered(scored: Scored, k: int) -> Pools:
    pools = Pools(len(scored.coefficients), k)
    pools.begin()
    assert not pools.offer(scored)
    pools.settle()
    return pools


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("over_norm", [False, True])
@pytest.mark.parametrize(("count", "dim"), [(1, 5), (300, 64), (700, 2048), (3000, 33)])
def test_pools_are_filled_as_by_separate_calls(path, over_norm, count, dim):
    case = Case(count + dim, count, dim)
    wanted, pools = offered(case.scored(path, over_norm=over_norm), 10), Pools(2, 10)
    strip = case.open()
    assert not strip.is_taken()
    assert strip.score(case.question(path, over_norm=over_norm), pools) == (0, 0)
    assert strip.is_taken()
    pools.settle()
    for number in range(4):
        found, expected = contents(pools, number), contents(wanted, number)
        assert found.keys() == expected.keys()
        for row_id, (score, error) in expected.items():
            np.testing.assert_allclose(found[row_id], (score, error), rtol=1e-12)
        np.testing.assert_array_equal(case.row_ids[pools.origins(number) - ORIGIN], pools.kept(number)[2])


def test_picked_rows_and_rows_without_an_origin():
    case = Case(1, 500, 40)
    places = np.random.default_rng(2).permutation(500)[:123]
    case.rows, case.scales, case.row_ids = case.rows.pick(places), case.scales[places], case.row_ids[places]
    wanted, pools = offered(case.scored(PATHS[-1], over_norm=True), 4), Pools(2, 4)
    assert case.open(NO_ORIGIN).score(case.question(PATHS[-1], over_norm=True), pools) == (0, 0)
    pools.settle()
    for number in range(4):
        assert contents(pools, number).keys() == contents(wanted, number).keys()
        assert (pools.origins(number) == NO_ORIGIN).all()


@pytest.mark.parametrize("k", [3, 900])
def test_threads_share_strips_and_pools(k):
    """Every row is taken once, whoever takes it: the pools hold what one thread finds."""
    cases = [Case(seed, 20_000, 16, 4) for seed in range(3)]
    for place, case in enumerate(cases):
        case.vectors, case.coefficients, case.reaches = (
            cases[0].vectors,
            cases[0].coefficients,
            cases[0].reaches,
        )
        case.row_ids = case.row_ids + 100_000 * place
    question = cases[0].question(PATHS[-1], over_norm=False)
    pools, strips = Pools(4, k), [case.open(place << 32) for place, case in enumerate(cases)]
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(lambda strip: strip.score(question, pools), strips * 4)) == {(0, 0)}
    pools.settle()
    every = [case.scored(PATHS[-1], over_norm=False) for case in cases]
    for number in range(8):
        scores = np.concatenate([(-1) ** number * scored.scores()[number // 2] for scored in every])
        errors = np.concatenate([scored.bounds()[number // 2] for scored in every])
        row_ids = np.concatenate([scored.row_ids for scored in every])
        sure = np.sort(scores - errors)[::-1][k - 1]
        assert contents(pools, number).keys() == set(row_ids[scores + errors >= sure].tolist())


def test_rows_that_cannot_be_told_apart_are_left_to_the_caller():
    """Equal rows fill a pool: it closes, and what was not offered is told, each row once."""
    case = Case(3, 4000, 8, 1)
    case.chunks[:] = 1.0
    case.scales[:] = 1.0
    question, pools, strip = case.question(PATHS[-1], over_norm=False), Pools(1, 10), case.open()
    left = []
    while (rows := strip.score(question, pools)) != (0, 0):
        left.append(rows)
        assert len(left) < 10
    in_pool = [set(contents(pools, number)) for number in range(2)]
    assert in_pool[0] == in_pool[1]
    untold = {int(row_id) for first, stop in left for row_id in case.row_ids[first:stop]}
    assert sum(stop - first for first, stop in left) == len(untold)
    assert in_pool[0] | untold == set(case.row_ids.tolist())
    assert not in_pool[0] & untold
    assert case.open().score(question, pools) == (0, 4000)  # closed for good
    assert case.open().score(question, pools) == (0, 4000)


def test_scattered_rows_are_those_at_their_addresses():
    case = Case(4, 200, 45)
    places = np.random.default_rng(5).permutation(200)[:50]
    addresses = np.array([case.rows.address(place) for place in places.tolist()])
    wide = case.vectors.astype(np.float64)
    found = exact_products(ScatteredRows(addresses, 45), wide)
    for one, other in zip(found, exact_products(case.rows.pick(places), wide), strict=True):
        np.testing.assert_array_equal(one, other)


def test_as_many_vectors_as_the_loop_has_room_for():
    assert kernels_strip.VECTORS_MAX == 4  # COVECTOR_STRIP_VECTORS
    with pytest.raises(AssertionError):
        Case(6, 10, 8, 5).question(PATHS[-1], over_norm=False)
