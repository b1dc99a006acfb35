"""Structures of a library over ranges of positions, and the search through them.

A part is a range of positions whose members (rows with a code) are in one structure, so that building one takes bounded
memory, and erasing a row costs its part alone. A structure sees the leading coordinates of the codes. What it proposes
is ordered by the whole codes, and exact scores are for whoever asks.

A structure knows no filter. Where few rows may come, or so many candidates are wanted that it would not save much, or
where it proposes too few that may come, the codes are scanned instead: what the contract promises holds either way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from covector_server.index.coded import Coded
from covector_server.index.contract import Candidates, Float32, Mask, Search
from covector_server.storage.view import Positions

SHARE_MIN = 0.25  # of rows that may come, below which the codes are scanned
PROPOSED_SHARE_MAX = 0.125  # of all rows, above which the codes are scanned
SPARE = 1.2  # how many more are asked for, since some may not come
MASK_ROWS = 1 << 18  # looked at between two questions whether to go on
VECTORS = 64  # searched for at once


@dataclass(frozen=True, slots=True)
class PartFiles:
    """The files of a part's structure. ``facts``: what the library noted at the build."""

    directory: Path
    prefix: str
    maps: dict[str, memoryview]
    facts: dict[str, Any]


Proposal = tuple[Positions, Float32]  # members by number, and estimates of their products with the vector


class Structure(Protocol):
    """An open structure of one part. Any thread may ask."""

    @property
    def held_bytes(self) -> int:
        """Bytes that it keeps beside its files."""
        ...

    def propose(self, vectors: Float32, count: int, effort: float) -> Sequence[Proposal]:
        """For each of float32[m, width], about ``count`` members with the largest products, none twice. ``effort``:
        the share of the members to look at, about; more are looked at where ``count`` needs it."""
        ...


@dataclass(frozen=True, slots=True)
class Setting:
    """Of a build: ``width``: leading coordinates that structures see, at most; ``trees``: how many, 1 where a library
    knows no more."""

    width: int
    trees: int = 1


class Library(Protocol):
    """What a kind does by itself. ``build`` runs in a process of its own."""

    @property
    def kind(self) -> str: ...
    @property
    def spread(self) -> int:
        """How many candidates to ask a structure for, for one that is wanted by whole codes."""
        ...

    @property
    def settings(self) -> Sequence[Setting]:
        """Of a build, to try, the cheapest first."""
        ...

    @property
    def efforts(self) -> Sequence[float]:
        """Of a search, to try, the cheapest first."""
        ...

    @property
    def has_trees(self) -> bool:
        """Whether the caller may set the number of trees."""
        ...

    def part_rows(self, width: int, memory_bytes: int) -> int:
        """Rows of a part whose structure is built in so much memory."""
        ...

    def cost(self, width: int, effort: float) -> float:
        """About how many float16 numbers are read of a member, for both ends of a query."""
        ...

    def require(self) -> None:
        """Raises MissingLibrary."""
        ...

    def build(self, pieces: Iterator[Float32], shape: tuple[int, int], trees: int, target: Path) -> dict[str, Any]:
        """Writes the structure of float32[members, width], given in pieces, to files in ``target``. Returns facts."""
        ...

    def open(self, files: PartFiles, shape: tuple[int, int]) -> Structure:
        """Raises Corrupt if it has another shape, MissingLibrary."""
        ...


def stacked(pieces: Iterator[Float32], shape: tuple[int, int]) -> Float32:
    """Pieces of rows as one array, which alone is in memory as a whole."""
    whole, first = np.empty(shape, dtype=np.float32), 0
    for piece in pieces:
        whole[first : first + len(piece)] = piece
        first += len(piece)
    return whole


@dataclass(frozen=True, slots=True)
class Part:
    """Positions [start, stop). ``members``: those in the structure; without one, each of them is proposed."""

    start: int
    stop: int
    members: Positions
    structure: Structure | None

    def propose(self, coordinates: Float32, width: int, count: int, effort: float) -> Sequence[Proposal]:
        """Positions, for each of float32[m, rank]; all estimates are 0 where there is no structure."""
        if self.structure is None:
            every = (self.members, np.zeros(len(self.members), dtype=np.float32))
            return [every] * len(coordinates)
        vectors = np.ascontiguousarray(coordinates[:, :width])
        found = self.structure.propose(vectors, min(count, len(self.members)), effort)
        return [(self.members[numbers], estimates) for numbers, estimates in found]


