"""Directions that rows are projected on, held in blocks of coordinates so that dim may be anything.

``project`` widens a batch of rows block by block and multiplies each block with every set of directions at once: rows
are read and widened once, however many sets there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from covector_server.index.contract import Float32
from covector_server.kernels.codes import code_products
from covector_server.kernels.library import LIBRARY
from covector_server.kernels.scan import ChunkedRows, fast_products
from covector_server.kernels.widen import widen

BLOCK_DIM = 8192
BATCH_BYTES = 16 << 20  # of rows widened at once
WIDE_BYTES = 64 << 20  # of directions that are kept as float32
BRIEF_BYTES = 16 << 20  # of directions that are kept as int8
BRIEF_MAX = 127
FEW = 4  # vectors, up to which directions are read as int8, or as they are stored

Float16 = npt.NDArray[np.float16]
Brief = tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]  # codes, and what a one of each direction is worth


def spans(dim: int) -> Iterator[tuple[int, int]]:
    """The blocks of coordinates."""
    for start in range(0, dim, BLOCK_DIM):
        yield start, min(start + BLOCK_DIM, dim)


def batch_rows(dim: int) -> int:
    """How many rows are projected at once."""
    return max(1, BATCH_BYTES // (4 * min(dim, BLOCK_DIM)))


class Directions:
    """Directions float[count, dim] as a list of blocks float16[count, block], or float32. A few are kept widened, and
    as int8: one vector reads all of them, and that is half the bytes."""

    def __init__(self, blocks: Sequence[Float16 | Float32]) -> None:
        self.count = len(blocks[0])
        self._blocks = blocks
        self._wide: list[Float32] | None = None
        self._brief: list[Brief] | None = None
        self._element_count: int = self.count * sum(block.shape[1] for block in blocks)
        if 4 * self._element_count <= WIDE_BYTES:
            self._wide = [block.astype(np.float32, copy=False) for block in blocks]

    @staticmethod
    def of(vectors: Float32) -> Directions:
        """Whole vectors, float32[count, dim]."""
        return Directions([np.ascontiguousarray(vectors[:, start:stop]) for start, stop in spans(vectors.shape[1])])

    @staticmethod
    def mapped(data: memoryview, count: int, dim: int) -> Directions:
        """Those in a file: for each block its directions, one after the other."""
        flat = np.frombuffer(data, "<f2")
        return Directions([flat[count * start : count * stop].reshape(count, -1) for start, stop in spans(dim)])

    @property
    def wide_bytes(self) -> int:
        """Bytes kept in memory, once a few vectors were asked about."""
        return sum(block.nbytes for block in self._wide or ()) + self._is_brief * self._element_count

    @property
    def _is_brief(self) -> bool:
        return LIBRARY is not None and self._element_count <= BRIEF_BYTES

    def narrow_block(self, number: int) -> Float16 | Float32:
        """Block ``number`` as it is stored."""
        return self._blocks[number]

    def block(self, number: int) -> Float32:
        """Block ``number``, float32[count, block]."""
        return self._blocks[number].astype(np.float32, copy=False) if self._wide is None else self._wide[number]

    def products(self, vectors: Float32) -> Float32:
        """Products of float32[m, dim], at about unit RMS or zero, with each direction: float32[m, count]. Directions
        are float16, rounded further to int8 where they and the vectors are few."""
        if len(vectors) > FEW:
            (products,) = project([vectors], [self])
            return products
        total = self._few_products(0, vectors[:, :BLOCK_DIM])
        for number, (start, stop) in enumerate(spans(vectors.shape[1])):
            if number:
                total += self._few_products(number, vectors[:, start:stop])
        return total

    def _few_products(self, number: int, vectors: Float32) -> Float32:
        if not self._is_brief:
            narrow = ChunkedRows.of(self._blocks[number].astype(np.float16, copy=False))
            return fast_products(narrow, np.ascontiguousarray(vectors))[0].astype(np.float32)
        if self._brief is None:  # made twice if two threads come at once, which does no harm
            self._brief = [_brief_of(block) for block in self._blocks]
        codes, steps = self._brief[number]
        return code_products(codes, vectors) * steps


def _brief_of(block: Float16 | Float32) -> Brief:
    peaks = np.maximum(np.abs(block).max(axis=1, initial=0.0).astype(np.float32), np.finfo(np.float32).tiny)
    steps = peaks / np.float32(BRIEF_MAX)
    return np.rint(block / steps[:, None]).astype(np.int8), steps


def project(rows: Sequence[npt.NDArray[np.float16] | Float32], sets: Sequence[Directions]) -> list[Float32]:
    """Products of rows, given in pieces [n, dim], with sets of directions: float32[rows, count] for each set."""
    dim, row_count = rows[0].shape[1], sum(map(len, rows))
    products = [np.zeros((row_count, directions.count), dtype=np.float32) for directions in sets]
    wide = np.empty((row_count, min(dim, BLOCK_DIM)), dtype=np.float32)
    for number, (start, stop) in enumerate(spans(dim)):
        block, first = wide[:, : stop - start], 0
        for piece in rows:
            widen(piece[:, start:stop], block[first : first + len(piece)])
            first += len(piece)
        for product, directions in zip(products, sets, strict=True):
            product += block @ directions.block(number).T
    return products
