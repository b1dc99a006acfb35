"""The products of stored float16 rows with query vectors: fast in float32, and exact in float64.

    |fast - <v, r>|  <=  relative_error() * |v| * |r|

With u = 2^-24, a sum of products in float32 in which each product meets at most h roundings is off by at most
g = h u / (1 - h u) times the sum of the products' magnitudes (Higham, Accuracy and Stability of Numerical Algorithms,
2nd ed., sections 3.1 and 4.2), which is at most |v_b| |r_b| in block b; over all blocks Cauchy-Schwarz gives
g |v| |r|, whatever the number of blocks, since they are added in float64. Compiled, a block runs over lanes: 128
additions in each, a multiplication, and a tree over at most 16 lanes, so h <= 128 + 1 + 4. In numpy the order of a sum
is the library's, and h is the number of its products, BLOCK_DIM.

Rows are float16 and widen exactly; v is float64 rounded to float32, another u. Squares of rows are summed the same way,
so a norm is off by at most g / 2 of itself, and a product divided by it, or a bound made from it, by that much more.
Together below 1.5 g + 2 u and terms of order g^2; 2 g + 4 u covers them with the float64 additions, and with products
that underflow (vectors are at unit RMS, so those are below 2^-90 of |v| |r|).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from covector.attribution.scoring import Float64, dots, norms
from covector_server.kernels.library import LIBRARY

Float32 = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]
Real = TypeVar("Real", np.float32, np.float64)

BLOCK_DIM: Final = 1024  # of a sum in numpy
WIDE_BYTES: Final = 8 << 20  # of rows widened to float32 at once, in numpy
ROUNDINGS: Final = 133  # of a sum in the compiled loops
PADDED_DIM: Final = 16
LINE_BYTES: Final = 64  # of a cache
_UNIT = 2.0**-24


def _bound(roundings: int) -> float:
    block_error = roundings * _UNIT / (1 - roundings * _UNIT)
    return 2 * block_error + 4 * _UNIT


NUMPY_ERROR: Final = _bound(BLOCK_DIM)
COMPILED_ERROR: Final = _bound(ROUNDINGS)


class RowsStruct(ctypes.Structure):
    """``struct covector_rows``."""

    _fields_ = (
        ("chunks", ctypes.c_void_p),
        ("places", ctypes.c_void_p),
        ("chunk_rows", ctypes.c_size_t),
        ("stride_bytes", ctypes.c_size_t),
        ("first", ctypes.c_size_t),
        ("row_count", ctypes.c_size_t),
        ("dim", ctypes.c_size_t),
    )


@dataclass(frozen=True, slots=True)
class ChunkedRows:
    """Some rows of float16 where they lie, such as in a mapped file.

    ``chunks``: float16[chunks, chunk_rows, dim], finite, whose rows are contiguous, the chunks a stride apart;
    ``places``: which rows, counted through the chunks, in any order: a range of them, or int64[n].
    """

    chunks: npt.NDArray[np.float16]
    places: Places | range

    @classmethod
    def of(cls, rows: npt.NDArray[np.float16]) -> ChunkedRows:
        """All rows of float16[n, dim], which are copied if they are not contiguous."""
        return cls(np.ascontiguousarray(rows)[None], range(len(rows)))

    def __len__(self) -> int:
        return len(self.places)

    @property
    def dim(self) -> int:
        dim: int = self.chunks.shape[2]
        return dim

    def pick(self, chosen: npt.NDArray[np.bool_] | Places) -> ChunkedRows:
        """Some of them: a mask of them, or their positions among them."""
        places = np.arange(self.places.start, self.places.stop) if isinstance(self.places, range) else self.places
        return ChunkedRows(self.chunks, places[chosen])

    def copied(self) -> npt.NDArray[np.float16]:
        """float16[n, dim]."""
        return self.copied_span(0, len(self))

    def copied_span(self, start: int, stop: int) -> npt.NDArray[np.float16]:
        """Rows [start, stop) of them; float16[n, dim]."""
        places = self.places[start:stop]
        chunk_rows = self.chunks.shape[1]
        if isinstance(places, range):
            places = np.arange(places.start, places.stop)
        rows: npt.NDArray[np.float16] = self.chunks[places // chunk_rows, places % chunk_rows]
        return rows

    def address(self, number: int) -> int:
        """Where the row of this number among them lies in memory."""
        chunk, row = divmod(int(self.places[number]), self.chunks.shape[1])
        at: int = self.chunks.ctypes.data + chunk * self.chunks.strides[0] + row * self.chunks.strides[1]
        return at

    def described(self) -> RowsStruct:
        """For the compiled loops; valid as long as the arrays are."""
        first, places = (self.places.start, None) if isinstance(self.places, range) else (0, self.places.ctypes.data)
        return RowsStruct(
            chunks=self.chunks.ctypes.data,
            places=places,
            chunk_rows=self.chunks.shape[1],
            stride_bytes=self.chunks.strides[0],
            first=first,
            row_count=len(self),
            dim=self.dim,
        )


@dataclass(frozen=True, slots=True)
class ScatteredRows:
    """Rows of float16 at addresses, int64[n], for the compiled loops alone. Whoever makes them holds the memory."""

    addresses: Places
    dim: int

    def __len__(self) -> int:
        return len(self.addresses)

    def described(self) -> RowsStruct:
        """Chunks of one row and one byte, from address 0 on: a row's place is its address."""
        return RowsStruct(None, self.addresses.ctypes.data, 1, 1, 0, len(self), self.dim)


def relative_error() -> float:
    """The bound of ``fast_products`` as they are computed here."""
    return NUMPY_ERROR if LIBRARY is None else COMPILED_ERROR


