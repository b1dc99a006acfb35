"""From the mean of a layer's sums to its A.

Moments H, damped:                  A = (H + lambda I)^-1 = (1/lambda) (H/lambda + I)^-1
the same at low rank (Woodbury):    A = (1/lambda) (I - U diag(s / (s + lambda)) U^T), s and U the top eigenpairs of H
the mean of inverses (DataInf):     A = (1/lambda) (I - S), S the mean of g g^T / (lambda + |g|^2), by Sherman-Morrison

At low rank the sums are taken in a basis Q (Rayleigh and Ritz: Q^T H Q, whose eigenvectors Q turns back), so rounding
adds to eigenvalues and is never divided by small ones.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.attribution.preconditioner import Dense, LowRank, Preconditioner
from covector.attribution.scoring import Float64
from covector.attribution.sums import mirror
from covector.errors import InvalidInput

CONDITION_MAX = 1e11  # of moments that are inverted without damping: past it their last digits decide
SHARE_MAX = 1 - 1e-12
TALL_ROWS = 8192  # of a tall matrix that are worked on at once

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Damped:
    """How a layer is damped. ``unit``: its mean nonzero eigenvalue; ``damping``: in that unit; ``over``: by what A is
    divided besides."""

    layer: str
    unit: float
    damping: float
    over: float

    @property
    def value(self) -> float:
        """lambda, or the unit itself where there is no damping; what the moments are divided by."""
        return self.unit * (self.damping or 1.0)

    @property
    def scale(self) -> float:
        """The scale of A."""
        return 1.0 / self.value / self.over


def zero_map(dim: int, over: float) -> Preconditioner:
    """A of a layer whose gradients are all zero: it adds nothing whatever it is."""
    return LowRank(np.zeros((dim, 1), dtype=np.float32), np.zeros(1), 1.0 / over)


def dense_map(damped: Damped, moments: Float64) -> Preconditioner:
    """moments: the upper part of H, float64[dim, dim]; overwritten."""
    _check_finite(damped, moments)
    moments /= damped.value
    mirror(moments)
    if damped.damping:
        moments[np.diag_indices_from(moments)] += 1.0
    inverse = _inverse(damped, moments)
    inverse += inverse.T.copy()
    inverse *= 0.5
    return Dense(inverse, damped.scale)


def low_rank_map(damped: Damped, projected: Float64, basis: npt.NDArray[Any], rank: int) -> Preconditioner:
    """projected: the upper part of Q^T H Q, float64[width, width]; basis: Q, float[dim, width]."""
    values, vectors = _top(damped, projected, basis, rank)
    return LowRank(vectors, values / (values + damped.value), damped.scale)


def mean_of_inverses_map(damped: Damped, shares: Float64, basis: npt.NDArray[Any] | None, rank: int) -> Preconditioner:
    """shares: the upper part of S, or of Q^T S Q with a basis; overwritten. ``damped`` has lambda as its unit."""
    if basis is not None:
        values, vectors = _top(damped, shares, basis, rank)
        return LowRank(vectors, np.minimum(values, SHARE_MAX), damped.scale)
    _check_finite(damped, shares)
    mirror(shares)
    np.negative(shares, out=shares)
    shares[np.diag_indices_from(shares)] += 1.0
    return Dense(shares, damped.scale)


def _top(damped: Damped, projected: Float64, basis: npt.NDArray[Any], rank: int) -> tuple[Float64, Float32]:
    """The largest eigenvalues, descending, and their vectors, float32[dim, rank]."""
    _check_finite(damped, projected)
    mirror(projected)
    values, turns = np.linalg.eigh(projected)
    largest = np.argsort(-values)[:rank]
    turns = turns[:, largest]
    vectors = np.empty((len(basis), len(largest)), dtype=np.float32)
    for start in range(0, len(basis), TALL_ROWS):
        vectors[start : start + TALL_ROWS] = basis[start : start + TALL_ROWS] @ turns
    return np.maximum(values[largest], 0.0), vectors


def orthonormal(tall: Float64) -> Float64:
    """An orthonormal basis of the columns of float64[dim, width], in its place.

    The blocks of rows are made orthonormal each, then their triangles together (TSQR: Demmel, Grigori, Hoemmen and
    Langou, SIAM J. Sci. Comput. 34, 2012), so there is never a second matrix of this size. Raises InvalidInput for
    columns that are not finite.
    """
    if not (np.isfinite(tall.max(initial=0.0)) and np.isfinite(tall.min(initial=0.0))):
        raise InvalidInput("the sums over rows are not finite: some gradient holds NaN or infinity; write it again")
    width = tall.shape[1]
    step = max(TALL_ROWS, 4 * width)
    edges = [*range(0, max(len(tall) - width + 1, 1), step), len(tall)]
    triangles = []
    for start, stop in itertools.pairwise(edges):
        tall[start:stop], triangle = np.linalg.qr(tall[start:stop])
        triangles.append(triangle)
    if len(triangles) > 1:
        turns = np.linalg.qr(np.concatenate(triangles))[0]
        for number, (start, stop) in enumerate(itertools.pairwise(edges)):
            tall[start:stop] = tall[start:stop] @ turns[number * width : (number + 1) * width]
    return tall


def _inverse(damped: Damped, matrix: Float64) -> Float64:
    try:
        inverse = np.asarray(np.linalg.inv(matrix), dtype=np.float64)
    except np.linalg.LinAlgError:
        raise _singular(damped) from None
    if not damped.damping and not np.linalg.norm(matrix, 1) * np.linalg.norm(inverse, 1) < CONDITION_MAX:
        raise _singular(damped)
    return inverse


def _singular(damped: Damped) -> InvalidInput:
    return InvalidInput(
        f"the second moments of {damped.layer!r} are singular: some direction has no gradients, and without damping "
        "nothing can be said of it; give a damping above 0 (None takes the default)",
        field="damping",
    )


def _check_finite(damped: Damped, matrix: Float64) -> None:
    if not np.isfinite(matrix).all():
        raise InvalidInput(
            f"the sums over {damped.layer!r} are not finite: some gradient holds NaN or infinity, or they are larger "
            "than float64 can square; write them again"
        )
