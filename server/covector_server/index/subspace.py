"""The ``subspace`` index: rows projected on the directions along which most of them reach, as codes of a few bits.

Gradients of one model lie close to a subspace of few dimensions. What of a score lies outside is left to an exact
score of more candidates than are asked for. Codes stand for unit rows, and weights of rows are applied as they are
scanned, so one index serves every scorer with the same map A. A filter is applied there as well: candidates are the
best of the rows that match.

For the identity, codes have 8 bits and directions are those of a sample. With a map, what counts are whitened rows,
whose spectrum is flat: the rank is larger, four bits are enough then, and directions are the map's own
(``map_basis``).

Files: ``basis``, ``deviations`` and ``gains`` (``basis``), ``codes`` (``codes.Coding``), ``factors`` float32[rows].
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np

from covector.attribution.preconditioner import Identity
from covector.errors import Corrupt, InvalidInput
from covector_server.index import basis as bases
from covector_server.index.basis import OpenBasis, open_basis, sample_of, write_basis
from covector_server.index.changing import COPY_ROWS, changed
from covector_server.index.codes import Coding, Stored, scan
from covector_server.index.contract import Built, Candidates, Changes, Check, Float32, Search, Source, Spec
from covector_server.index.directions import batch_rows, project, spans
from covector_server.index.judge import OVERSAMPLINGS, Judge, Recall, choose_oversampling, held_out
from covector_server.index.map_basis import rank_most
from covector_server.metadata.records import OVERSAMPLING_USUAL
from covector_server.storage.index_files import Draft, IndexFiles, map_draft
from covector_server.storage.view import Positions

KIND = "subspace"
SCORERS = ["dot", "cosine", "tracin"]  # those whose A is the identity
RANK, RANK_MIN, RANK_MAX = 256, 16, 1024
DIM_SHARE = 16  # of dim, the rank that is begun with
DISK_SHARE = 0.1  # of the rows' bytes, that the files of that rank may take
MAP_RANK_MAX = 2048  # with a map
MAP_DIM_SHARE = 5 / 16  # of dim, the same with a map
MAP_RECALL = 0.98  # aimed at with a map, where none is asked for
RECALL = 0.99  # without one, that candidates must reach so that no more are drawn
OVERSAMPLING_MOST = 20  # where no recall is asked for
ELEMENTS = {8: 2 / 3, 4: 0.3}  # that a code costs, as measured
SEED = 0


@dataclass(frozen=True, slots=True)
class SubspaceIndex:
    """``contract.Index``. The last coordinates of the codes may be left out: ``rank`` of them count."""

    basis: OpenBasis
    codes: Stored
    factors: Float32
    coding: Coding
    rank: int
    mapped_bytes: int

    @property
    def size_bytes(self) -> int:
        return self.mapped_bytes + self.basis.directions.wide_bytes

    def candidates(self, search: Search) -> Candidates:
        """See ``contract.Index``."""
        return scan(self.codes, self.factors, self.weighted(search.vectors), search, self.coding)

    def weighted(self, vectors: Float32) -> Float32:
        """See ``contract.Summable``: what codes are multiplied with, float32[m, rank]."""
        return self.basis.weighted(vectors)[:, : self.rank]

    def products(self, weighted: Float32, start: int, stop: int) -> Float32:
        """See ``contract.Summable``."""
        return self.coding.products(self.codes[start:stop], weighted) * self.factors[start:stop]

    def cut(self, rank: int) -> SubspaceIndex:
        """The same with fewer coordinates, a multiple of ``Coding.rank_step``."""
        codes = self.codes[:, : self.coding.row_bytes(rank)]
        return SubspaceIndex(self.basis, codes, self.factors, self.coding, rank, self.mapped_bytes)


@dataclass(frozen=True, slots=True)
class _Trial:
    """A rank that was tried, with what it recalls."""

    rank: int
    recalls: dict[int, Recall]

    def oversampling(self, wanted: float | None) -> int | None:
        """The least that reaches what is wanted. Without a wish, the usual is never exceeded."""
        if wanted is None:
            enough = choose_oversampling(self.recalls, RECALL)
            return min(enough or OVERSAMPLING_MOST, OVERSAMPLING_MOST)
        return choose_oversampling(self.recalls, wanted)

    def is_enough(self, wanted: float) -> bool:
        """Whether the usual oversampling reaches what is wanted."""
        return (self.oversampling(wanted) or math.inf) <= OVERSAMPLING_USUAL


class Subspace:
    """``contract.Backend``."""

    kind = KIND
    can_sum = True

    def check(self, spec: Spec, dim: int) -> None:
        """The one parameter is ``rank``."""
        unknown = sorted(set(spec.parameters) - {"rank"})
        if unknown:
            raise InvalidInput(f"a subspace index has no parameter {unknown[0]!r}; it has rank", field=unknown[0])
        rank, most = spec.parameters.get("rank", 1), min(dim, MAP_RANK_MAX if spec.fit else RANK_MAX)
        if not (isinstance(rank, int) and 1 <= rank <= most):
            raise InvalidInput(f"rank {rank!r}: give a whole number from 1 to {most}", field="rank")
        if not spec.fit and spec.scorer not in SCORERS:
            raise InvalidInput(
                f"a subspace index serves {', '.join(SCORERS)} and fits, not {spec.scorer!r}", field="scorer"
            )

    def build(self, source: Source, spec: Spec, draft: Draft) -> Built:
        """See ``contract.Backend``."""
        sample = sample_of(source, SEED)
        judge = Judge(source, held_out(source, sample, SEED + 1))
        index, trial = _tried(source, sample, _rank_first(source, spec), judge, draft)
        wanted = _wanted(source, spec)
        if "rank" not in spec.parameters and wanted is not None:
            while trial.oversampling(wanted) is None and trial.rank < _rank_max(source):
                _discard(draft)
                wider = min(2 * trial.rank, _rank_max(source))
                index, trial = _tried(source, sample, wider, judge, draft)
                if index.rank < wider:  # the rows have no more directions
                    break
            trial = _narrowest(judge, index, trial, wanted)
        if trial.rank < index.rank:
            _cut(draft, index, trial.rank, source)
        return _built(trial, spec, source)

    def open(self, files: IndexFiles, check: Check) -> SubspaceIndex:
        """See ``contract.Backend``."""
        return _opened(files.maps, files.parameters, files.size_bytes)

    def rewrite(self, files: IndexFiles, changes: Changes, draft: Draft, check: Check) -> dict[str, Any]:
        """Codes of rows that are dropped are left out, those that are to be blank become zero, and their factors."""
        old = _opened(files.maps, files.parameters, 0)
        bases.copy_basis(draft, files.maps)
        for name, array in (("codes", old.codes), ("factors", old.factors)):
            with draft.file(name) as file:
                for piece in changed(array, changes, check):
                    file.append_array(piece)
        return {**files.parameters, "row_count": changes.row_count}


def wanted_of(recall: float) -> float:
    """What to reach on the collection's own rows, so that others find the recall that was asked for: half of what may
    be missed."""
    return (1 + recall) / 2


def _wanted(source: Source, spec: Spec) -> float | None:
    """The recall to reach, None where the rank is the backend's own choice."""
    recall = spec.recall or (MAP_RECALL if _has_map(source) else None)
    return None if recall is None else wanted_of(recall)


