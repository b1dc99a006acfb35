"""A symmetric matrix times one vector, from half of the matrix."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from covector_server.kernels.library import LIBRARY

Float64 = npt.NDArray[np.float64]


def symmetric_product(matrix: Float64, vector: Float64) -> Float64:
    """float64[dim] of float64[dim, dim], symmetric and contiguous, of which what is below the diagonal is not read, and
    float64[dim]. Each sum is in float64, in an order of its own. The interpreter's lock is released."""
    if LIBRARY is None:
        product: Float64 = matrix @ vector
        return product
    vector, found = np.ascontiguousarray(vector), np.empty(len(vector))
    LIBRARY.covector_symmetric_product(matrix.ctypes.data, len(vector), vector.ctypes.data, found.ctypes.data)
    return found
