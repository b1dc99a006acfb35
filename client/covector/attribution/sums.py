"""Sums over streamed rows: what a fit is learnt from.

Rows are widened into a buffer of a fixed number of rows and multiplied by sgemm when it is full; the products are added
up in float64. So the result depends on the order of the rows alone, to the bit, and never on how they were cut into
blocks; and a product in float32 is a sum of at most ``batch_row_count`` terms, whatever the number of rows. Where a fit
asks for it (no damping, so that the smallest eigenvalues count), the buffer and the products are float64.

Rows may have any norm: they are multiplied by a power of two, the same for all, lowered when a larger row comes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from covector.attribution.scoring import Float64

Arrays = dict[str, npt.NDArray[Any]]
Wide = npt.NDArray[np.float32] | npt.NDArray[np.float64]

TILE_DIM = 1024  # of the products that are made at once: half of a symmetric matrix need not be made
BATCH_BYTES = 64 << 20
BATCH_ROWS_MIN, BATCH_ROWS_MAX = 64, 2048
_NO_EXPONENT = -(1 << 20)


def batch_row_count(dim: int) -> int:
    """Rows that are multiplied at once. Fixed by dim alone, since sums depend on it in their last bits."""
    return min(BATCH_ROWS_MAX, max(BATCH_ROWS_MIN, BATCH_BYTES // (4 * dim)))


class LayerSum(Protocol):
    """A sum over rows of one layer; ``total`` is float64 and linear in the rows' squares."""

    total: Float64

    def add(self, rows: Wide) -> None:
        """Adds rows, float[n, layer dim]."""
        ...


class NoSum:
    """Nothing: for a pass that needs the sums of squares only."""

    def __init__(self) -> None:
        self.total: Float64 = np.zeros((0, 0))

    def add(self, rows: Wide) -> None:
        pass


class GramSum:
    """sum of r r^T. Only the tiles on and above the diagonal are kept up; ``matrix`` fills in the rest."""

    def __init__(self, dim: int) -> None:
        self.total: Float64 = np.zeros((dim, dim))

    def add(self, rows: Wide) -> None:
        scratch = np.empty((TILE_DIM, TILE_DIM), dtype=rows.dtype)
        for top, bottom in _tiles(rows.shape[1]):
            for left, right in _tiles(rows.shape[1]):
                if left >= top:
                    product = scratch[: bottom - top, : right - left]
                    np.matmul(rows[:, top:bottom].T, rows[:, left:right], out=product)
                    self.total[top:bottom, left:right] += product


def mirror(matrix: Float64) -> None:
    """Makes the whole symmetric matrix of the upper part that ``GramSum.total`` is, in place."""
    for top, bottom in _tiles(len(matrix)):
        for left, right in _tiles(len(matrix)):
            if left > top:
                matrix[left:right, top:bottom] = matrix[top:bottom, left:right].T


class ProductSum:
    """(sum of r r^T) basis, float64[dim, width], without the matrix. basis: float[dim, width]."""

    def __init__(self, basis: npt.NDArray[Any]) -> None:
        self._basis = basis
        self.total: Float64 = np.zeros(basis.shape)

    def add(self, rows: Wide) -> None:
        projected = rows @ self._basis.astype(rows.dtype, copy=False)
        for top, bottom in _tiles(rows.shape[1]):
            self.total[top:bottom] += rows[:, top:bottom].T @ projected


class ProjectedSum:
    """basis^T (sum of r r^T) basis, the upper part as in ``GramSum``."""

    def __init__(self, basis: npt.NDArray[Any]) -> None:
        self._basis = basis
        self._gram = GramSum(basis.shape[1])

    @property
    def total(self) -> Float64:
        return self._gram.total

    @total.setter
    def total(self, value: Float64) -> None:
        self._gram.total = value

    def add(self, rows: Wide) -> None:
        self._gram.add(rows @ self._basis.astype(rows.dtype, copy=False))


