"""Which rows of a scan may belong to the k best at either end of each result: pools of candidates.

A candidate is a row whose score, moved up by its error, reaches a threshold that k rows surely reach. Pools are offered
scores as they come, and let go of what falls behind. Where errors leave more rows in doubt than a pool holds, as in a
mass tie, the pool waits for exact scores.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from covector.attribution.scoring import Float64
from covector_server.kernels.library import LIBRARY

SLACK: Final = 1024  # rows of a pool beside twice k, at most
SLACK_MIN: Final = 64
SLACK_BYTES: Final = 64 << 20  # of all pools' slack
ENTRY_BYTES: Final = 32
NO_ORIGIN: Final = -1

RowIds = npt.NDArray[np.int64]


def is_compiled() -> bool:
    """Whether pools are filled by the compiled loops."""
    return LIBRARY is not None


@dataclass(frozen=True, slots=True)
class Scored:
    """Approximate scores of n rows for r results: products[r, n] * coefficients[r] * factors[n], off by at most
    ``errors[r, n]``, or by reaches[r] * row_reaches[n] without them. All contiguous float64."""

    products: Float64
    coefficients: Float64
    factors: Float64
    reaches: Float64
    row_reaches: Float64
    row_ids: RowIds
    errors: Float64 | None = None

    @classmethod
    def plain(cls, scores: Float64, errors: Float64, row_ids: RowIds) -> Scored:
        """Of scores[r, n] and the bounds of their errors."""
        result_ones, row_ones = np.ones(len(scores)), np.ones(len(row_ids))
        contiguous = np.ascontiguousarray(scores), np.ascontiguousarray(errors)
        return cls(contiguous[0], result_ones, row_ones, result_ones, row_ones, row_ids, contiguous[1])

    def scores(self) -> Float64:
        """float64[r, n]."""
        found: Float64 = self.products * self.coefficients[:, None]
        found *= self.factors
        return found

    def bounds(self) -> Float64:
        """Of the errors; float64[r, n]."""
        return np.outer(self.reaches, self.row_reaches) if self.errors is None else self.errors

    def part(self, results: slice) -> Scored:
        """Of some of the results."""
        return Scored(
            self.products[results],
            self.coefficients[results],
            self.factors,
            self.reaches[results],
            self.row_reaches,
            self.row_ids,
            None if self.errors is None else self.errors[results],
        )

    def described(self) -> _Scores:
        """For the compiled loops; valid as long as the arrays are."""
        arrays = (self.products, self.coefficients, self.factors, self.reaches, self.row_reaches)
        errors = None if self.errors is None else self.errors.ctypes.data
        addresses = [array.ctypes.data for array in arrays]
        return _Scores(
            *addresses, errors, self.row_ids.ctypes.data, len(self.coefficients), len(self.row_ids), NO_ORIGIN
        )


class _Scores(ctypes.Structure):
    """``struct covector_scores``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("products", "coefficients", "factors", "reaches", "row_reaches")),
        ("errors", ctypes.c_void_p),
        ("row_ids", ctypes.c_void_p),
        ("result_count", ctypes.c_size_t),
        ("row_count", ctypes.c_size_t),
        ("origin", ctypes.c_int64),
    )


