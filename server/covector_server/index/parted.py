"""The kinds of index that stand on a library's structures: ``scann`` and ``annoy``.

Rows are coded as in ``subspace``, with the scorer's weights, so such an index answers the scorers of one (A, w). The
structure of each part is built from the codes alone: it can be built again without the rows when some are erased, and
no library sees what is stored. The rank of the codes, the number of trees, the share of the rows looked at and the
candidates a hit are the smallest tried that reach the recall asked for.

Files: those of ``coded`` and ``part_files``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from covector.attribution.scoring import scorer_named, scorer_names
from covector.errors import Corrupt, InvalidInput, near_matches
from covector_server.index import coded as codes
from covector_server.index.basis import sample_of
from covector_server.index.coded import Coded
from covector_server.index.contract import Built, Changes, Check, MissingLibrary, Source, Spec
from covector_server.index.judge import OVERSAMPLINGS, Judge, Recall, held_out
from covector_server.index.map_basis import rank_most
from covector_server.index.part_files import (
    LIST,
    PartEntry,
    PartWriter,
    changed_parts,
    open_parts,
    part_file,
)
from covector_server.index.parts import Library, PartedIndex, Setting
from covector_server.index.source import memory_bytes
from covector_server.index.subspace import wanted_of
from covector_server.metadata.records import OVERSAMPLING_USUAL
from covector_server.storage.index_files import Draft, IndexFiles, map_draft

RANK, RANK_MIN, RANK_MAX, DIM_SHARE = 256, 32, 1024, 16
TREES_MAX = 1000
RECALL_USUAL = 0.95  # aimed at where none is asked for
CODES_OVERSAMPLING = 20  # with which the codes alone must reach what is asked for
CHILD_BYTES = 96 << 20  # of a process with a library, before it builds
HITS = 10  # of the query that costs are of
SEED = 0


@dataclass(frozen=True, slots=True)
class _Trial:
    """Settings that were tried, with what they recall."""

    setting: Setting
    effort: float
    oversampling: int
    recall: Recall


class Parted:
    """``contract.Backend`` on a library. What it proposes is not all rows, so it cannot sum."""

    can_sum = False

    def __init__(self, library: Library) -> None:
        self._library = library

    @property
    def kind(self) -> str:
        return self._library.kind

    def check(self, spec: Spec, dim: int) -> None:
        """The parameters are ``rank``, and ``trees`` where the library has them."""
        bounds = {"rank": min(dim, RANK_MAX), **({"trees": TREES_MAX} if self._library.has_trees else {})}
        for name, value in spec.parameters.items():
            if name not in bounds:
                known = near_matches(name, bounds)
                raise InvalidInput(f"a {self.kind} index has no parameter {name!r}; {known}", field=name)
            if not (isinstance(value, int) and 1 <= value <= bounds[name]):
                raise InvalidInput(f"{name} {value!r}: give a whole number from 1 to {bounds[name]}", field=name)
        if not spec.fit:
            scorer_named(spec.scorer)
        self._library.require()

    def build(self, source: Source, spec: Spec, draft: Draft) -> Built:
        """See ``contract.Backend``."""
        wanted = wanted_of(spec.recall or RECALL_USUAL)
        sample = sample_of(source, SEED)
        judge = Judge(source, held_out(source, sample, SEED + 1))
        coded = _Coding(source, spec, draft, judge, wanted).run()
        budget = memory_bytes(source.row_count, source.dim) // 2 - CHILD_BYTES
        settings = self._settings(spec, coded.rank)
        for setting in settings:
            source.expect(source.row_count)
            writer = PartWriter(self._library, draft, coded, setting, source.advance, source.check)
            entries = writer.write_all(self._library.part_rows(setting.width, budget))
            trial = self._tried(self._draft_index(writer, entries), setting, judge, wanted)
            if trial.recall.least >= wanted or setting == settings[-1]:
                break
            writer.discard(entries)
        draft.step("index.parts")
        return self._built(trial, coded, spec, source)

    def open(self, files: IndexFiles, check: Check) -> PartedIndex:
        """See ``contract.Backend``."""
        coded = codes.opened(files.maps, files.parameters, files.size_bytes)
        try:
            width, effort = int(files.parameters["width"]), float(files.parameters["effort"])
        except (KeyError, ValueError, TypeError) as error:
            raise Corrupt(f"an index without its settings: {error}; build it again") from error
        return self._index(coded, width, files, effort, check)

    def rewrite(self, files: IndexFiles, changes: Changes, draft: Draft, check: Check) -> dict[str, Any] | None:
        """Codes of rows that are dropped are left out, those that are to be blank become zero, and every part that has
        one of them is built again from its codes. Without the library the index has to go."""
        try:
            self._library.require()
        except MissingLibrary:
            return None
        codes.rewrite(files.maps, files.parameters, changes, draft, check)
        parameters = {**files.parameters, "row_count": changes.row_count}
        coded = codes.opened({name: map_draft(draft, name) for name in codes.FILES}, parameters, 0)
        setting = Setting(parameters["width"], parameters["trees"])
        writer = PartWriter(self._library, draft, coded, setting, lambda row_count: check(), check)
        changed_parts(writer, files, changes)
        return parameters

    def _settings(self, spec: Spec, rank: int) -> list[Setting]:
        """Settings of a build that differ where there are so many coordinates, the cheapest first."""
        settings = [replace(setting, width=min(setting.width, rank)) for setting in self._library.settings]
        if "trees" in spec.parameters:
            settings = [replace(setting, trees=spec.parameters["trees"]) for setting in settings]
        return list(dict.fromkeys(settings))

    def _draft_index(self, writer: PartWriter, entries: list[PartEntry]) -> PartedIndex:
        names = [part_file(number, name) for number, entry in enumerate(entries) for name in entry.files]
        maps = {name: map_draft(writer.draft, name) for name in [LIST, *names]}
        files = IndexFiles(writer.draft.directory, {}, maps)
        return self._index(writer.coded, writer.setting.width, files, 1.0, writer.check)

    def _index(self, coded: Coded, width: int, files: IndexFiles, effort: float, check: Check) -> PartedIndex:
        parts = list(open_parts(self._library, coded, width, files, check))
        return PartedIndex(coded, parts, width, self._library.spread, effort)

    def _tried(self, index: PartedIndex, setting: Setting, judge: Judge, wanted: float) -> _Trial:
        """The cheapest settings that reach what is wanted, else those that reach most."""
        efforts = self._library.efforts
        best = None
        for oversampling, effort in [
            *((OVERSAMPLING_USUAL, effort) for effort in efforts),
            *((oversampling, efforts[-1]) for oversampling in OVERSAMPLINGS if oversampling > OVERSAMPLING_USUAL),
        ]:
            judge.source.check()
            trial = _Trial(setting, effort, oversampling, judge.recall(replace(index, effort=effort), oversampling))
            if best is None or trial.recall.least > best.recall.least:
                best = trial
            if trial.recall.least >= wanted:
                break
        assert best is not None
        return best

    def _built(self, trial: _Trial, coded: Coded, spec: Spec, source: Source) -> Built:
        recall, rank, warning = trial.recall, coded.rank, ""
        if spec.recall is not None and recall.least < spec.recall:
            warning = (
                f"recall {spec.recall:g} was asked for, {recall.least:.3f} is what {self.kind} reaches at rank {rank}"
            )
        proposed_elements = 2 * self._library.spread * trial.oversampling * HITS * rank  # of codes, each read alone
        return Built(
            parameters={
                "rank": rank,
                "dim": source.dim,
                "row_count": source.row_count,
                "effort": trial.effort,
                "width": trial.setting.width,
                "trees": trial.setting.trees,
            },
            scorers=[spec.scorer] if spec.fit else alike(spec.scorer),
            oversampling=trial.oversampling,
            query_elements=int(
                source.row_count * self._library.cost(trial.setting.width, trial.effort)
                + rank * source.dim
                + proposed_elements
            ),
            recall=recall.as_json(),
            warning=warning,
        )


@dataclass(frozen=True, slots=True)
class _Coding:
    """Codes of a rank that reaches what is wanted, if any does."""

    source: Source
    spec: Spec
    draft: Draft
    judge: Judge
    wanted: float

    def run(self) -> Coded:
        sample = sample_of(self.source, SEED)
        most = min(RANK_MAX, rank_most(self.source.preconditioner, self.source.dim))
        rank_max = max(1, min(most, self.source.dim, len(self.source.live)))
        for rank in self._ranks(rank_max):
            written = codes.write(self.source, sample, rank, self.judge, self.draft)
            coded = self._opened(written)
            if written < rank or rank == rank_max or self._is_enough(coded):
                return coded
            for name in codes.FILES:
                self.draft.discard(name)
        raise AssertionError("the last rank ends the loop")

    def _ranks(self, rank_max: int) -> Iterator[int]:
        if "rank" in self.spec.parameters:
            rank_max = min(rank_max, self.spec.parameters["rank"])
        usual = max(RANK_MIN, min(RANK, self.source.dim // DIM_SHARE))
        rank = min(rank_max, self.spec.parameters.get("rank") or usual)
        while rank < rank_max:
            yield rank
            rank *= 2
        yield rank_max

    def _opened(self, rank: int) -> Coded:
        parameters = {"rank": rank, "dim": self.source.dim, "row_count": self.source.row_count}
        return codes.opened({name: map_draft(self.draft, name) for name in codes.FILES}, parameters, 0)

    def _is_enough(self, coded: Coded) -> bool:
        return self.judge.recalls(coded)[CODES_OVERSAMPLING].least >= self.wanted


def alike(name: str) -> list[str]:
    """The scorers with the same map and the same weights as one of them."""
    mine = scorer_named(name)
    others = ((other, scorer_named(other)) for other in scorer_names())
    return [other for other, one in others if (one.transform, one.row_factor) == (mine.transform, mine.row_factor)]
