"""Products of int8 codes with vectors: a pass over the codes for each of a few vectors, one multiplication for many.

For a pass, a vector is rounded to int16, in steps of a 32,767th of its largest number: what that adds to a product is
small beside what the codes themselves leave out.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from covector_server.kernels.library import BRIEF, LIBRARY

FEW = 4  # vectors, up to which a pass for each takes less time than widening the codes in memory
VECTOR_MAX = 32_767  # what its largest number is rounded to
STEP = 32  # numbers of a vector that the compiled loops take at once

Codes = npt.NDArray[np.int8]
Float32 = npt.NDArray[np.float32]


def code_products(codes: Codes, vectors: Float32) -> Float32:
    """float32[m, n] of int8[n, rank], each row contiguous, and finite float32[m, rank], rounded as above where they are
    few. Sums in any order."""
    if LIBRARY is None or BRIEF is None or len(vectors) > FEW or not codes.size:
        return vectors @ codes.astype(np.float32).T
    row_count, rank = codes.shape
    vectors = np.ascontiguousarray(vectors)
    products = np.empty((len(vectors), row_count), dtype=np.float32)
    whole = np.empty(-(-rank // STEP) * STEP, dtype=np.int16)
    codes_at, whole_at, vectors_at, products_at = (one.ctypes.data for one in (codes, whole, vectors, products))
    for number in range(len(vectors)):
        step = BRIEF.covector_round_vector(vectors_at + 4 * number * rank, rank, whole_at)
        LIBRARY.covector_code_products(
            codes_at, row_count, rank, codes.strides[0], whole_at, step, products_at + 4 * number * row_count
        )
    return products