@dataclass(frozen=True, slots=True)
class PartedIndex:
    """``contract.Index``. ``width``: coordinates that structures see; ``spread``: see ``Library``."""

    coded: Coded
    parts: Sequence[Part]
    width: int
    spread: int
    effort: float

    @property
    def size_bytes(self) -> int:
        held = sum(part.structure.held_bytes for part in self.parts if part.structure is not None)
        return self.coded.size_bytes + held + sum(part.members.nbytes for part in self.parts)

    def candidates(self, search: Search) -> Candidates:
        """See ``contract.Index``."""
        coordinates = self.coded.coordinates(search.vectors)
        mask, chosen_count = self._mask(search)
        row_count = max(self.coded.row_count, 1)
        share = chosen_count / row_count
        if share < SHARE_MIN or SPARE * search.count / share > PROPOSED_SHARE_MAX * row_count:
            return self.coded.scanned(coordinates, search)
        drawing = _Drawing(self, mask, search, share)
        ends: list[_Ends | None] = []
        for start in range(0, len(coordinates), VECTORS):
            ends += drawing.draw(coordinates[start : start + VECTORS])
        lacking = [place for place, both in enumerate(ends) if both is None]
        if lacking:
            again = Search(search.vectors[lacking], search.count, search.rows, search.check)
            scanned = self.coded.scanned(coordinates[lacking], again)
            for place, top, bottom in zip(lacking, scanned.top, scanned.bottom, strict=True):
                ends[place] = _Ends(top, bottom, scanned.seen_count)
        found = [both for both in ends if both is not None]
        seen_count = max((both.seen_count for both in found), default=0)
        return Candidates([both.top for both in found], [both.bottom for both in found], seen_count)

    def _mask(self, search: Search) -> tuple[Mask | None, int]:
        """Which positions may come, None for all, and how many."""
        row_count = self.coded.row_count
        masks: list[Mask | None] = []
        for start in range(0, row_count, MASK_ROWS):
            search.check()
            masks.append(search.rows.chosen(start, min(start + MASK_ROWS, row_count)))
        if all(mask is None for mask in masks):
            return None, row_count
        whole = np.ones(row_count, dtype=bool)
        for number, mask in enumerate(masks):
            if mask is not None:
                whole[number * MASK_ROWS :][: len(mask)] = mask
        return whole, int(np.count_nonzero(whole))


@dataclass(frozen=True, slots=True)
class _Ends:
    """Candidates of one vector, and how many rows' codes were looked at."""

    top: Positions
    bottom: Positions
    seen_count: int


@dataclass(frozen=True, slots=True)
class _Drawing:
    """One search. ``share``: of the rows that may come."""

    index: PartedIndex
    mask: Mask | None
    search: Search
    share: float

    def draw(self, coordinates: Float32) -> list[_Ends | None]:
        """For each of float32[m, rank]; None where too few were proposed, or where it cannot be told whether rows
        without a code would come before them."""
        count = len(coordinates)
        proposals = self._proposals(np.concatenate([coordinates, -coordinates]))
        return [
            self._ends(vector, top, bottom)
            for vector, top, bottom in zip(coordinates, proposals[:count], proposals[count:], strict=True)
        ]

    def _ends(self, vector: Float32, top: list[Proposal], bottom: list[Proposal]) -> _Ends | None:
        drawn_top, drawn_bottom = self._kept(top), self._kept(bottom)
        largest, smallest = self._best(vector, drawn_top), self._best(-vector, drawn_bottom)
        if largest is None or smallest is None:
            return None
        return _Ends(largest, smallest, len(drawn_top) + len(drawn_bottom))

    def _proposals(self, coordinates: Float32) -> list[list[Proposal]]:
        index, count = self.index, self.search.count
        wanted_count = int(np.ceil(index.spread * SPARE * count / self.share))
        proposals: list[list[Proposal]] = [[] for _ in coordinates]
        for part in index.parts:
            self.search.check()
            found = part.propose(coordinates, index.width, wanted_count, index.effort / self.share)
            for mine, proposal in zip(proposals, found, strict=True):
                mine.append(proposal)
        return proposals

    def _kept(self, proposed: list[Proposal]) -> Positions:
        """Those that may come; of more than are of use, those with the largest estimates."""
        positions = np.concatenate([part for part, _ in proposed])
        estimates = np.concatenate([part for _, part in proposed])
        if self.mask is not None:
            may_come = self.mask[positions]
            positions, estimates = positions[may_come], estimates[may_come]
        most = int(np.ceil(self.index.spread * SPARE * self.search.count))
        if len(positions) > most and all(part.structure is not None for part in self.index.parts):
            positions = positions[np.argpartition(estimates, -most)[-most:]]
        return positions

    def _best(self, vector: Float32, positions: Positions) -> Positions | None:
        count = self.search.count
        if len(positions) < count:
            return None
        scores = self.index.coded.scores(vector, positions)
        if len(positions) > count:
            kept = np.argpartition(scores, -count)[-count:]
            positions, scores = positions[kept], scores[kept]
        if scores.min() < 0:
            return None
        best: Positions = positions[np.lexsort((positions, -scores))]
        return best
