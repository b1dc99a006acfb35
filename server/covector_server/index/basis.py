"""The principal directions of a checkpoint's rows, from a sample of them that is spread over all.

For a scorer without a map, rows count by their direction alone: each is at unit RMS as it is stored. (``map_basis`` is
for those with one.) Up to some dim, rows stream by once and a block of directions is multiplied with them, so their
second moments are never made (``eigen.top_moments``); beyond, the products of all pairs of sampled rows,
float32[rows, rows], are summed, a block of coordinates at a time, and give the directions in one more pass over the
sample, so dim may be 2^20 and more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from covector.attribution.preconditioner import Identity
from covector.errors import Corrupt
from covector_server.index.contract import Float32, Source
from covector_server.index.directions import Directions, batch_rows, project, spans
from covector_server.index.eigen import EXTRA, top_eigenpairs, top_moments
from covector_server.index.map_basis import Blocks, MapBasis, map_basis
from covector_server.kernels.widen import widen
from covector_server.storage.index_files import Draft, map_draft

FILES = ("basis", "deviations", "gains")
MOMENTS_DIM_MAX = 6144  # 26 MB for each block of as many directions as there may be
SAMPLE_ROWS_MIN, SAMPLE_ROWS_MAX = 4096, 16_384
PAIRS_ROWS_MAX = 4096
FIRST_ROWS = 2  # for each direction, that the search for directions begins with

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


@dataclass(frozen=True, slots=True)
class Basis:
    """What rows are multiplied with, and how far they reach along it.

        <vector, row>  ~  sum over j of  <row, rows_j> / row_units[j] deviations[j] * <vector, vectors_j> gains[j] / dim

    ``vectors`` are the directions of the files, the same but for a map by layers. A product is coded in units of
    ``row_units``; with a map it counts as its root makes it, so ``deviations`` are those of whitened rows.
    """

    rows: Directions
    row_units: Float32  # [rank]
    deviations: Float32  # [rank]

    @property
    def rank(self) -> int:
        return len(self.deviations)


def write_basis(source: Source, sample: npt.NDArray[np.int64], rank: int, draft: Draft) -> Basis:
    """Writes the files ``FILES`` for at most ``rank`` directions, those along which rows reach farthest first:
    ``basis``, as ``Directions.mapped`` reads it, float16 at about unit RMS; ``deviations`` and ``gains``,
    float32[rank]. Rows are to be coded by what is returned."""
    views = source.views(sample)
    if isinstance(source.preconditioner, Identity):
        return _plain(source, views, rank, draft)
    found = map_basis(source, sample, views, rank)
    return _of_map(source, views, found, draft)


def _plain(source: Source, views: Float16Rows, rank: int, draft: Draft) -> Basis:
    if source.dim <= MOMENTS_DIM_MAX:
        values, blocks = _from_moments(source, views, rank)
    else:
        values, blocks = _from_pairs(source, views, rank)
    unit = np.float32(np.sqrt(source.dim))
    rows = _write_directions(draft, (block * unit for block in blocks), len(values), source.dim)
    deviations = np.sqrt(values) * unit
    _write_columns(draft, deviations, np.ones_like(deviations))
    return Basis(rows, deviations, deviations)


def _of_map(source: Source, views: Float16Rows, found: MapBasis, draft: Draft) -> Basis:
    rank = len(found.roots)
    vectors = _write_directions(draft, found.vectors, rank, source.dim)
    rows = vectors if found.rows is None else Directions([block.astype("<f2") for block in found.rows])
    units = _reach(source, views, rows)
    _write_columns(draft, units * found.roots, found.gains)
    return Basis(rows, units, units * found.roots)


def _write_directions(draft: Draft, blocks: Blocks, rank: int, dim: int) -> Directions:
    with draft.file("basis") as file:
        for block in blocks:
            file.append_array(block.astype("<f2"))
    return Directions.mapped(map_draft(draft, "basis"), rank, dim)


def _write_columns(draft: Draft, deviations: Float32, gains: Float32) -> None:
    for name, column in (("deviations", deviations), ("gains", gains)):
        with draft.file(name) as file:
            file.append_array(column.astype("<f4"))


def _reach(source: Source, views: Float16Rows, directions: Directions) -> Float32:
    """The deviation of products of rows with each direction, float32[rank]."""
    total, step = np.zeros(directions.count), batch_rows(source.dim)
    for start in range(0, len(views), step):
        source.check()
        (products,) = project([view[None] for view in views[start : start + step]], [directions])
        total += np.square(products, dtype=np.float64).sum(axis=0)
    return np.sqrt(total / max(len(views), 1)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class OpenBasis:
    """The files of a basis, opened: what vectors are multiplied with."""

    directions: Directions
    deviations: Float32  # [rank]
    gains: Float32  # [rank]
    weights: Float32  # [rank], the deviation times the gain over dim

    def weighted(self, vectors: Float32) -> Float32:
        """float32[m, rank] of float32[m, dim], at about unit RMS or zero: what a row's codes are multiplied with."""
        return self.directions.products(vectors) * self.weights

    def coordinates(self, vectors: Float32) -> Float32:
        """float32[m, rank] of float32[m, dim], at about unit RMS or zero: what a row's codes, each times its deviation,
        are multiplied with."""
        return self.directions.products(vectors) * (self.gains / np.float32(vectors.shape[1]))


def open_basis(maps: dict[str, memoryview], rank: int, dim: int) -> OpenBasis:
    """The basis in some files. Those of an index without a map may lack the gains, which are 1 then. Raises Corrupt if
    they do not fit."""
    deviations = np.frombuffer(maps["deviations"], "<f4")
    gains = np.frombuffer(maps["gains"], "<f4") if "gains" in maps else np.ones(rank, dtype=np.float32)
    if (len(maps["basis"]), len(deviations), len(gains)) != (2 * rank * dim, rank, rank):
        raise Corrupt(f"the basis of an index is not one of rank {rank} and dim {dim}; build it again")
    weights = deviations * (gains / np.float32(dim))
    return OpenBasis(Directions.mapped(maps["basis"], rank, dim), deviations, gains, weights)


def copy_basis(draft: Draft, maps: dict[str, memoryview]) -> None:
    """Writes the files of a basis as they are."""
    for name in FILES:
        if name in maps:
            with draft.file(name) as file:
                file.append(maps[name])


def _from_moments(source: Source, views: Float16Rows, rank: int) -> tuple[Float32, Iterator[Float32]]:
    dim, row_count = source.dim, len(views)

    def batches() -> Iterator[Float32]:
        wide = np.empty((min(row_count, batch_rows(dim)), dim), dtype=np.float32)  # for all: fresh memory costs time
        for start in range(0, row_count, len(wide)):
            source.check()
            some = views[start : start + len(wide)]
            yield _widened(some, wide[: len(some)])

    if not row_count:
        return np.empty(0, dtype=np.float32), (np.empty((0, stop - start), np.float32) for start, stop in spans(dim))
    width = min(rank + EXTRA, row_count, dim)
    spread = views[:: max(1, row_count // max(1, FIRST_ROWS * width))]
    first = _widened(spread, np.empty((len(spread), dim), dtype=np.float32))
    values, vectors = top_moments(first, batches(), row_count, rank)
    return values, (vectors[start:stop].T for start, stop in spans(dim))


def _widened(views: Float16Rows, wide: Float32) -> Float32:
    for row, view in zip(wide, views, strict=True):
        widen(view, row)
    return wide


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