class _Pools(ctypes.Structure):
    """``struct covector_pools``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("scores", "errors", "thresholds", "heap")),
        *((name, ctypes.c_void_p) for name in ("row_ids", "origins", "counts", "progress", "gate")),
        ("capacity", ctypes.c_size_t),
        ("k", ctypes.c_size_t),
    )


class Pools:
    """The pools of both ends of some results: that of a result's top at 2 r, of its bottom at 2 r + 1. In the latter
    the sign of scores is turned, so the best are the largest in each."""

    def __init__(self, result_count: int, k: int) -> None:
        pool_count = 2 * result_count
        slack = min(SLACK, max(SLACK_MIN, SLACK_BYTES // (ENTRY_BYTES * pool_count)))
        self.k = k
        self.capacity = 2 * k + slack
        self.thresholds = np.full(pool_count, -np.inf)  # a row below it cannot enter
        self._result_count = result_count
        self._scores = np.empty((pool_count, self.capacity))  # no memory before rows fill them
        self._errors = np.empty((pool_count, self.capacity))
        self._row_ids = np.empty((pool_count, self.capacity), dtype=np.int64)
        self._origins = (
            np.full((pool_count, self.capacity), NO_ORIGIN) if LIBRARY is None else np.empty_like(self._row_ids)
        )
        self._gate = np.zeros(1, dtype=np.int32)
        self._counts = np.zeros(pool_count, dtype=np.int64)
        self._progress = np.zeros(pool_count, dtype=np.int64)
        self._heap = np.empty(k)
        arrays = (self._scores, self._errors, self.thresholds, self._heap)
        whole = (self._row_ids, self._origins, self._counts, self._progress, self._gate)
        self.described = _Pools(*(array.ctypes.data for array in (*arrays, *whole)), self.capacity, k)

    def begin(self) -> None:
        """Call before scores are offered that were not offered before."""
        self._progress[:] = 0

    def offer(self, scored: Scored) -> list[int]:
        """Offers rows, and returns the pools that are too full to see them all: ``replace`` their rows by exact ones,
        then offer the same again. The interpreter's lock is released."""
        if LIBRARY is None:
            for number in range(len(self.thresholds)):
                self._offer_one(scored, number)
        else:
            described = scored.described()
            LIBRARY.covector_offer(ctypes.byref(self.described), ctypes.byref(described))
        return np.flatnonzero(self._progress < len(scored.row_ids)).tolist()

    def settle(self) -> None:
        """Lets go of all rows that surely are not among the k best."""
        if LIBRARY is None:
            for number in range(len(self.thresholds)):
                self._compact(number)
        else:
            LIBRARY.covector_settle(ctypes.byref(self.described), self._result_count)

    def kept(self, number: int) -> tuple[Float64, Float64, RowIds]:
        """Scores, errors and row ids of a pool, as views."""
        rows = slice(0, self._counts[number])
        return self._scores[number, rows], self._errors[number, rows], self._row_ids[number, rows]

    def origins(self, number: int) -> RowIds:
        """Where each row of a pool comes from, NO_ORIGIN where that was not said; as a view."""
        return self._origins[number, : self._counts[number]]

    def replace(self, number: int, scores: Float64, row_ids: RowIds) -> None:
        """Puts exact scores, of at most k rows, in the place of what a pool holds."""
        count = len(scores)
        assert count <= self.k
        self._scores[number, :count], self._errors[number, :count] = scores, 0.0
        self._row_ids[number, :count], self._origins[number, :count] = row_ids, NO_ORIGIN
        self._counts[number] = count
        if count == self.k:
            self.thresholds[number] = max(self.thresholds[number], scores.min())

    def _offer_one(self, scored: Scored, number: int) -> None:
        """``offer`` in numpy, a piece of as many rows as there is room for at a time."""
        result, turn = number // 2, -1.0 if number % 2 else 1.0
        one = scored.part(slice(result, result + 1))
        scores, errors = turn * one.scores()[0], one.bounds()[0]
        while (first := int(self._progress[number])) < len(scores):
            count = int(self._counts[number])
            passing = first + np.flatnonzero(scores[first:] + errors[first:] >= self.thresholds[number])
            taken = passing[: self.capacity - count]
            room = slice(count, count + len(taken))
            self._scores[number, room], self._errors[number, room] = scores[taken], errors[taken]
            self._row_ids[number, room] = scored.row_ids[taken]
            self._counts[number] = room.stop
            if len(taken) == len(passing):
                self._progress[number] = len(scores)
                return
            self._progress[number] = passing[len(taken)]
            self._compact(number)
            if self._counts[number] > self.capacity - self.capacity // 4:
                return

    def _compact(self, number: int) -> None:
        scores, errors, row_ids = self.kept(number)
        if len(scores) < self.k:
            return
        sure = float(np.partition(scores - errors, -self.k)[-self.k])
        self.thresholds[number] = max(self.thresholds[number], sure)
        keep = scores + errors >= self.thresholds[number]
        count = int(np.count_nonzero(keep))
        for column, values in ((self._scores, scores), (self._errors, errors), (self._row_ids, row_ids)):
            column[number, :count] = values[keep]
        self._counts[number] = count


def accumulate(scored: Scored, places: RowIds, totals: Float64, errors: Float64) -> None:
    """Adds scores to ``totals[:, places]`` and the bounds of their errors to ``errors[:, places]``, both contiguous;
    no place twice, and ``scored`` without errors of its own. The interpreter's lock is released."""
    if LIBRARY is None:
        totals[:, places] += scored.scores()
        errors[:, places] += scored.bounds()
        return
    described = scored.described()
    LIBRARY.covector_accumulate(
        ctypes.byref(described), places.ctypes.data, totals.shape[1], totals.ctypes.data, errors.ctypes.data
    )
