"""Rows as a few small integers: int8 codes, one factor a row, scanned for both ends.

    <query, row>  ~  factor(row) * sum over j of  code(row)[j] * weight[j] * <query, direction j>

Along direction j rows reach about as far as its deviation, so what is coded is the product divided by that: every
coordinate then uses the same part of an int8's range, and the deviation goes to the query's side.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from covector_server.index.contract import Candidates, Float32, Search
from covector_server.index.extremes import Extremes
from covector_server.kernels.codes import FEW, code_products

Codes = npt.NDArray[np.int8]
CODE_MAX = 127
STEP_ROWS = 1 << 14
WIDE_BYTES = 4 << 20  # of codes widened at once, where there are many queries
SCORE_BYTES = 16 << 20  # of scores at once


def encode(products: Float32, deviations: Float32) -> tuple[Codes, Float32]:
    """int8[n, rank] and the factors float32[n] of products with the directions, float32[n, rank]."""
    scaled = products / np.maximum(deviations, np.finfo(np.float32).tiny)
    peaks = np.abs(scaled).max(axis=1, initial=0.0)
    factors = peaks / CODE_MAX
    inverse = np.divide(1.0, factors, out=np.zeros_like(factors), where=factors > 0)
    return np.rint(scaled * inverse[:, None]).astype(np.int8), factors.astype(np.float32)


def scan(codes: Codes, factors: Float32, queries: Float32, search: Search) -> Candidates:
    """The candidates of queries float32[m, rank], weighted, among rows with these codes."""
    row_count, rank = codes.shape
    step = _step_rows(rank, len(queries))
    extremes = Extremes(len(queries), search.count)
    seen_count = 0
    for start in range(0, row_count, step):
        search.check()
        stop = min(start + step, row_count)
        chosen = search.rows.chosen(start, stop)
        if chosen is not None and not chosen.any():
            continue
        scores = code_products(codes[start:stop], queries)
        scores *= (factors[start:stop] * search.rows.factors(start, stop)).astype(np.float32)
        if chosen is not None:
            scores[:, ~chosen] = np.nan
        seen_count += stop - start if chosen is None else int(np.count_nonzero(chosen))
        extremes.offer(start, scores)
    return Candidates(extremes.top(), extremes.bottom(), seen_count)


def _step_rows(rank: int, query_count: int) -> int:
    """Rows to look at between two questions whether to go on."""
    if query_count <= FEW:
        return STEP_ROWS
    return max(256, min(STEP_ROWS, WIDE_BYTES // (4 * rank), SCORE_BYTES // (4 * query_count)))