def _has_map(source: Source) -> bool:
    return not isinstance(source.preconditioner, Identity)


def _coding(source: Source) -> Coding:
    return Coding(4 if _has_map(source) else 8)


def _rank_first(source: Source, spec: Spec) -> int:
    return int(min(spec.parameters.get("rank") or _rank_usual(source), _rank_max(source)))


def _rank_usual(source: Source) -> int:
    """A share of dim; and without a map, no more than makes the files a share of the rows: few rows bear few
    directions."""
    if _has_map(source):
        step = _coding(source).rank_step
        return max(1, -(-int(MAP_DIM_SHARE * source.dim) // step)) * step
    by_dim = min(RANK, source.dim // DIM_SHARE)
    by_disk = int(DISK_SHARE * 2 * source.dim * source.row_count / (2 * source.dim + source.row_count))
    return max(min(by_dim, by_disk), 2 * RANK_MIN)


def _rank_max(source: Source) -> int:
    most = min(MAP_RANK_MAX, rank_most(source.preconditioner, source.dim)) if _has_map(source) else RANK_MAX
    return max(1, min(most, source.dim, len(source.live)))


def _tried(source: Source, sample: Positions, rank: int, judge: Judge, draft: Draft) -> tuple[SubspaceIndex, _Trial]:
    """Writes all files, of a lower rank where the rows have fewer directions, and has them judged."""
    _write(source, sample, rank, judge, draft)
    index = _open_draft(draft, source)
    return index, _Trial(index.rank, judge.recalls(index))


def _write(source: Source, sample: Positions, rank: int, judge: Judge, draft: Draft) -> None:
    basis, coding = write_basis(source, sample, rank, draft), _coding(source)
    draft.step("index.basis")
    sets = [basis.rows, *([] if judge.directions is None else [judge.directions])]
    with draft.file("codes") as codes_file, draft.file("factors") as factors_file:
        for first, rows in source.pieces(batch_rows(source.dim)):
            products, *judged = project(rows, sets)
            codes, factors = coding.encode(products, basis.row_units)
            chosen = source.rows.chosen(first, first + len(codes))
            if chosen is not None:
                codes[~chosen], factors[~chosen] = 0, 0.0
            codes_file.append_array(coding.stored(codes))
            factors_file.append_array(factors)
            for scores in judged:
                judge.offer(first, scores)
    draft.step("index.coded")


def _narrowest(judge: Judge, index: SubspaceIndex, trial: _Trial, wanted: float) -> _Trial:
    """The smallest of the ranks that are tried which does as well, with the oversampling that was enough."""
    if not trial.is_enough(wanted):
        return trial
    ranks = _narrower(index)
    found = {trial.rank: trial}

    def is_enough(rank: int) -> bool:
        found[rank] = _Trial(rank, judge.recalls(index.cut(rank)))
        return found[rank].is_enough(wanted)

    place = bisect_left(ranks, True, key=is_enough)  # a rank does no better than a larger one, or hardly
    return found[ranks[place]] if place < len(ranks) else trial


def _narrower(index: SubspaceIndex) -> list[int]:
    """Ranks below that of the index, ascending: halves, or with codes that are packed, whole blocks."""
    if index.coding.rank_step > 1:
        return list(range(index.coding.rank_step, index.rank, index.coding.rank_step))
    halves = [index.rank >> shift for shift in range(1, index.rank.bit_length())]
    return [rank for rank in reversed(halves) if rank >= RANK_MIN]


def _built(trial: _Trial, spec: Spec, source: Source) -> Built:
    wanted = trial.oversampling(_wanted(source, spec))
    oversampling = wanted or trial.oversampling(spec.recall) or OVERSAMPLINGS[-1]
    recall = trial.recalls[oversampling]
    warning = ""
    if spec.recall is not None and recall.least < spec.recall:
        warning = f"recall {spec.recall:g} was asked for, {recall.least:.3f} is what rank {trial.rank} reaches"
    return Built(
        parameters={
            "rank": trial.rank,
            "dim": source.dim,
            "row_count": source.row_count,
            "bits": _coding(source).bits,
        },
        scorers=[spec.scorer] if spec.fit else SCORERS,
        oversampling=oversampling,
        query_elements=int(source.row_count * trial.rank * ELEMENTS[_coding(source).bits]) + trial.rank * source.dim,
        recall=recall.as_json(),
        warning=warning,
    )


def _discard(draft: Draft) -> None:
    for name in (*bases.FILES, "codes", "factors"):
        draft.discard(name)


def _cut(draft: Draft, index: SubspaceIndex, rank: int, source: Source) -> None:
    """Writes the files anew with fewer coordinates."""
    narrow, basis = index.cut(rank), index.basis
    for name in (*bases.FILES, "codes"):
        draft.discard(name)  # what is mapped stays readable
    with draft.file("basis") as file:
        for number, _ in enumerate(spans(source.dim)):
            file.append_array(basis.directions.narrow_block(number)[:rank])
    for name, column in (("deviations", basis.deviations), ("gains", basis.gains)):
        with draft.file(name) as file:
            file.append_array(column[:rank])
    with draft.file("codes") as file:
        for start in range(0, len(narrow.codes), COPY_ROWS):
            file.append_array(narrow.codes[start : start + COPY_ROWS])


def _open_draft(draft: Draft, source: Source) -> SubspaceIndex:
    maps = {name: map_draft(draft, name) for name in (*bases.FILES, "codes", "factors")}
    rank = len(maps["deviations"]) // 4
    facts = {"rank": rank, "dim": source.dim, "row_count": source.row_count, "bits": _coding(source).bits}
    return _opened(maps, facts, 0)


def _opened(maps: dict[str, memoryview], parameters: dict[str, Any], mapped_bytes: int) -> SubspaceIndex:
    try:
        rank, dim, row_count = (parameters[name] for name in ("rank", "dim", "row_count"))
        coding = Coding(parameters.get("bits", 8))
        factors = np.frombuffer(maps["factors"], "<f4")
        if len(factors) != row_count:
            raise ValueError(f"{len(factors)} rows, not {row_count}")
        codes = coding.mapped(maps["codes"], row_count, rank)
        return SubspaceIndex(open_basis(maps, rank, dim), codes, factors, coding, rank, mapped_bytes)
    except (KeyError, ValueError, TypeError) as error:
        raise Corrupt(f"the files of a subspace index do not fit together: {error}; build it again") from error
