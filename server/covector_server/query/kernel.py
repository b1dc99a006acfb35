"""The arithmetic of a scan, on plain arrays: ``covector_server.kernels.scan``, which has the proof of its error bound.

|fast - <q, r>|  <=  relative_error() * |q| * |r|  <=  RELATIVE_ERROR * |q| * |r|
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from covector.attribution.scoring import Float64
from covector_server.kernels import scan
from covector_server.kernels.scan import BLOCK_DIM, ChunkedRows, relative_error

__all__ = ["BLOCK_DIM", "RELATIVE_ERROR", "exact_products", "fast_products", "relative_error"]

RELATIVE_ERROR = scan.NUMPY_ERROR  # compiled or not


def fast_products(rows: npt.NDArray[np.float16], vectors: npt.NDArray[np.float32]) -> tuple[Float64, Float64]:
    """<vector, row> for all pairs, and the norms of the rows, both within ``relative_error``.

    rows: float16[n, dim], finite, in any layout; vectors: float32[m, dim], at about unit RMS or zero.
    Returns (float64[m, n], float64[n]).
    """
    return scan.fast_products(ChunkedRows.of(rows), vectors)


def exact_products(rows: npt.NDArray[np.float16], vectors: Float64) -> tuple[Float64, Float64]:
    """<vector, row> for all pairs, and the norms of the rows, in float64; equal rows have equal products.

    rows: float16[n, dim]; vectors: float64[m, dim]. Returns (float64[m, n], float64[n]).
    """
    return scan.exact_products(ChunkedRows.of(rows), vectors)
