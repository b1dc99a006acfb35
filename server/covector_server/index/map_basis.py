"""Directions for a scorer with a map A: those along which whitened rows, A^(1/2) g, reach farthest.

A score is <A q, g> = <A^(1/2) q, A^(1/2) g>, so what should be kept of a row is A^(1/2) g along the principal
directions of such rows. Two ways lead to them.

*A's own eigenvectors.* Where A is the inverse of the rows' damped moment, A = (H + lambda)^-1, the whitened moment has
the eigenvectors of H and A, and eigenvalues s / (s + lambda) = 1 - lambda a: the principal directions are those that A
shrinks most, known from all rows that were learnt, where a sample of rows finds much worse ones (whitened rows have a
flat spectrum: on 62,400 rows of 4096 dims, rank 1024, 16,384 of them for a sample, recall@10 was .96 in place of .99).
A row is multiplied with an eigenvector e, and its coordinate counts sqrt(a) times as much. A low-rank A leaves the rest
of the space alone; where more directions are wanted than it has, they are principal directions of a sample there.

*A sample of rows*, where A is another map in each layer: the joint moment of whitened rows is not A's to know. With
sampled rows S and the eigenpairs of S A S^T = V mu V^T, the direction e = A^(1/2) S^T V / sqrt(mu) is needed from both
sides only, and no root of A: a row is multiplied with p = A^(1/2) e = A r, a vector A q with r = A^(-1/2) e =
S^T V / sqrt(mu).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from covector.attribution.preconditioner import ByLayer, Dense, LowRank, Preconditioner
from covector_server.index.contract import Float32, Source
from covector_server.index.directions import spans
from covector_server.index.eigen import top_eigenpairs, top_eigenpairs_of
from covector_server.storage.view import Positions

SAMPLE_ROWS_MAX = 4096  # whose products of all pairs are made
CHUNK_ROWS = 512  # of A, widened or narrowed at once
POWER_ROUNDS = 10  # for the largest eigenvalue of A
ABOVE = np.float32(1.01)  # a bound of what these find
BLOCK_ELEMENTS = 1 << 24  # of directions that are in memory as float32 at once
MAPPED_ELEMENTS = 1 << 22  # multiplied with a map at once, in float64
HEAVY = 0.99  # of the sampled rows; the weights of heavier ones are cut to theirs
COLUMN_ROWS = 1 << 18

Blocks = Iterable[npt.NDArray[np.float32]]
Views = Sequence[npt.NDArray[np.float16]]


@dataclass(frozen=True, slots=True)
class MapBasis:
    """Directions at about unit RMS, as blocks float32[rank, block] of coordinates. ``vectors``: what vectors are
    multiplied with; ``rows``: what rows are, None for the same. A row's product counts ``roots`` times, a vector's
    ``gains`` times over dim."""

    vectors: Blocks
    roots: Float32  # [rank]
    gains: Float32  # [rank]
    rows: Blocks | None = None


def rank_most(preconditioner: Preconditioner, dim: int) -> int:
    """The largest rank whose directions there is memory for."""
    return max(64, BLOCK_ELEMENTS // dim) if isinstance(preconditioner, Dense | ByLayer) else dim


def map_basis(source: Source, sample: Positions, views: Views, rank: int) -> MapBasis:
    """At most ``rank`` directions for the map of a source. ``sample``: positions of rows, and ``views``, the rows."""
    preconditioner = source.preconditioner
    if isinstance(preconditioner, ByLayer) and len(preconditioner.parts) == 1:
        ((_, _, preconditioner),) = preconditioner.parts
    if isinstance(preconditioner, Dense):
        return _of_dense(source, preconditioner, rank)
    thinned = slice(None, None, -(-len(views) // SAMPLE_ROWS_MAX))
    rows = _Weighted(source, views[thinned], _weights(source, sample[thinned]))
    if isinstance(preconditioner, LowRank):
        return _of_low_rank(rows, preconditioner, rank)
    return _of_layers(rows, cast("ByLayer", preconditioner), rank)


@dataclass(frozen=True, slots=True)
class _Weighted:
    """Sampled rows, each times its weight."""

    source: Source
    views: Views
    weights: Float32

    def __len__(self) -> int:
        return len(self.views)

    def wide(self, rows: slice, start: int, stop: int) -> Float32:
        """Coordinates [start, stop) of some of them."""
        views = self.views[rows]
        wide = np.empty((len(views), stop - start), dtype=np.float32)
        for row, view in zip(wide, views, strict=True):
            row[:] = view[start:stop]
        wide *= self.weights[rows, None]
        return wide


def _weights(source: Source, sample: Positions) -> Float32:
    """By what rows count, as in the sums that A was learnt from: their factors, up to one for all."""
    found = []
    for start in range(0, source.row_count, COLUMN_ROWS):
        source.check()
        stop = min(start + COLUMN_ROWS, source.row_count)
        low, high = np.searchsorted(sample, (start, stop))
        found.append(np.abs(source.rows.factors(start, stop)[sample[low:high] - start]))
    weights = np.concatenate(found)
    heavy = float(np.quantile(weights, HEAVY)) or float(weights.max()) or 1.0
    return np.minimum(weights / heavy, 1.0).astype(np.float32)


# A's own directions


def _of_dense(source: Source, dense: Dense, rank: int) -> MapBasis:
    dim, unit = len(dense.unit), np.float32(np.sqrt(len(dense.unit)))
    bound = _largest_eigenvalue(source, dense) * ABOVE

    def shrinkage(block: Float32) -> Float32:
        """1 - A / bound, whose eigenvalues are positive: no direction is taken for noise."""
        shrunk: Float32 = block - _times(source, dense, block) / bound
        return shrunk

    shares, vectors = top_eigenpairs_of(shrinkage, dim, rank)
    roots = np.sqrt(np.maximum(1.0 - shares, 1e-7)).astype(np.float32)
    return MapBasis([vectors[start:stop].T * unit for start, stop in spans(dim)], roots, 1 / roots)


def _largest_eigenvalue(source: Source, dense: Dense) -> np.float32:
    block = np.random.default_rng(0).standard_normal((len(dense.unit), 4), dtype=np.float32)
    norm = 1.0
    for _ in range(POWER_ROUNDS):
        block = _times(source, dense, block)
        norm = float(np.linalg.norm(block, axis=0).max())
        block /= np.float32(norm)
    return np.float32(norm)


def _times(source: Source, dense: Dense, block: Float32) -> Float32:
    """``unit`` times float32[dim, m], some rows of it narrowed at a time."""
    product = np.empty_like(block)
    for start in range(0, len(block), CHUNK_ROWS):
        source.check()
        product[start : start + CHUNK_ROWS] = dense.unit[start : start + CHUNK_ROWS].astype(np.float32) @ block
    return product


def _of_low_rank(rows: _Weighted, low_rank: LowRank, rank: int) -> MapBasis:
    """The directions of U, then those of sampled rows without their part along U, along which A is its scale."""
    order = np.argsort(-low_rank.shares)[:rank]
    dim = len(low_rank.vectors)
    values, mixed, along = np.empty(0, np.float32), np.empty((len(rows), 0), np.float32), None
    if len(order) < min(rank, dim):
        along, pairs = _without(rows, low_rank)
        values, mixed = top_eigenpairs(pairs, min(rank, dim) - len(order))
    roots = np.sqrt(np.concatenate([1.0 - low_rank.shares[order], np.ones(len(values))])).astype(np.float32)

    def blocks() -> Blocks:
        unit = np.float32(np.sqrt(dim))
        for start, stop in spans(dim):
            own = low_rank.vectors[start:stop].astype(np.float32, copy=False)
            found: list[Float32] = [own[:, order].T]
            if along is not None:
                rest = rows.wide(slice(None), start, stop).T @ mixed - own @ (along.T @ mixed)
                found.append((rest / np.sqrt(values)).T.astype(np.float32))
            yield np.concatenate(found) * unit

    return MapBasis(blocks(), roots, 1 / roots)


def _without(rows: _Weighted, low_rank: LowRank) -> tuple[Float32, Float32]:
    """Products of sampled rows with U, float32[n, rank], and of all pairs of them without their part along U."""
    along = np.zeros((len(rows), low_rank.vectors.shape[1]), dtype=np.float32)
    pairs = np.zeros((len(rows), len(rows)), dtype=np.float32)
    for start, stop in spans(len(low_rank.vectors)):
        rows.source.check()
        wide = rows.wide(slice(None), start, stop)
        along += wide @ low_rank.vectors[start:stop].astype(np.float32, copy=False)
        pairs += wide @ wide.T
    return along, pairs - along @ along.T


# Maps by layer


def _of_layers(rows: _Weighted, by_layer: ByLayer, rank: int) -> MapBasis:
    dim, unit = rows.source.dim, np.float32(np.sqrt(rows.source.dim))
    level = max(_level(part) for _, _, part in by_layer.parts)
    pairs = _mapped_pairs(rows, by_layer, level)
    values, mixed = top_eigenpairs(pairs, rank)
    sides = [np.empty((len(values), dim), dtype=np.float32) for _ in range(2)]  # r and p
    for start, stop, part in by_layer.parts:
        rows.source.check()
        for low, high in spans(stop - start):
            sides[0][:, start + low : start + high] = mixed.T @ rows.wide(slice(None), start + low, start + high)
        for some in _pieces(len(values), stop - start):
            sides[1][some, start:stop] = part.apply(sides[0][some, start:stop].astype(np.float64)) / level
    lengths = [np.sqrt(np.einsum("rk,rk->r", side, side)) / unit for side in sides]
    for side, length in zip(sides, lengths, strict=True):
        side /= length[:, None]
    roots, gains = lengths[1] / np.sqrt(values), lengths[0] * np.float32(dim) / np.sqrt(values)  # each is sqrt(mu) long
    vectors, projecting = ([side[:, start:stop] for start, stop in spans(dim)] for side in sides)
    return MapBasis(vectors, roots, gains, projecting)


def _mapped_pairs(rows: _Weighted, by_layer: ByLayer, level: float) -> Float32:
    """S A S^T, float32[n, n], over all layers."""
    pairs = np.zeros((len(rows), len(rows)), dtype=np.float32)
    for start, stop, part in by_layer.parts:
        for some in _pieces(len(rows), stop - start):
            rows.source.check()
            mapped = (part.apply(rows.wide(some, start, stop).astype(np.float64)) / level).astype(np.float32)
            for low, high in spans(stop - start):
                pairs[some] += mapped[:, low:high] @ rows.wide(slice(None), start + low, start + high).T
    return (pairs + pairs.T) * np.float32(0.5)


def _pieces(count: int, width: int) -> Iterator[slice]:
    """Vectors of some width in pieces whose products with a map fit into memory."""
    step = max(1, MAPPED_ELEMENTS // width)
    return (slice(first, first + step) for first in range(0, count, step))


def _level(part: Preconditioner) -> float:
    return part.scale if isinstance(part, Dense | LowRank) else 1.0
