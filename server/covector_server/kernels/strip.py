"""A strip of rows from where they lie to the pools in one compiled call: products, norms, factors and the offer.

Several threads may work on one strip: each takes pieces of it from a counter, so they are done at about the same time.
"""

from __future__ import annotations

import ctypes
from typing import Final

import numpy as np
import numpy.typing as npt

from covector.attribution.scoring import Float64
from covector_server.kernels.library import LIBRARY
from covector_server.kernels.scan import ChunkedRows, Float32, RowsStruct, padded, path_count
from covector_server.kernels.topk import Pools, RowIds

VECTORS_MAX: Final = 4
_Stretch = ctypes.c_int64 * 2  # kept: a type that is made for each call is a cycle for the garbage collector


class _Question(ctypes.Structure):
    """``struct covector_question``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("vectors", "coefficients", "reaches")),
        *((name, ctypes.c_size_t) for name in ("vector_count", "vector_stride")),
        *((name, ctypes.c_int32) for name in ("path", "over_norm")),
    )


class _Strip(ctypes.Structure):
    """``struct covector_strip``."""

    _fields_ = (
        ("rows", RowsStruct),
        *((name, ctypes.c_void_p) for name in ("scales", "row_ids", "next")),
        ("origin", ctypes.c_int64),
    )


class StripQuestion:
    """What rows are scored with, for the compiled loop.

    vectors: float32[m, dim], m at most VECTORS_MAX; coefficients, reaches: float64[m], as in ``Scored``; ``over_norm``:
    whether a row's factor is 1 / |row|, 0 where its scale is, or its scale; path: as in ``fast_products``.
    """

    def __init__(
        self, vectors: Float32, coefficients: Float64, reaches: Float64, *, over_norm: bool, path: int | None = None
    ) -> None:
        assert len(vectors) <= VECTORS_MAX
        self._arrays = (padded(vectors), np.ascontiguousarray(coefficients), np.ascontiguousarray(reaches))
        addresses = [array.ctypes.data for array in self._arrays]
        path = path_count() - 1 if path is None else path
        self.described = _Question(*addresses, len(vectors), self._arrays[0].shape[1], path, over_norm)


class OpenStrip:
    """Rows to score. ``origin``: that of the first; the pools keep where a row comes from, by place in the strip."""

    def __init__(self, rows: ChunkedRows, scales: npt.NDArray[np.float32], row_ids: RowIds, origin: int) -> None:
        self._next = np.zeros(1, dtype=np.int64)
        self._arrays = (rows, np.ascontiguousarray(scales), np.ascontiguousarray(row_ids))
        addresses = (self._arrays[1].ctypes.data, self._arrays[2].ctypes.data, self._next.ctypes.data)
        self._described = _Strip(rows.described(), *addresses, origin)

    def is_taken(self) -> bool:
        """Whether no rows are left to take."""
        return bool(self._next[0] >= len(self._arrays[2]))

    def score(self, question: StripQuestion, pools: Pools) -> tuple[int, int]:
        """Scores rows until none is left to take, and offers them to pools, which must be offered nothing else
        meanwhile. Returns (0, 0); or, once pools cannot take more before they are settled with exact scores, which they
        then never will in this way, [first, stop) of rows that the caller offers itself before it calls again. Any
        thread may help; the interpreter's lock is released."""
        assert LIBRARY is not None
        left = _Stretch()
        LIBRARY.covector_scan_strip(
            ctypes.byref(question.described), ctypes.byref(self._described), ctypes.byref(pools.described), left
        )
        return left[0], left[1]
