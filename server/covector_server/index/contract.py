"""The contract of an index: built from a stream of rows, opened from files, asked for candidates.

An index covers the first ``row_count`` positions of one generation of a checkpoint, and answers with positions. It only
proposes: whoever asks scores its candidates exactly. It is asked for both ends at once, since opponents matter as much
as proponents.

A backend is a frozen value with the methods of ``Backend``; ``index.kinds`` lists them, and every one passes
``tests/conformance/test_index.py``. Files are written through a ``Draft`` and come back as ``IndexFiles``, mapped and
verified, so a backend knows neither checksums nor places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from covector.attribution.preconditioner import Preconditioner
from covector.errors import InvalidInput
from covector_server.storage.index_files import Draft, IndexFiles
from covector_server.storage.view import Positions

Float32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Check = Callable[[], None]  # called before every piece of work; what it raises ends it


class MissingLibrary(InvalidInput):
    """A kind of index wants a library that is not installed here. The message says how to install it."""


def candidate_count(oversampling: int, k: int) -> int:
    """How many candidates to draw at each end for k hits: ``oversampling`` times as many for ten, as for fewer; and
    with more hits a smaller multiple, since one that is missed weighs less (5.6 instead of 10 times at 100)."""
    return math.ceil(10 * oversampling * math.pow(max(k / 10, 1.0), 0.75))


class Rows(Protocol):
    """What whoever asks knows of the rows that an index covers."""

    def factors(self, start: int, stop: int) -> npt.NDArray[np.float64]:
        """By what the product with a unit row is multiplied to be a score: float64[n] of positions [start, stop)."""
        ...

    def chosen(self, start: int, stop: int) -> Mask | None:
        """Which of the positions [start, stop) may come: bool[n], None for all. Dead ones never may."""
        ...


@dataclass(frozen=True, slots=True)
class Search:
    """What an index is asked. vectors: float32[m, dim], at about unit RMS or zero; ``count``: candidates wanted
    at each end of each vector."""

    vectors: Float32
    count: int
    rows: Rows
    check: Check


@dataclass(frozen=True, slots=True)
class Candidates:
    """For each vector, positions of both ends, the most promising first, none twice at an end; at most as many as were
    asked for, fewer only where no more rows may come. ``seen_count``: rows that were looked at."""

    top: Sequence[Positions]
    bottom: Sequence[Positions]
    seen_count: int


class Index(Protocol):
    """An open index. Any thread may ask."""

    @property
    def size_bytes(self) -> int:
        """Bytes that it keeps, mapped or not."""
        ...

    def candidates(self, search: Search) -> Candidates:
        """The rows that promise the largest and the smallest scores."""
        ...


class Summable(Index, Protocol):
    """An index that can say of any row about what its score is, so that those of several checkpoints can be summed."""

    def weighted(self, vectors: Float32) -> Float32:
        """What ``products`` takes of vectors float32[m, dim], at about unit RMS or zero: float32[m, any]."""
        ...

    def products(self, weighted: Float32, start: int, stop: int) -> Float32:
        """Estimates of the products of the vectors with the unit rows at positions [start, stop): float32[m, n]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What is asked of a build. ``scorer``: one that learns nothing, or the method of ``fit``, the id of one.
    ``recall``: that its recall at 10, at 100, and of the bottom 10 reach this, None for the backend's own choice;
    ``parameters``: what the caller sets himself, checked by the backend."""

    kind: str
    scorer: str = "dot"
    fit: str = ""
    recall: float | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a build found out. ``scorers``: those that the index answers; the rest as in ``IndexRecord``."""

    parameters: dict[str, Any]
    scorers: list[str]
    oversampling: int
    query_elements: int
    recall: dict[str, float]
    warning: str = ""


@dataclass(frozen=True, slots=True)
class Changes:
    """How an index follows its checkpoint. ``row_count``: positions that it covers afterwards; ``dropped``: positions
    that are left out, the later ones move down; ``blank``: positions that stay and must hold nothing any more. Both are
    sorted, and positions of the index as it is."""

    row_count: int
    dropped: Positions
    blank: Positions


class Source(Protocol):
    """The rows that an index is built from: ``index.source``."""

    @property
    def row_count(self) -> int:
        """Positions to cover, the dead included."""
        ...

    @property
    def dim(self) -> int: ...
    @property
    def live(self) -> Positions:
        """The positions of live rows that are not all zero."""
        ...

    @property
    def rows(self) -> Rows:
        """Factors of the scorer that recall is measured for."""
        ...

    @property
    def preconditioner(self) -> Preconditioner:
        """A of that scorer: it stands on the side of the vectors that an index is asked with."""
        ...

    def pieces(self, rows_max: int) -> Iterator[tuple[int, list[npt.NDArray[np.float16]]]]:
        """The rows in order of position, as (first position, list of float16[n, dim]) of about ``rows_max`` rows, at
        unit RMS; dead ones are there, and should be blank in what is built. Says how far it is, and may raise to
        stop."""
        ...

    def check(self) -> None:
        """Says how far it is, and may raise to stop. Call it in work that takes long without reading rows."""
        ...

    def expect(self, row_count: int) -> None:
        """Announces work that takes about as long as reading so many rows."""
        ...

    def advance(self, row_count: int) -> None:
        """Says that so much of the work announced is done, and may raise to stop."""
        ...

    def views(self, positions: Positions) -> Sequence[npt.NDArray[np.float16]]:
        """Rows at some positions, which ascend, float16[dim] each, as views of mapped files."""
        ...


class Backend(Protocol):
    """A kind of index."""

    @property
    def kind(self) -> str: ...

    @property
    def can_sum(self) -> bool:
        """Whether its indexes are ``Summable``."""
        ...

    def check(self, spec: Spec, dim: int) -> None:
        """Raises InvalidInput for parameters that it does not know, MissingLibrary."""
        ...

    def build(self, source: Source, spec: Spec, draft: Draft) -> Built:
        """Writes the files. Anonymous memory stays below ``memory_bytes`` of ``index.source``."""
        ...

    def open(self, files: IndexFiles, check: Check) -> Index:
        """The index in some files. Raises Corrupt if they are none, MissingLibrary."""
        ...

    def rewrite(self, files: IndexFiles, changes: Changes, draft: Draft, check: Check) -> dict[str, Any] | None:
        """Writes the files of the index after some changes, and returns the parameters for its manifest; None if that
        cannot be done, and the index has to go."""
        ...
