"""The largest and the smallest of a stream of scores, for many vectors at once, with their positions."""

from __future__ import annotations

import ctypes
from typing import Final

import numpy as np
import numpy.typing as npt

from covector_server.kernels.library import LIBRARY

Positions = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_NONE: Final = np.empty(0, dtype=np.int64)


class _Kept(ctypes.Structure):
    """``struct covector_ends``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("scores", "thresholds", "positions", "counts")),
        ("count_max", ctypes.c_size_t),
    )


class _Offered(ctypes.Structure):
    """``struct covector_offered``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("products", "factors", "weights", "chosen")),
        ("vector_count", ctypes.c_size_t),
        ("row_count", ctypes.c_size_t),
        ("first", ctypes.c_int64),
    )


class Extremes:
    """Both ends of the scores of ``vector_count`` vectors, ``count`` positions each."""

    def __init__(self, vector_count: int, count: int) -> None:
        self._vector_count, self._count = vector_count, count
        self._scores = np.empty((2 * vector_count, count), dtype=np.float32)
        self._positions = np.empty((2 * vector_count, count), dtype=np.int64)
        self._thresholds = np.full(2 * vector_count, -np.inf, dtype=np.float32)
        self._counts = np.zeros(2 * vector_count, dtype=np.int64)
        self._is_sorted = False
        arrays = (self._scores, self._thresholds, self._positions, self._counts)
        self._described = _Kept(*(array.ctypes.data for array in arrays), count)

    def offer(
        self,
        first: int,
        products: Float32,
        factors: Float32 | None = None,
        weights: Float64 | None = None,
        chosen: Mask | None = None,
    ) -> None:
        """products: float32[vectors, n] of the positions from ``first`` on, which ascend from offer to offer, times
        ``factors`` and ``weights`` of each position are scores. NaN stands for none, as does a position that is not
        ``chosen``. The interpreter's lock is released."""
        assert not self._is_sorted
        if LIBRARY is None:
            self._offer(first, products, factors, weights, chosen)
            return
        products = np.ascontiguousarray(products)
        optional = [None if array is None else np.ascontiguousarray(array) for array in (factors, weights, chosen)]
        addresses = [None if array is None else array.ctypes.data for array in optional]
        offered = _Offered(products.ctypes.data, *addresses, self._vector_count, products.shape[1], first)
        LIBRARY.covector_offer_ends(ctypes.byref(self._described), ctypes.byref(offered))

    def top(self) -> list[Positions]:
        """Of each vector, the positions of the largest, largest first, equal ones in order."""
        return self._of(0)

    def bottom(self) -> list[Positions]:
        """Of each vector, the positions of the smallest, smallest first, equal ones in order."""
        return self._of(1)

    def _of(self, end: int) -> list[Positions]:
        self._sort()
        return [self._positions[number, : self._counts[number]] for number in range(end, 2 * self._vector_count, 2)]

    def _sort(self) -> None:
        if not self._is_sorted and LIBRARY is not None:
            LIBRARY.covector_sort_ends(ctypes.byref(self._described), self._vector_count)
        self._is_sorted = True

    def _offer(
        self, first: int, products: Float32, factors: Float32 | None, weights: Float64 | None, chosen: Mask | None
    ) -> None:
        """``offer`` in numpy; what is kept is sorted already."""
        scores = products.copy()
        if factors is not None and weights is not None:
            scores *= (factors * weights).astype(np.float32)
        elif factors is not None or weights is not None:
            scores *= np.asarray(weights if factors is None else factors).astype(np.float32)
        if chosen is not None:
            scores[:, ~chosen] = np.nan
        for vector, row in enumerate(scores):
            self._merge(2 * vector, first, row)
            self._merge(2 * vector + 1, first, -row)

    def _merge(self, number: int, first: int, scores: Float32) -> None:
        held = int(self._counts[number])
        places = np.flatnonzero(scores > self._thresholds[number])
        merged = np.concatenate([self._scores[number, :held], scores[places]])
        positions = np.concatenate([self._positions[number, :held], places + first])
        best = np.lexsort((positions, -merged))[: self._count]
        kept = slice(0, len(best))
        self._scores[number, kept], self._positions[number, kept] = merged[best], positions[best]
        self._counts[number] = len(best)
        if len(best) == self._count > 0:
            self._thresholds[number] = merged[best[-1]]
