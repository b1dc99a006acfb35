"""Rows as a few small integers, with one factor a row, scanned for both ends.

    <vector, row>  ~  factor(row) * sum over j of  code(row)[j] * weight[j] * <vector, direction j>

Along direction j rows reach about as far as its deviation, so what is coded is the product divided by that: every
coordinate then uses the same part of an integer's range, and the deviation goes to the vector's side.

Codes have 8 bits, or 4 where rows need many coordinates (``kernels.nibbles``): with a thousand of them the error of
each hardly shows in the sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from covector_server.index.contract import Candidates, Float32, Search
from covector_server.kernels import nibbles
from covector_server.kernels.codes import FEW, code_products
from covector_server.kernels.extremes import Extremes

Codes = npt.NDArray[np.int8]
Stored = npt.NDArray[Any]  # int8[rows, rank], or uint8[rows, bytes] of packed codes
CODE_MAX = 127
STEP_ROWS = 1 << 14
WIDE_BYTES = 4 << 20  # of codes widened at once, where there are many queries
SCORE_BYTES = 16 << 20  # of scores at once


def encode(products: Float32, deviations: Float32, code_max: int = CODE_MAX) -> tuple[Codes, Float32]:
    """int8[n, rank] and the factors float32[n] of products with the directions, float32[n, rank]."""
    scaled = products / np.maximum(deviations, np.finfo(np.float32).tiny)
    peaks = np.abs(scaled).max(axis=1, initial=0.0)
    factors = peaks / code_max
    inverse = np.divide(1.0, factors, out=np.zeros_like(factors), where=factors > 0)
    return np.rint(scaled * inverse[:, None]).astype(np.int8), factors.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Coding:
    """Codes of so many bits, 8 or 4, as they are stored."""

    bits: int = 8

    @property
    def rank_step(self) -> int:
        """Ranks that codes can be cut to are multiples of this."""
        return 1 if self.bits == 8 else nibbles.BLOCK

    def row_bytes(self, rank: int) -> int:
        """Bytes of a row's codes."""
        return rank if self.bits == 8 else nibbles.packed_bytes(rank)

    def encode(self, products: Float32, deviations: Float32) -> tuple[Codes, Float32]:
        """As ``encode``, with codes of so many bits."""
        return encode(products, deviations, CODE_MAX if self.bits == 8 else nibbles.CODE_MAX)

    def stored(self, codes: Codes) -> Stored:
        """Codes as they are written."""
        return codes if self.bits == 8 else nibbles.pack(codes)

    def mapped(self, data: memoryview, row_count: int, rank: int) -> Stored:
        """Codes as they were written. Raises ValueError where they are not so many."""
        dtype = np.int8 if self.bits == 8 else np.uint8
        return np.frombuffer(data, dtype).reshape(row_count, self.row_bytes(rank))

    def products(self, stored: Stored, vectors: Float32) -> Float32:
        """float32[m, n] of stored codes and float32[m, rank]."""
        return code_products(stored, vectors) if self.bits == 8 else nibbles.nibble_products(stored, vectors)


def scan(codes: Stored, factors: Float32, queries: Float32, search: Search, coding: Coding = Coding()) -> Candidates:
    """The candidates of queries float32[m, rank], weighted, among rows with these codes."""
    row_count, row_bytes = codes.shape
    step = _step_rows(row_bytes, len(queries))
    extremes = Extremes(len(queries), min(search.count, row_count))
    seen_count = 0
    for start in range(0, row_count, step):
        search.check()
        stop = min(start + step, row_count)
        chosen = search.rows.chosen(start, stop)
        if chosen is not None and not chosen.any():
            continue
        products = coding.products(codes[start:stop], queries)
        extremes.offer(start, products, factors[start:stop], search.rows.factors(start, stop), chosen)
        seen_count += stop - start if chosen is None else int(np.count_nonzero(chosen))
    return Candidates(extremes.top(), extremes.bottom(), seen_count)


def _step_rows(row_bytes: int, query_count: int) -> int:
    """Rows to look at between two questions whether to go on."""
    if query_count <= FEW:
        return STEP_ROWS
    return max(256, min(STEP_ROWS, WIDE_BYTES // (4 * row_bytes), SCORE_BYTES // (4 * query_count)))
