"""The largest eigenpairs of a symmetric matrix without negative eigenvalues, by subspace iteration.

Halko, Martinsson and Tropp, Finding structure with randomness, SIAM Review 53 (2011), algorithms 4.4 and 5.3: a random
block is multiplied by the matrix a few times, made orthogonal in between, and the small problem left is solved exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from covector_server.index.contract import Float32

EXTRA = 32  # directions more than asked for, so that the last ones converge too
ROUNDS = 4
NOISE = 1e-6  # of the largest eigenvalue: below it is rounding


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
        block, _ = np.linalg.qr(multiply(block))
    small = block.T @ multiply(block)
    values, vectors = np.linalg.eigh((small + small.T).astype(np.float64) / 2)
    order = np.argsort(-values)[:count]
    order = order[values[order] > NOISE * max(values[-1], np.finfo(np.float32).tiny)]
    return values[order].astype(np.float32), (block @ vectors[:, order].astype(np.float32))
