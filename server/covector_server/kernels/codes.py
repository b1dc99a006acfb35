"""Products of int8 codes with vectors: a pass over the codes for each of a few vectors, one multiplication for many."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from covector_server.kernels.library import LIBRARY

FEW = 4  # vectors, up to which a pass for each takes less time than widening the codes in memory

Codes = npt.NDArray[np.int8]
Float32 = npt.NDArray[np.float32]


def code_products(codes: Codes, vectors: Float32) -> Float32:
    """float32[m, n] of int8[n, rank], each row contiguous, and float32[m, rank]. Sums in float32, in any order."""
    if LIBRARY is None or len(vectors) > FEW or not codes.size:
        return vectors @ codes.astype(np.float32).T
    (row_count, rank), stride = codes.shape, codes.strides[0]
    vectors = np.ascontiguousarray(vectors)
    products = np.empty((len(vectors), row_count), dtype=np.float32)
    for vector, product in zip(vectors, products, strict=True):
        LIBRARY.covector_code_products(
            codes.ctypes.data, row_count, rank, stride, vector.ctypes.data, product.ctypes.data
        )
    return products