def path_count() -> int:
    """How many compiled ways this processor has; the last is the fastest, 0 without the library."""
    return 0 if LIBRARY is None else int(LIBRARY.covector_scan_paths())


def padded(vectors: npt.NDArray[Real]) -> npt.NDArray[Real]:
    """Vectors [m, dim] as the compiled loops take them: contiguous, zeros behind, [m, a multiple of 16], from the start
    of a cache line on, so that no load of a whole register meets two."""
    dim = vectors.shape[1]
    if dim % PADDED_DIM == 0 and vectors.flags.c_contiguous and vectors.ctypes.data % LINE_BYTES == 0:
        return vectors
    shape = (len(vectors), dim + -dim % PADDED_DIM)
    size_bytes = shape[0] * shape[1] * vectors.itemsize
    memory = np.empty(size_bytes + LINE_BYTES, dtype=np.uint8)
    first = -memory.ctypes.data % LINE_BYTES
    wide: npt.NDArray[Real] = memory[first : first + size_bytes].view(vectors.dtype).reshape(shape)
    wide[:, :dim], wide[:, dim:] = vectors, 0
    return wide


def fast_products(rows: ChunkedRows, vectors: Float32, path: int | None = None) -> tuple[Float64, Float64]:
    """<vector, row> for all pairs, and the norms of the rows, both within ``relative_error``.

    vectors: float32[m, dim], or ``padded``, at about unit RMS or zero; path: of ``path_count``, the fastest if not
    given. Returns (float64[m, n], float64[n]). The interpreter's lock is released.
    """
    if LIBRARY is None:
        return _numpy_products(rows, vectors[:, : rows.dim])
    vectors = padded(vectors)
    products, squares = np.empty((len(vectors), len(rows))), np.empty(len(rows))
    described = rows.described()
    done = LIBRARY.covector_products(
        _FASTEST if path is None else path,
        ctypes.byref(described),
        vectors.ctypes.data,
        len(vectors),
        vectors.shape[1],
        products.ctypes.data,
        squares.ctypes.data,
    )
    if not done:
        raise MemoryError("no memory to widen rows in")
    return products, np.sqrt(squares, out=squares)


def exact_products(
    rows: ChunkedRows | ScatteredRows, vectors: Float64, path: int | None = None
) -> tuple[Float64, Float64]:
    """<vector, row> for all pairs, and the norms of the rows, in float64; the order of a sum depends on dim alone, so
    equal rows have equal products wherever they stand. vectors: float64[m, dim]. Returns (float64[m, n], float64[n]).
    """
    if LIBRARY is None:
        assert isinstance(rows, ChunkedRows)
        return _numpy_exact(rows, vectors)
    vectors = padded(vectors)
    products, squares = np.empty((len(vectors), len(rows))), np.empty(len(rows))
    described = rows.described()
    done = LIBRARY.covector_exact_products(
        _FASTEST if path is None else path,
        ctypes.byref(described),
        vectors.ctypes.data,
        len(vectors),
        vectors.shape[1],
        products.ctypes.data,
        squares.ctypes.data,
    )
    if not done:
        raise MemoryError("no memory to widen a row in")
    return products, np.sqrt(squares, out=squares)


def _numpy_products(rows: ChunkedRows, vectors: Float32) -> tuple[Float64, Float64]:
    """Rows are widened to float32, blocks of BLOCK_DIM coordinates multiplied by sgemm and added in float64."""
    products, squares = np.zeros((len(vectors), len(rows))), np.zeros(len(rows))
    step = max(1, WIDE_BYTES // (4 * min(rows.dim, BLOCK_DIM)))
    for first in range(0, len(rows), step):
        some = rows.copied_span(first, first + step)
        span = slice(first, first + len(some))
        for start, stop in _spans(rows.dim, len(some)):
            wide = some[:, start:stop].astype(np.float32, order="C")
            _add_span(wide, vectors[:, start:stop], products[:, span], squares[span])
    return products, np.sqrt(squares, out=squares)


def _spans(dim: int, row_count: int) -> Iterator[tuple[int, int]]:
    """Ranges of coordinates to widen at once: whole blocks as far as there are any, then the rest."""
    blocks_at_once = max(1, WIDE_BYTES // (4 * BLOCK_DIM * max(row_count, 1)))
    whole = dim - dim % BLOCK_DIM
    for start in range(0, whole, blocks_at_once * BLOCK_DIM):
        yield start, min(start + blocks_at_once * BLOCK_DIM, whole)
    if whole < dim:
        yield whole, dim


def _add_span(wide: Float32, vectors: Float32, products: Float64, squares: Float64) -> None:
    block_count = max(1, wide.shape[1] // BLOCK_DIM)
    row_blocks = wide.reshape(len(wide), block_count, -1)
    vector_blocks = vectors.reshape(len(vectors), block_count, -1)
    sums = np.matmul(vector_blocks.transpose(1, 0, 2), row_blocks.transpose(1, 2, 0))
    products += sums.sum(axis=0, dtype=np.float64)
    squares += np.einsum("nbk,nbk->nb", row_blocks, row_blocks).sum(axis=1, dtype=np.float64)


def _numpy_exact(rows: ChunkedRows, vectors: Float64) -> tuple[Float64, Float64]:
    wide = rows.copied().astype(np.float64, order="C")
    products = np.empty((len(vectors), len(wide)))
    for product, vector in zip(products, vectors, strict=True):
        product[:] = dots(wide, vector)
    return products, norms(wide)


_FASTEST: Final = path_count() - 1
