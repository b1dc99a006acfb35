"""The arithmetic of a scan: float16 rows against query vectors, once fast in float32 and once exact in float64.

The fast products widen rows to float32 and let sgemm multiply blocks of BLOCK_DIM coordinates; the blocks' sums are
added in float64. So the error does not grow with dim:

    |fast - <q, r>|  <=  RELATIVE_ERROR * |q| * |r|

With u = 2^-24, a float32 sum of B products in any order, fused or not, is off by at most g = B u / (1 - B u) times the
sum of the products' magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1), which is
at most |q_b| |r_b| in block b; over all blocks Cauchy-Schwarz gives g |q| |r|. Rows are float16 and widen exactly; q is
float64 rounded to float32, another u. Squares of rows are summed the same way, so a norm is off by at most g / 2 of
itself, and a product divided by it, or a bound made from it, by that much more. Together below 1.5 g + 2 u and terms of
order g^2; RELATIVE_ERROR = 2 g + 4 u covers them with the float64 additions, and with products that underflow (vectors
are at unit RMS, so those are below 2^-90 of |q| |r|).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from covector.attribution.scoring import Float64, dots, norms

BLOCK_DIM = 1024
WIDE_BYTES = 8 << 20  # of rows widened to float32 at once

_UNIT = 2.0**-24
_BLOCK_ERROR = BLOCK_DIM * _UNIT / (1 - BLOCK_DIM * _UNIT)
RELATIVE_ERROR = 2 * _BLOCK_ERROR + 4 * _UNIT


def fast_products(rows: npt.NDArray[np.float16], vectors: npt.NDArray[np.float32]) -> tuple[Float64, Float64]:
    """<vector, row> for all pairs, and the norms of the rows, both within RELATIVE_ERROR.

    rows: float16[n, dim], finite, in any layout; vectors: float32[m, dim], at about unit RMS or zero.
    Returns (float64[m, n], float64[n]).
    """
    products = np.zeros((len(vectors), len(rows)))
    squares = np.zeros(len(rows))
    for start, stop in _spans(rows.shape[1], len(rows)):
        wide = rows[:, start:stop].astype(np.float32, order="C")
        _add_span(wide, vectors[:, start:stop], products, squares)
    return products, np.sqrt(squares, out=squares)


def exact_products(rows: npt.NDArray[np.float16], vectors: Float64) -> tuple[Float64, Float64]:
    """<vector, row> for all pairs, and the norms of the rows, in float64; equal rows have equal products, see ``dots``.

    rows: float16[n, dim]; vectors: float64[m, dim]. Returns (float64[m, n], float64[n]).
    """
    wide = rows.astype(np.float64, order="C")
    products = np.empty((len(vectors), len(rows)))
    for product, vector in zip(products, vectors, strict=True):
        product[:] = dots(wide, vector)
    return products, norms(wide)


def _spans(dim: int, row_count: int) -> Iterator[tuple[int, int]]:
    """Ranges of coordinates to widen at once: whole blocks as far as there are any, then the rest."""
    blocks_at_once = max(1, WIDE_BYTES // (4 * BLOCK_DIM * max(row_count, 1)))
    whole = dim - dim % BLOCK_DIM
    for start in range(0, whole, blocks_at_once * BLOCK_DIM):
        yield start, min(start + blocks_at_once * BLOCK_DIM, whole)
    if whole < dim:
        yield whole, dim


def _add_span(
    wide: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], products: Float64, squares: Float64
) -> None:
    block_count = max(1, wide.shape[1] // BLOCK_DIM)
    row_blocks = wide.reshape(len(wide), block_count, -1)
    vector_blocks = vectors.reshape(len(vectors), block_count, -1)
    sums = np.matmul(vector_blocks.transpose(1, 0, 2), row_blocks.transpose(1, 2, 0))
    products += sums.sum(axis=0, dtype=np.float64)
    squares += np.einsum("nbk,nbk->nb", row_blocks, row_blocks).sum(axis=1, dtype=np.float64)
