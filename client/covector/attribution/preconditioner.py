"""A, the linear map that a scorer puts between query and rows.

Every A is ``scale`` times a unit map whose eigenvalues lie near or below one, so that gradients of any norm leave
float32 and float64 alone. ``whiten`` is a root of it, <whiten(a), whiten(b)> = <A a, b>: what rows are indexed as, and
what TrackStar takes norms of. Which root is the map's own choice: norms and products do not depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from covector.attribution.scoring import Float64

BLOCK_DIM = 16_384  # coordinates that a low-rank map works on at once
KEPT_ELEMENTS_MAX = 1 << 25  # of a low-rank map that are kept in another precision, 256 MiB in float64

Arrays = dict[str, npt.NDArray[Any]]


class Preconditioner(Protocol):
    """A symmetric, positive definite map of float[m, dim]; results have the dtype of what was given."""

    def apply(self, vectors: Float64) -> Float64:
        """A v of each row v."""
        ...

    def whiten(self, vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A^(1/2) v of each row v, the same shape."""
        ...

    def log_det(self) -> float:
        """The logarithm of A's determinant."""
        ...

    def arrays(self) -> Arrays:
        """What ``preconditioner_of`` makes it again from."""
        ...


@dataclass(frozen=True, slots=True)
class Identity:
    """A = I."""

    def apply(self, vectors: Float64) -> Float64:
        return vectors

    def whiten(self, vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return vectors

    def log_det(self) -> float:
        return 0.0

    def arrays(self) -> Arrays:
        return {}


class Dense:
    """A = scale * unit, with all of ``unit``, float64[dim, dim]."""

    def __init__(self, unit: Float64, scale: float) -> None:
        self.unit, self.scale = unit, scale
        self._roots: dict[np.dtype[Any], npt.NDArray[Any]] = {}

    def apply(self, vectors: Float64) -> Float64:
        # The matrix first, symmetric as it is: for one vector its rows are then read in order, four times as fast.
        return np.ascontiguousarray((self.unit @ vectors.T).T) * self.scale

    def whiten(self, vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
        product: npt.NDArray[Any] = vectors @ self._root(vectors.dtype)
        product *= vectors.dtype.type(np.sqrt(self.scale))
        return product

    def _root(self, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """The Cholesky factor of ``unit``, taken when it is first needed and kept."""
        if dtype not in self._roots:
            self._roots[dtype] = np.linalg.cholesky(self.unit).astype(dtype)
        return self._roots[dtype]

    def log_det(self) -> float:
        return float(np.linalg.slogdet(self.unit)[1] + len(self.unit) * np.log(self.scale))

    def arrays(self) -> Arrays:
        return {"unit": self.unit, "scale": np.array([self.scale])}


class LowRank:
    """A = scale * (I - U diag(shares) U^T). ``vectors``: U, float[dim, rank], orthonormal columns; ``shares``: float64
    [rank], in [0, 1): by how much A shrinks along each. Woodbury's form of (H + lambda)^-1 has shares s / (s + lambda)
    and scale 1 / lambda."""

    def __init__(self, vectors: npt.NDArray[Any], shares: Float64, scale: float) -> None:
        self.vectors, self.shares, self.scale = vectors, shares, scale
        self._kept: dict[np.dtype[Any], npt.NDArray[Any]] = {}

    def apply(self, vectors: Float64) -> Float64:
        shrunk = self._shrink(vectors, self.shares)
        shrunk *= self.scale
        return shrunk

    def whiten(self, vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
        shrunk = self._shrink(vectors, 1.0 - np.sqrt(1.0 - self.shares))
        shrunk *= vectors.dtype.type(np.sqrt(self.scale))
        return shrunk

    def _shrink(self, vectors: npt.NDArray[Any], shares: Float64) -> npt.NDArray[Any]:
        """(I - U diag(shares) U^T) v, a block of coordinates at a time."""
        spans = [slice(start, start + BLOCK_DIM) for start in range(0, vectors.shape[1], BLOCK_DIM)]
        coefficients = sum(vectors[:, span] @ self._block(span, vectors.dtype) for span in spans)
        coefficients = coefficients * shares.astype(vectors.dtype)
        shrunk = np.empty_like(vectors)
        for span in spans:
            np.matmul(coefficients, self._block(span, vectors.dtype).T, out=shrunk[:, span])
        np.subtract(vectors, shrunk, out=shrunk)
        return shrunk

    def _block(self, span: slice, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Rows of U in some precision. All of U is kept so while it is small; else it is made anew each time."""
        if self.vectors.dtype == dtype or self.vectors.size > KEPT_ELEMENTS_MAX:
            return self.vectors[span].astype(dtype, copy=False)
        if dtype not in self._kept:
            self._kept[dtype] = self.vectors.astype(dtype)
        return self._kept[dtype][span]

    def log_det(self) -> float:
        return float(np.log1p(-self.shares).sum() + len(self.vectors) * np.log(self.scale))

    def arrays(self) -> Arrays:
        narrow = self.vectors.astype(np.float32, copy=False)
        return {"vectors": narrow, "shares": self.shares, "scale": np.array([self.scale])}


@dataclass(frozen=True, slots=True)
class ByLayer:
    """A block-diagonal A: ``parts`` are (start, stop, A of the coordinates [start, stop)), in order, without gaps."""

    parts: Sequence[tuple[int, int, Preconditioner]]

    def apply(self, vectors: Float64) -> Float64:
        return np.concatenate([part.apply(vectors[:, start:stop]) for start, stop, part in self.parts], axis=1)

    def whiten(self, vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.concatenate([part.whiten(vectors[:, start:stop]) for start, stop, part in self.parts], axis=1)

    def log_det(self) -> float:
        return sum(part.log_det() for _, _, part in self.parts)

    def arrays(self) -> Arrays:
        found: Arrays = {"bounds": np.array([[start, stop] for start, stop, _ in self.parts], dtype=np.int64)}
        for number, (_, _, part) in enumerate(self.parts):
            found.update({f"{number}/{name}": values for name, values in part.arrays().items()})
        return found


def preconditioner_of(arrays: Mapping[str, npt.NDArray[Any]]) -> Preconditioner:
    """The preconditioner that ``arrays()`` describes."""
    if "bounds" in arrays:
        parts = []
        for number, (start, stop) in enumerate(arrays["bounds"].tolist()):
            prefix = f"{number}/"
            inner = {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
            parts.append((start, stop, preconditioner_of(inner)))
        return ByLayer(tuple(parts))
    if "unit" in arrays:
        return Dense(arrays["unit"], float(arrays["scale"][0]))
    if "vectors" in arrays:
        return LowRank(arrays["vectors"], arrays["shares"], float(arrays["scale"][0]))
    return Identity()
