"""Rows as a few small integers with their weights folded in: what the kinds that are keyed by (A, w) have in common.

The files are those of ``subspace``, but a row's factor is that of its code times the row's weight over the largest, so
whoever opens them needs nothing else to know by what the rows are to be compared:

    score(query, row)  ~  factor(row) * sum over j of  code(row)[j] * deviation[j] * <query, direction j> gain[j] / dim

With a map A, deviations are those of whitened rows and gains undo what that changed (``basis``), so structures that see
``code * deviation`` see rows by what they add to scores.

A row whose factor is 0 is dead, all zero, or was blanked: it has no place in any structure made of the codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.errors import Corrupt
from covector_server.index import basis as bases
from covector_server.index.basis import OpenBasis, open_basis, write_basis
from covector_server.index.changing import changed
from covector_server.index.codes import Codes, encode, scan
from covector_server.index.contract import Candidates, Changes, Check, Float32, Mask, Rows, Search, Source
from covector_server.index.directions import batch_rows, project
from covector_server.index.judge import Judge
from covector_server.storage.index_files import Draft
from covector_server.storage.view import Positions

FILES = (*bases.FILES, "codes", "factors")
COLUMN_ROWS = 1 << 18  # whose weights are looked at at once


@dataclass(frozen=True, slots=True)
class _Unweighted:
    """``contract.Rows`` whose weights are in the codes' factors already."""

    rows: Rows

    def factors(self, start: int, stop: int) -> npt.NDArray[np.float64]:
        return np.ones(stop - start)

    def chosen(self, start: int, stop: int) -> Mask | None:
        return self.rows.chosen(start, stop)


@dataclass(frozen=True, slots=True)
class Coded:
    """The codes, opened. ``contract.Index`` by a scan of all of them."""

    basis: OpenBasis
    codes: Codes  # [rows, rank]
    factors: Float32  # [rows]
    size_bytes: int

    @property
    def rank(self) -> int:
        return int(self.codes.shape[1])

    @property
    def row_count(self) -> int:
        return len(self.codes)

    @property
    def deviations(self) -> Float32:
        """How far rows reach along each direction, float32[rank]."""
        return self.basis.deviations

    def candidates(self, search: Search) -> Candidates:
        """See ``contract.Index``."""
        return self.scanned(self.coordinates(search.vectors), search)

    def coordinates(self, vectors: Float32) -> Float32:
        """Along the directions: float32[m, rank] of float32[m, dim]."""
        return self.basis.coordinates(vectors)

    def scanned(self, coordinates: Float32, search: Search) -> Candidates:
        """The candidates of vectors with these coordinates, by a scan."""
        unweighted = Search(search.vectors, search.count, _Unweighted(search.rows), search.check)
        return scan(self.codes, self.factors, coordinates * self.deviations, unweighted)

    def scores(self, coordinates: Float32, positions: Positions) -> Float32:
        """float32[n] of one vector, float32[rank], and rows at some positions."""
        products: Float32 = self.codes[positions].astype(np.float32) @ (coordinates * self.deviations)
        return products * self.factors[positions]


def opened(maps: dict[str, memoryview], parameters: dict[str, Any], size_bytes: int) -> Coded:
    """The codes in some files. Raises Corrupt if they are none."""
    try:
        rank, dim, row_count = parameters["rank"], parameters["dim"], parameters["row_count"]
        factors = np.frombuffer(maps["factors"], "<f4")
        if len(factors) != row_count:
            raise ValueError(f"{len(factors)} rows, not {row_count}")
        codes = np.frombuffer(maps["codes"], np.int8).reshape(row_count, rank)
        basis = open_basis(maps, rank, dim)
    except (KeyError, ValueError, TypeError) as error:
        raise Corrupt(f"the files of an index do not fit together: {error}; build it again") from error
    return Coded(basis, codes, factors, size_bytes + basis.directions.wide_bytes)


def write(source: Source, sample: Positions, rank: int, judge: Judge, draft: Draft) -> int:
    """Writes the files, and has the judge see every row. Returns the rank, which is lower where the rows have fewer
    directions."""
    basis = write_basis(source, sample, rank, draft)
    draft.step("index.basis")
    largest = _largest_weight(source)
    sets = [basis.rows, *([] if judge.directions is None else [judge.directions])]
    with draft.file("codes") as codes_file, draft.file("factors") as factors_file:
        for first, rows in source.pieces(batch_rows(source.dim)):
            products, *judged = project(rows, sets)
            codes, factors = encode(products, basis.row_units)
            factors = (factors * (source.rows.factors(first, first + len(codes)) / largest)).astype(np.float32)
            chosen = source.rows.chosen(first, first + len(codes))
            if chosen is not None:
                factors[~chosen] = 0
            codes[factors == 0] = 0
            codes_file.append_array(codes)
            factors_file.append_array(factors)
            for scores in judged:
                judge.offer(first, scores)
    draft.step("index.coded")
    return basis.rank


def _largest_weight(source: Source) -> float:
    largest = 0.0
    for start in range(0, source.row_count, COLUMN_ROWS):
        source.check()
        stop = min(start + COLUMN_ROWS, source.row_count)
        largest = max(largest, float(np.abs(source.rows.factors(start, stop)).max()))
    return largest or 1.0


def rewrite(
    maps: dict[str, memoryview], parameters: dict[str, Any], changes: Changes, draft: Draft, check: Check
) -> None:
    """Writes the files after some changes."""
    old = opened(maps, parameters, 0)
    bases.copy_basis(draft, maps)
    for name, array in (("codes", old.codes), ("factors", old.factors)):
        with draft.file(name) as file:
            for piece in changed(array, changes, check):
                file.append_array(piece)


def members(factors: Float32) -> Positions:
    """Which of some rows have a place in a structure, sorted."""
    return np.flatnonzero(factors != 0)


def vectors_of(codes: Codes, factors: Float32, deviations: Float32, places: Positions) -> Float32:
    """float32[n, width] of some rows, along the first coordinates of their codes: by the products of these with the
    coordinates of a query, rows are compared."""
    vectors: Float32 = codes[places, : len(deviations)] * factors[places, None] * deviations
    return vectors
