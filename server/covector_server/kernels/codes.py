"""Products of int8 codes with vectors: a pass over the codes for each of a few vectors, one multiplication for many.

For a pass, a vector is rounded to int16, in steps of a 32,767th of its largest number: what that adds to a product is
small beside what the codes themselves leave out.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from covector_server.kernels.library import LIBRARY

FEW = 4  # vectors, up to which a pass for each takes less time than widening the codes in memory
VECTOR_MAX = 32_767
STEP = 32  # numbers of a vector that the compiled loops take at once

Codes = npt.NDArray[np.int8]
Float32 = npt.NDArray[np.float32]


def code_products(codes: Codes, vectors: Float32) -> Float32:
    """float32[m, n] of int8[n, rank], each row contiguous, and finite float32[m, rank], rounded as above where they are
    few. Sums in any order."""
    if LIBRARY is None or len(vectors) > FEW or not codes.size:
        return vectors @ codes.astype(np.float32).T
    row_count, rank = codes.shape
    whole, steps = rounded(vectors)
    products = np.empty((len(vectors), row_count), dtype=np.float32)
    codes_at, vectors_at, products_at = codes.ctypes.data, whole.ctypes.data, products.ctypes.data
    for number, step in enumerate(steps):
        LIBRARY.covector_code_products(
            codes_at,
            row_count,
            rank,
            codes.strides[0],
            vectors_at + number * whole.strides[0],
            step,
            products_at + number * products.strides[0],
        )
    return products


def rounded(vectors: Float32) -> tuple[npt.NDArray[np.int16], list[float]]:
    """int16[m, rank], with zeros behind up to a multiple of ``STEP``, and what a one of each vector is worth."""
    count, rank = vectors.shape
    peaks = np.abs(vectors).max(axis=1, initial=0.0)
    peaks[peaks < np.finfo(np.float32).tiny * VECTOR_MAX] = 0.0
    inverse = np.divide(np.float32(VECTOR_MAX), peaks, out=np.zeros_like(peaks), where=peaks > 0)
    whole = np.zeros((count, -(-rank // STEP) * STEP), dtype=np.int16)
    np.rint(vectors * inverse[:, None], out=whole[:, :rank], casting="unsafe")
    return whole, (peaks / np.float32(VECTOR_MAX)).tolist()
