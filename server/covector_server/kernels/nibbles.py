"""Codes of 4 bits, packed two to a byte, and their products with vectors.

A code is a whole number from -7 to 7. Codes come in blocks of 64, of 32 bytes each: a byte holds a code of the block's
first half in its low bits, and the one 32 further on in its high ones, each plus 8. So many leading blocks of a row are
the row with so many coordinates.

A vector is rounded to int8 for the product, in blocks of 64 with a step each: that adds an error of about a hundredth
of what the block contributes, less than the codes have.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from covector_server.kernels.library import LIBRARY

BLOCK, BLOCK_BYTES = 64, 32
CODE_MAX, BIAS, VECTOR_MAX = 7, 8, 127
WIDE_ROWS = 4096  # unpacked at once, in numpy

Packed = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


def packed_bytes(rank: int) -> int:
    """Bytes of a row's codes."""
    return -(-rank // BLOCK) * BLOCK_BYTES


def pack(codes: npt.NDArray[np.int8]) -> Packed:
    """uint8[n, packed_bytes] of int8[n, rank], each from -7 to 7. What fills the last block counts 0."""
    row_count, rank = codes.shape
    raised = np.full((row_count, 2 * packed_bytes(rank)), BIAS, dtype=np.uint8)
    raised[:, :rank] = codes + np.int8(BIAS)
    halves = raised.reshape(row_count, packed_bytes(rank) // BLOCK_BYTES, 2, BLOCK_BYTES)
    pairs = halves[:, :, 0] | halves[:, :, 1] << np.uint8(4)
    return pairs.astype(np.uint8, copy=False).reshape(row_count, packed_bytes(rank))


def unpack(packed: Packed, rank: int) -> npt.NDArray[np.int8]:
    """int8[n, rank] of uint8[n, packed_bytes]."""
    pairs = packed.reshape(len(packed), packed.shape[1] // BLOCK_BYTES, 1, BLOCK_BYTES)
    raised = np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(len(packed), 2 * packed.shape[1])
    return raised[:, :rank].astype(np.int8) - np.int8(BIAS)


def nibble_products(packed: Packed, vectors: Float32) -> Float32:
    """float32[m, n] of packed codes [n, bytes], each row contiguous, and finite float32[m, rank], rounded as above."""
    whole, steps = _rounded(vectors, packed.shape[1] // BLOCK_BYTES)
    products = np.empty((len(vectors), len(packed)), dtype=np.float32)
    if LIBRARY is None or not packed.size:
        valued = whole.astype(np.float32) * np.repeat(steps, BLOCK, axis=1)
        return _numpy_products(packed, valued, products)
    (row_count, _), stride = packed.shape, packed.strides[0]
    for vector, its_steps, product in zip(whole, steps, products, strict=True):
        LIBRARY.covector_nibble_products(
            packed.ctypes.data,
            row_count,
            len(its_steps),
            stride,
            vector.ctypes.data,
            its_steps.ctypes.data,
            product.ctypes.data,
        )
    return products


def _rounded(vectors: Float32, block_count: int) -> tuple[npt.NDArray[np.int8], Float32]:
    """int8[m, blocks * 64] and the steps float32[m, blocks]."""
    filled = np.zeros((len(vectors), block_count * BLOCK), dtype=np.float32)
    filled[:, : vectors.shape[1]] = vectors
    blocks = filled.reshape(len(vectors), block_count, BLOCK)
    steps = np.abs(blocks).max(axis=2, initial=0.0) / np.float32(VECTOR_MAX)
    inverse = np.divide(1.0, steps, out=np.zeros_like(steps), where=steps > np.finfo(np.float32).tiny)
    whole = np.clip(np.rint(blocks * inverse[:, :, None]), -VECTOR_MAX, VECTOR_MAX).astype(np.int8)
    return whole.reshape(len(vectors), -1), steps


def _numpy_products(packed: Packed, vectors: Float32, products: Float32) -> Float32:
    for start in range(0, len(packed), WIDE_ROWS):
        wide = unpack(packed[start : start + WIDE_ROWS], vectors.shape[1]).astype(np.float32)
        products[:, start : start + WIDE_ROWS] = vectors @ wide.T
    return products