class RowSums:
    """One pass: the buffer, a sum for each layer, and what all of them share.

    ``row_count``: rows seen; ``squares``: float64[layers], sums of squared norms. Totals and squares are in units of
    4^``exponent``. ``spans``: (start, stop) of each layer's coordinates.
    """

    def __init__(
        self, spans: Sequence[tuple[int, int]], sums: Sequence[LayerSum], dtype: npt.DTypeLike = np.float32
    ) -> None:
        dim = spans[-1][1]
        self._spans, self._sums = spans, sums
        self._buffer: Wide = np.empty((batch_row_count(dim), dim), dtype=dtype)
        self._filled = 0
        self.row_count = 0
        self.exponent: int | None = None
        self.squares: Float64 = np.zeros(len(spans))

    def update(self, rows: npt.NDArray[Any], factors: Float64) -> None:
        """Adds factors[i] * rows[i]. rows: float[n, dim]; factors: float64[n], or float64[n, layers]."""
        self.row_count += len(rows)
        for start, stop in self._runs(factors):
            small = np.ldexp(factors[start:stop], -(self.exponent or 0)).astype(self._buffer.dtype)
            self._take_all(rows[start:stop], small)

    def flush(self) -> None:
        """Multiplies what waits in the buffer."""
        waiting = self._buffer[: self._filled]
        for number, ((start, stop), layer_sum) in enumerate(zip(self._spans, self._sums, strict=True)):
            part = waiting[:, start:stop]
            self.squares[number] += np.vecdot(part, part).sum(dtype=np.float64)
            if len(part):
                layer_sum.add(part)
        self._filled = 0

    def mean(self, number: int) -> Float64:
        """The mean over rows of a layer's sum, in true units; a copy."""
        return self._mean(self._sums[number].total)

    def take_mean(self, number: int) -> Float64:
        """The same in the place of the sum, which is gone."""
        total, self._sums[number].total = self._sums[number].total, np.zeros((0, 0))
        return self._mean(total, total)

    def mean_squares(self) -> Float64:
        """The mean squared norm of each layer, float64[layers]."""
        return self._mean(self.squares)

    def _mean(self, total: Float64, out: Float64 | None = None) -> Float64:
        mean = np.asarray(np.ldexp(total, 2 * (self.exponent or 0), out=out))
        mean /= max(self.row_count, 1)
        return mean

    def _runs(self, factors: Float64) -> Iterator[tuple[int, int]]:
        """Ranges of rows between those that are larger than any before; the exponent is right for each as it comes."""
        sizes = np.abs(factors) if factors.ndim == 1 else np.abs(factors).max(axis=1)
        exponents = np.where(sizes > 0, np.frexp(sizes)[1], _NO_EXPONENT)
        highest = np.maximum.accumulate(exponents)
        before = np.concatenate([[_NO_EXPONENT if self.exponent is None else self.exponent], highest])[:-1]
        rises = np.flatnonzero(highest > before)
        if self.exponent is not None:
            rises = rises[highest[rises] > self.exponent]
        edges = [0, *rises.tolist(), len(factors)]
        for start, stop in itertools.pairwise(edges):
            if stop > start:
                self._raise_exponent(int(highest[start]))
                yield start, stop

    def _take_all(self, rows: npt.NDArray[Any], factors: npt.NDArray[Any]) -> None:
        start = 0
        while start < len(rows):
            count = min(len(rows) - start, len(self._buffer) - self._filled)
            self._take(rows[start : start + count], factors[start : start + count])
            start += count
            if self._filled == len(self._buffer):
                self.flush()

    def _take(self, rows: npt.NDArray[Any], factors: npt.NDArray[Any]) -> None:
        place = self._buffer[self._filled : self._filled + len(rows)]
        if factors.ndim == 1:
            np.multiply(rows, factors[:, None], out=place)
        else:
            for number, (start, stop) in enumerate(self._spans):
                np.multiply(rows[:, start:stop], factors[:, number, None], out=place[:, start:stop])
        self._filled += len(rows)

    def _raise_exponent(self, wanted: int) -> None:
        if wanted == _NO_EXPONENT or (self.exponent is not None and wanted <= self.exponent):
            return
        if self.exponent is not None:
            self.flush()
            shrink = np.ldexp(1.0, 2 * (self.exponent - wanted))
            self.squares *= shrink
            for layer_sum in self._sums:
                layer_sum.total *= shrink
        self.exponent = wanted

    def state(self) -> Arrays:
        """What ``restore`` goes on from, to the bit. Views: save them before more is added."""
        counts = [self.row_count, _NO_EXPONENT if self.exponent is None else self.exponent]
        found: Arrays = {
            "counts": np.array(counts, dtype=np.int64),
            "squares": self.squares,
            "waiting": self._buffer[: self._filled],
        }
        found.update({f"total/{number}": layer_sum.total for number, layer_sum in enumerate(self._sums)})
        return found

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Goes on from a state of the same layers and sums."""
        self.row_count, exponent = state["counts"].tolist()
        self.exponent = None if exponent == _NO_EXPONENT else exponent
        self.squares = state["squares"].astype(np.float64)
        self._filled = len(state["waiting"])
        self._buffer[: self._filled] = state["waiting"]
        for number, layer_sum in enumerate(self._sums):
            layer_sum.total = state[f"total/{number}"].astype(np.float64)


def _tiles(dim: int) -> list[tuple[int, int]]:
    return [(start, min(start + TILE_DIM, dim)) for start in range(0, dim, TILE_DIM)]
