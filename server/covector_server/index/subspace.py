"""The ``subspace`` index: rows projected on the directions along which most of them reach, as int8 codes.

Gradients of one model lie close to a subspace of few dimensions. What of a score lies outside is left to an exact
score of more candidates than are asked for. Codes stand for unit rows, and weights of rows are applied as they are
scanned, so one index serves every scorer with the same map A. A filter is applied there as well: candidates are the
best of the rows that match.

Files: ``basis`` (``directions.Directions.mapped``), ``deviations`` float32[rank], ``codes`` int8[rows, rank],
``factors`` float32[rows].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from covector.errors import Corrupt, InvalidInput
from covector_server.index.basis import sample_of, write_basis
from covector_server.index.changing import COPY_ROWS, changed
from covector_server.index.codes import Codes, encode, scan
from covector_server.index.contract import Built, Candidates, Changes, Check, Float32, Search, Source, Spec
from covector_server.index.directions import Directions, batch_rows, project, spans
from covector_server.index.judge import OVERSAMPLINGS, Judge, Recall, choose_oversampling, held_out
from covector_server.storage.index_files import Draft, IndexFiles, map_draft
from covector_server.storage.view import Positions

KIND = "subspace"
SCORERS = ["dot", "cosine", "tracin"]  # those whose A is the identity
RANK, RANK_MIN, RANK_MAX = 256, 16, 1024
DIM_SHARE = 16  # of dim, the rank that is begun with
DISK_SHARE = 0.1  # of the rows' bytes, that the files of that rank may take
SEED = 0


@dataclass(frozen=True, slots=True)
class SubspaceIndex:
    """``contract.Index``. The last coordinates of the codes may be left out: ``rank`` of them count."""

    directions: Directions
    deviations: Float32
    codes: Codes
    factors: Float32
    mapped_bytes: int

    @property
    def rank(self) -> int:
        """Coordinates that count."""
        return int(self.codes.shape[1])

    @property
    def size_bytes(self) -> int:
        return self.mapped_bytes + self.directions.wide_bytes

    def candidates(self, search: Search) -> Candidates:
        """See ``contract.Index``."""
        (products,) = project([search.vectors], [self.directions])
        weights = self.deviations[: self.rank] / np.float32(search.vectors.shape[1])
        queries = products[:, : self.rank] * weights
        return scan(self.codes, self.factors, queries, search)

    def cut(self, rank: int) -> SubspaceIndex:
        """The same with fewer coordinates."""
        return SubspaceIndex(self.directions, self.deviations, self.codes[:, :rank], self.factors, self.mapped_bytes)


@dataclass(frozen=True, slots=True)
class _Trial:
    """A rank that was tried, with what it recalls."""

    rank: int
    recalls: dict[int, Recall]

    def oversampling(self, wanted: float | None) -> int | None:
        return OVERSAMPLINGS[0] if wanted is None else choose_oversampling(self.recalls, wanted)


class Subspace:
    """``contract.Backend``."""

    kind = KIND

    def check(self, spec: Spec, dim: int) -> None:
        """The one parameter is ``rank``."""
        unknown = sorted(set(spec.parameters) - {"rank"})
        if unknown:
            raise InvalidInput(f"a subspace index has no parameter {unknown[0]!r}; it has rank", field=unknown[0])
        rank = spec.parameters.get("rank", 1)
        if not (isinstance(rank, int) and 1 <= rank <= min(dim, RANK_MAX)):
            raise InvalidInput(f"rank {rank!r}: give a whole number from 1 to {min(dim, RANK_MAX)}", field="rank")
        if spec.scorer not in SCORERS:
            raise InvalidInput(f"a subspace index serves {', '.join(SCORERS)}, not {spec.scorer!r}", field="scorer")

    def build(self, source: Source, spec: Spec, draft: Draft) -> Built:
        """See ``contract.Backend``."""
        sample = sample_of(source, SEED)
        judge = Judge(source, held_out(source, sample, SEED + 1))
        index, trial = _tried(source, sample, _rank_first(source, spec), judge, draft)
        wanted = None if spec.recall is None else wanted_of(spec.recall)
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
        """Codes of rows that are dropped are left out, those that are to be blank become zero."""
        rank, row_count = files.parameters["rank"], files.parameters["row_count"]
        for name in ("basis", "deviations"):
            with draft.file(name) as file:
                file.append(files.maps[name])
        for name, array in (("codes", _codes(files.maps, row_count, rank)), ("factors", _factors(files.maps))):
            with draft.file(name) as file:
                for piece in changed(array, changes, check):
                    file.append_array(piece)
        return {**files.parameters, "row_count": changes.row_count}


def wanted_of(recall: float) -> float:
    """What to reach on the collection's own rows, so that others find the recall that was asked for: half of what may
    be missed."""
    return (1 + recall) / 2


def _rank_first(source: Source, spec: Spec) -> int:
    return int(min(spec.parameters.get("rank") or _rank_usual(source), _rank_max(source)))


def _rank_usual(source: Source) -> int:
    """A share of dim, and no more than makes the files a share of the rows: few rows bear few directions."""
    by_dim = min(RANK, source.dim // DIM_SHARE)
    by_disk = int(DISK_SHARE * 2 * source.dim * source.row_count / (2 * source.dim + source.row_count))
    return max(min(by_dim, by_disk), 2 * RANK_MIN)


def _rank_max(source: Source) -> int:
    return max(1, min(RANK_MAX, source.dim, len(source.live)))


def _tried(source: Source, sample: Positions, rank: int, judge: Judge, draft: Draft) -> tuple[SubspaceIndex, _Trial]:
    """Writes all files, of a lower rank where the rows have fewer directions, and has them judged."""
    _write(source, sample, rank, judge, draft)
    index = _open_draft(draft, source)
    return index, _Trial(index.rank, judge.recalls(index))


def _write(source: Source, sample: Positions, rank: int, judge: Judge, draft: Draft) -> None:
    with draft.file("basis") as file:
        deviations = write_basis(source, sample, rank, file)
    rank = len(deviations)
    with draft.file("deviations") as file:
        file.append_array(deviations)
    draft.step("index.basis")
    sets = [Directions.mapped(map_draft(draft, "basis"), rank, source.dim)]
    sets += [] if judge.directions is None else [judge.directions]
    with draft.file("codes") as codes_file, draft.file("factors") as factors_file:
        for first, rows in source.pieces(batch_rows(source.dim)):
            products, *judged = project(rows, sets)
            codes, factors = encode(products, deviations)
            chosen = source.rows.chosen(first, first + len(codes))
            if chosen is not None:
                codes[~chosen], factors[~chosen] = 0, 0.0
            codes_file.append_array(codes)
            factors_file.append_array(factors)
            for scores in judged:
                judge.offer(first, scores)
    draft.step("index.coded")


def _narrowest(judge: Judge, index: SubspaceIndex, trial: _Trial, wanted: float) -> _Trial:
    """The smallest of the halved ranks that does as well, with the oversampling that was enough."""
    enough = trial.oversampling(wanted)
    while enough == OVERSAMPLINGS[0] and trial.rank // 2 >= RANK_MIN:
        half = _Trial(trial.rank // 2, judge.recalls(index.cut(trial.rank // 2)))
        if half.oversampling(wanted) != enough:
            break
        trial = half
    return trial


def _built(trial: _Trial, spec: Spec, source: Source) -> Built:
    wanted = trial.oversampling(None if spec.recall is None else wanted_of(spec.recall))
    oversampling = wanted or trial.oversampling(spec.recall) or OVERSAMPLINGS[-1]
    recall = trial.recalls[oversampling]
    warning = ""
    if spec.recall is not None and recall.least < spec.recall:
        warning = f"recall {spec.recall:g} was asked for, {recall.least:.3f} is what rank {trial.rank} reaches"
    return Built(
        parameters={"rank": trial.rank, "dim": source.dim, "row_count": source.row_count},
        scorers=SCORERS,
        oversampling=oversampling,
        query_elements=source.row_count * trial.rank * 2 // 3 + trial.rank * source.dim,  # measured: what a code costs
        recall=recall.as_json(),
        warning=warning,
    )


def _discard(draft: Draft) -> None:
    for name in ("basis", "deviations", "codes", "factors"):
        draft.discard(name)


def _cut(draft: Draft, index: SubspaceIndex, rank: int, source: Source) -> None:
    """Writes the files anew with fewer coordinates."""
    narrow = index.cut(rank)
    for name in ("basis", "deviations", "codes"):
        draft.discard(name)  # what is mapped stays readable
    with draft.file("basis") as file:
        for number, _ in enumerate(spans(source.dim)):
            file.append_array(index.directions.narrow_block(number)[:rank])
    with draft.file("deviations") as file:
        file.append_array(narrow.deviations[:rank])
    with draft.file("codes") as file:
        for start in range(0, len(narrow.codes), COPY_ROWS):
            file.append_array(narrow.codes[start : start + COPY_ROWS])


def _open_draft(draft: Draft, source: Source) -> SubspaceIndex:
    maps = {name: map_draft(draft, name) for name in ("basis", "deviations", "codes", "factors")}
    rank = len(maps["deviations"]) // 4
    return _opened(maps, {"rank": rank, "dim": source.dim, "row_count": source.row_count}, 0)


def _opened(maps: dict[str, memoryview], parameters: dict[str, Any], mapped_bytes: int) -> SubspaceIndex:
    try:
        rank, dim, row_count = (parameters[name] for name in ("rank", "dim", "row_count"))
        deviations, factors = np.frombuffer(maps["deviations"], "<f4"), _factors(maps)
        if (len(deviations), len(factors)) != (rank, row_count):
            raise ValueError(f"{len(factors)} rows of rank {len(deviations)}, not {row_count} of {rank}")
        if len(maps["basis"]) != 2 * rank * dim:
            raise ValueError(f"{len(maps['basis'])} bytes of directions are not {rank} of dim {dim}")
        directions = Directions.mapped(maps["basis"], rank, dim)
        return SubspaceIndex(directions, deviations, _codes(maps, row_count, rank), factors, mapped_bytes)
    except (KeyError, ValueError, TypeError) as error:
        raise Corrupt(f"the files of a subspace index do not fit together: {error}; build it again") from error


def _codes(maps: dict[str, memoryview], row_count: int, rank: int) -> Codes:
    return np.frombuffer(maps["codes"], np.int8).reshape(row_count, rank)


def _factors(maps: dict[str, memoryview]) -> Float32:
    return np.frombuffer(maps["factors"], "<f4")
