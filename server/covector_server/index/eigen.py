"""The largest eigenpairs of a symmetric matrix without negative eigenvalues, by subspace iteration.

Halko, Martinsson and Tropp, Finding structure with randomness, SIAM Review 53 (2011), algorithms 4.4 and 5.3: a random
block is multiplied by the matrix a few times, made orthogonal in between, and the small problem left is solved exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from covector_server.index.contract import Float32

EXTRA = 32  # directions more than asked for, so that the last ones converge too
ROUNDS = 3
NOISE = 1e-6  # of the largest eigenvalue: below it is rounding
ALIKE = 1e-4  # of the largest eigenvalue of a Gram matrix: below it, float32 is not enough
SHIFT = 1e-7  # of a product's norm: float32 knows no more of it
DEPENDENT = 1e-12  # the same: below it, columns depend on each other


def top_eigenpairs(matrix: Float32, count: int, seed: int = 0) -> tuple[Float32, Float32]:
    """(values float32[n], descending, vectors float32[size, n]) of float32[size, size]; n is at most ``count``, fewer
    where the matrix has fewer above ``NOISE``."""
    return top_eigenpairs_of(lambda block: matrix @ block, len(matrix), count, seed)


def top_eigenpairs_of(
    multiply: Callable[[Float32], Float32], size: int, count: int, seed: int = 0
) -> tuple[Float32, Float32]:
    """The same of the matrix that ``multiply`` multiplies float32[size, m] with."""
    width = min(size, count + EXTRA)
    block = np.random.default_rng(seed).standard_normal((size, width), dtype=np.float32)
    for _ in range(ROUNDS):
        block = orthogonal(multiply(block))
    return _solved(block, block.T @ multiply(block), count)


def top_moments(
    first: Float32, batches: Iterator[Float32], row_count: int, count: int, seed: int = 0
) -> tuple[Float32, Float32]:
    """About the same of the second moments float32[dim, dim] of ``row_count`` rows, given in ``batches``. The moments
    are never made: the rows are multiplied with as many directions as are wanted and some more, which takes a small
    part of the time. ``first``: some of the rows, float32[n, dim], spread over all; the directions begin as sums of
    them."""
    block = orthogonal(_sums(first, min(first.shape[1], len(first), count + EXTRA), seed))
    product = np.zeros_like(block)
    for rows in batches:
        product += rows.T @ (rows @ block)
    return _approximated(block, product / np.float32(max(row_count, 1)), count)


def _approximated(block: Float32, product: Float32, count: int) -> tuple[Float32, Float32]:
    """Eigenpairs of the Nystroem approximation of a matrix, of which ``product`` with an orthonormal block is known:
    the best in the span of the product, without another pass over the rows. Values are those of the approximation, a
    little too small towards the end. Tropp, Yurtsever, Udell and Cevher, Fixed-rank approximation of a
    positive-semidefinite matrix from streaming data, NIPS 2017, algorithm 3."""
    shift = np.float32(SHIFT * float(np.linalg.norm(product)) or 1.0)
    shifted = product + shift * block
    core = (block.T @ shifted).astype(np.float64)
    values, vectors = np.linalg.eigh((core + core.T) / 2)
    factor = shifted @ (vectors / np.sqrt(np.maximum(values, shift))).astype(np.float32)
    wide = factor.astype(np.float64)
    values, vectors = np.linalg.eigh(wide.T @ wide)
    order = np.argsort(-values)[:count]
    order = order[values[order] - shift > NOISE * values[-1]]
    found: Float32 = factor @ (vectors[:, order] / np.sqrt(values[order])).astype(np.float32)
    return (values[order] - shift).astype(np.float32), found


def orthogonal(block: Float32) -> Float32:
    """An orthonormal basis of the columns' span, float32[size, m'] of float32[size, m], by their Gram matrix: a few
    times faster than by reflections. It is made in float64 where columns are so alike that float32 would not do."""
    try:
        root = np.linalg.cholesky((block.T @ block).astype(np.float64))
    except np.linalg.LinAlgError:
        return _independent(block)
    sizes = np.diagonal(root)
    if len(sizes) and sizes.min() ** 2 < ALIKE * sizes.max() ** 2:
        return _independent(block)
    found: Float32 = block @ np.linalg.inv(root).T.astype(np.float32)
    return found


def _independent(block: Float32) -> Float32:
    """The same in float64, without what depends on other columns."""
    wide = block.astype(np.float64)
    values, vectors = np.linalg.eigh(wide.T @ wide)
    kept = values > DEPENDENT * max(values[-1], np.finfo(np.float64).tiny)
    found: Float32 = (wide @ (vectors[:, kept] / np.sqrt(values[kept]))).astype(np.float32)
    return found


def _sums(rows: Float32, width: int, seed: int) -> Float32:
    """float32[dim, width]: every row is in one of the columns, with a random weight."""
    weights = np.random.default_rng(seed).standard_normal((len(rows), 1), dtype=np.float32)
    sums = rows[:width] * weights[:width]
    for start in range(width, len(rows), width):
        some = slice(start, start + width)
        sums[: len(rows[some])] += rows[some] * weights[some]
    return np.ascontiguousarray(sums.T)


def _solved(block: Float32, small: Float32, count: int) -> tuple[Float32, Float32]:
    """The eigenpairs of a matrix within the span of a block, between whose columns it is ``small``."""
    values, vectors = np.linalg.eigh((small + small.T).astype(np.float64) / 2)
    order = np.argsort(-values)[:count]
    order = order[values[order] > NOISE * max(values[-1], np.finfo(np.float32).tiny)]
    return values[order].astype(np.float32), (block @ vectors[:, order].astype(np.float32))
