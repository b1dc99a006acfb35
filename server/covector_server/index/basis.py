"""The principal directions of a checkpoint's rows, from a sample of them that is spread over all.

Rows count by their direction alone: each is at unit RMS as it is stored. Where the sample has more rows than
coordinates, the second moments float32[dim, dim] are summed as rows stream by; where it has fewer, the products of all
pairs of sampled rows, float32[rows, rows], a block of coordinates at a time. Both have the same eigenvalues, and the
second gives the directions in one more pass over the sample, so dim may be 2^20 and more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from covector_server.index.contract import Float32, Source
from covector_server.index.directions import batch_rows, spans
from covector_server.index.eigen import top_eigenpairs
from covector_server.storage.index_files import DraftFile

MOMENTS_DIM_MAX = 6144  # 151 MB of second moments
SAMPLE_ROWS_MIN, SAMPLE_ROWS_MAX = 4096, 16_384
PAIRS_ROWS_MAX = 4096

Float16Rows = Sequence[npt.NDArray[np.float16]]


def sample_of(source: Source, seed: int) -> npt.NDArray[np.int64]:
    """Sorted positions to learn from. A fixed share of the projection's work, within bounds."""
    by_moments = source.dim <= MOMENTS_DIM_MAX
    if by_moments:
        wanted = min(max(SAMPLE_ROWS_MIN, source.row_count // 32), SAMPLE_ROWS_MAX)
    else:
        wanted = min(max(1024, int(np.sqrt(400 * source.row_count))), PAIRS_ROWS_MAX)
    live = source.live
    if len(live) <= wanted:
        return live
    chosen = np.random.default_rng(seed).choice(live, wanted, replace=False)
    return np.sort(chosen)


def write_basis(source: Source, sample: npt.NDArray[np.int64], rank: int, file: DraftFile) -> Float32:
    """Writes at most ``rank`` directions, as ``Directions.mapped`` reads them: float16, each at about unit RMS. Returns
    how far rows reach along each, float32[rank], descending: the deviation of their product with it as stored."""
    views = source.views(sample)
    if source.dim <= min(MOMENTS_DIM_MAX, len(sample)):
        values, blocks = _from_moments(source, views, rank)
    else:
        values, blocks = _from_pairs(source, views, rank)
    unit = np.float32(np.sqrt(source.dim))
    for block in blocks:
        file.append_array((block * unit).astype("<f2"))
    return np.sqrt(values) * unit


def _from_moments(source: Source, views: Float16Rows, rank: int) -> tuple[Float32, Iterator[Float32]]:
    dim = source.dim
    moments = np.zeros((dim, dim), dtype=np.float32)
    step = batch_rows(dim)
    for start in range(0, len(views), step):
        source.check()
        wide = np.stack(views[start : start + step]).astype(np.float32)
        moments += wide.T @ wide
    moments /= max(len(views), 1)
    values, vectors = top_eigenpairs(moments, rank)
    return values, (vectors[start:stop].T for start, stop in spans(dim))


def _from_pairs(source: Source, views: Float16Rows, rank: int) -> tuple[Float32, Iterator[Float32]]:
    dim = source.dim
    pairs = np.zeros((len(views), len(views)), dtype=np.float32)
    for wide in _wide_blocks(views, dim):
        source.check()
        pairs += wide @ wide.T
    pairs /= max(len(views), 1)
    values, vectors = top_eigenpairs(pairs, rank)
    scaled: Float32 = (vectors / np.sqrt(values * np.float32(len(views)))).T
    return values, (scaled @ wide for wide in _wide_blocks(views, dim))


def _wide_blocks(views: Float16Rows, dim: int) -> Iterator[Float32]:
    """The sample, float32[rows, block], a block of coordinates at a time."""
    for start, stop in spans(dim):
        wide = np.empty((len(views), stop - start), dtype=np.float32)
        for row, view in zip(wide, views, strict=True):
            row[:] = view[start:stop]
        yield wide
