"""The choice of a damping by rows that the moments have not seen.

Damped moments H + lambda I are an estimate of the rows' second moments, and lambda is taken where rows that were held
out are likeliest under a normal law with these: cross-validated likelihood, as of a ridge on a covariance (Warton 2008,
section 3). Up to constants the mean log-likelihood is (log det A - mean <A q, q>) / 2, A = (H + lambda I)^-1.

It measures how well moments are known, not how models behave, and asks for less damping than retrained models do the
more rows there are for each coordinate; so its candidates end a decade below the usual default (note 016). Where subset
models can be trained, the linear datamodelling score is the better judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from covector.attribution.preconditioner import Preconditioner
from covector.attribution.rows import ArrayBlock, RowBlock
from covector.attribution.scoring import Float64, dots
from covector.attribution.sums import Arrays

HELD_OUT = "held_out"
CANDIDATES = (0.1, 0.3, 1.0, 3.0, 10.0)  # a decade to either side of the usual default
STRIDE = 10  # one row in so many is held out, or fewer
ROWS_MIN = 5
ROWS_MAX = 1024
ROWS_BYTES = 256 << 20


class Means(Protocol):
    """Means over some rows, as ``RowSums`` has them."""

    @property
    def row_count(self) -> int:
        """How many rows."""
        ...

    def mean(self, number: int) -> Float64:
        """Of a layer's sum; a copy."""
        ...

    def take_mean(self, number: int) -> Float64:
        """The same, where the sum is not needed any more."""
        ...

    def mean_squares(self) -> Float64:
        """Of squared norms, float64[layers]."""
        ...


@dataclass(slots=True)
class Without:
    """The means over all rows but some of them."""

    every: Means
    some: Means

    @property
    def row_count(self) -> int:
        return self.every.row_count - self.some.row_count

    def mean(self, number: int) -> Float64:
        return self._less(self.every.mean(number), self.some.mean(number))

    def take_mean(self, number: int) -> Float64:
        return self.mean(number)

    def mean_squares(self) -> Float64:
        return np.maximum(self._less(self.every.mean_squares(), self.some.mean_squares()), 0.0)

    def _less(self, every: Float64, some: Float64) -> Float64:
        every *= self.every.row_count / self.row_count
        some *= self.some.row_count / self.row_count
        every -= some
        return every


def held_count_max(dim: int, element_bytes: int) -> int:
    """Rows that are held out at most."""
    return max(ROWS_MIN, min(ROWS_MAX, ROWS_BYTES // (dim * element_bytes)))


class HeldRows:
    """Rows of a pass at even distances, the same however the pass is cut into blocks. ``row_count``: rows expected."""

    def __init__(self, dim: int, row_count: int, dtype: np.dtype[Any]) -> None:
        room = held_count_max(dim, dtype.itemsize)
        self._stride = max(STRIDE, -(-row_count // room))
        self._rows = np.empty((min(room, -(-row_count // self._stride)), dim), dtype=dtype)
        self._scales = np.empty(len(self._rows))
        self.count = 0

    def take(self, block: RowBlock, first: int) -> None:
        """Keeps its rows of the block, whose first row is at place ``first`` of the pass."""
        places = np.arange(-first % self._stride, len(block.rows), self._stride)
        places = places[: len(self._rows) - self.count]
        stop = self.count + len(places)
        self._rows[self.count : stop] = block.rows[places]
        self._scales[self.count : stop] = block.scales[places]
        self.count = stop

    def block(self) -> ArrayBlock:
        """Those so far."""
        kept = slice(0, self.count)
        return ArrayBlock(self._rows[kept], self._scales[kept], np.full(self.count, np.nan))

    def state(self) -> Arrays:
        """What ``restore`` goes on from. Views."""
        found = self.block()
        return {"rows": found.rows, "scales": found.scales}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Goes on from a state."""
        self.count = len(state["rows"])
        self._rows[: self.count] = state["rows"]
        self._scales[: self.count] = state["scales"]


def held_out_score(preconditioner: Preconditioner, rows: Float64) -> float:
    """The mean log-likelihood of the rows held out, float64[m, dim], up to a constant: larger is better.
    ``preconditioner``: the inverse of the damped mean moment of other rows."""
    return (preconditioner.log_det() - float(np.mean(dots(preconditioner.apply(rows), rows)))) / 2
