"""Runs a question: filter, scan, re-score, both ends; or the scores of every row."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from covector.attribution.scoring import to_float32
from covector.errors import Corrupt, InvalidInput
from covector.types import Stage
from covector_server.index.cache import IndexCache
from covector_server.index.contract import Index, Summable
from covector_server.limits import Limits
from covector_server.metadata.records import IndexRecord
from covector_server.query.cancellation import Cancelled, check_cancelled, never
from covector_server.query.candidates import IndexSearch
from covector_server.query.choosing import choose
from covector_server.query.field_codes import field_codes
from covector_server.query.filter import find_rows
from covector_server.query.grouping import GroupedAnswer, Groups, select_groups
from covector_server.query.omission import Omissions, settled
from covector_server.query.planner import Plan, plan_question
from covector_server.query.question import Ends, Question, ScoreBlock, TopKAnswer
from covector_server.query.scan import Mask, Scan, blocks_by_row_id
from covector_server.query.stored_queries import SelfScan, self_scores, self_terms
from covector_server.query.summed import SummedSearch
from covector_server.query.topk import Selection
from covector_server.query.workers import Workers
from covector_server.storage.damage import Damage, OnDamage
from covector_server.storage.view import CollectionView

INDEX_SEPARATOR: Final = "+"  # between the ids of indexes that were summed


@dataclass(frozen=True, slots=True)
class ScoreStream:
    """The scores of all rows, in blocks with ascending row ids; ``blocks`` can be read once. ``omissions`` is where the
    reader finds what was left out, None if damage raises Corrupt."""

    result_count: int
    scorer: str
    blocks: Iterator[ScoreBlock]
    omissions: Omissions | None


def top_k(
    view: CollectionView,
    question: Question,
    k: int,
    *,
    offset: int = 0,
    limits: Limits | None = None,
    cancelled: Cancelled = never,
    workers: Workers | None = None,
    indexes: IndexCache | None = None,
) -> TopKAnswer:
    """Both ends, k rows each behind the best ``offset``, of every result; exact, or by an index where ``indexes`` are
    given and one costs less. ``workers`` scan, or this thread does.

    The stages count rows over all results: a row that is re-scored for two of them counts twice. Raises as
    ``plan_question`` and ``find_rows`` do, LimitExceeded for too large a k, Unavailable once ``cancelled`` says so,
    and Corrupt if a stored chunk is, unless the question says that damaged rows are left out.
    """
    limits = limits or Limits()
    plan = plan_top_k(view, question, k, limits, offset=offset)
    k += offset  # ranks are known from the first on
    omissions = _omissions(question, limits)
    mask, filter_stage = _filter(view, question, limits, cancelled, on_damage=_sink(omissions))
    asked = _Asked(view, question, plan, k, mask, filter_stage, cancelled, workers)
    answer, reason = _by_index(asked, indexes) if indexes is not None else (None, "")
    if answer is not None:
        damages = () if omissions is None else omissions.take()
        return replace(answer, results=tuple(ends.behind(offset) for ends in answer.results), damages=damages)

    def attempt(
        mask: Mask | None, on_damage: OnDamage | None, lost: set[int]
    ) -> tuple[tuple[tuple[Ends, ...], tuple[Stage, Stage]], bool]:
        scan = Scan(plan, mask, view.row_id_count, cancelled, on_damage, workers)
        results, stages, all_named = _select(view, scan, k, lost)
        return (results, stages), all_named

    (results, stages), damages = settled(view, mask, omissions, cancelled, attempt)
    results = tuple(ends.behind(offset) for ends in results)
    return TopKAnswer(results, (filter_stage, *stages), question.scorer, damages, reason=reason)


def top_k_by_index(
    view: CollectionView,
    question: Question,
    k: int,
    indexes: IndexCache,
    *,
    offset: int = 0,
    limits: Limits | None = None,
    cancelled: Cancelled = never,
    workers: Workers | None = None,
) -> tuple[TopKAnswer | None, str]:
    """The answer of an index to a question about all rows, or why exact search is the better way. Raises as ``top_k``
    does."""
    plan = plan_top_k(view, question, k, limits or Limits(), offset=offset)
    everything = Stage("filter", view.row_count, view.row_count, 0.0)
    asked = _Asked(view, question, plan, k + offset, None, everything, cancelled, workers)
    answer, reason = _by_index(asked, indexes)
    if answer is None:
        return None, reason
    return replace(answer, results=tuple(ends.behind(offset) for ends in answer.results)), ""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A checked question whose filter was applied."""

    view: CollectionView
    question: Question
    plan: Plan
    k: int
    mask: Mask | None
    filter_stage: Stage
    cancelled: Cancelled
    workers: Workers | None


def _by_index(asked: _Asked, indexes: IndexCache) -> tuple[TopKAnswer | None, str]:
    """The answer of an index, or why there is none. What an index leads to may be damaged: if damaged rows are to be
    left out, exact search finds all of them."""
    question = asked.question
    match_count = None if asked.mask is None else asked.filter_stage.rows_out
    choice = choose(asked.view, asked.plan, question, asked.k, match_count, indexes)
    if not choice.listed:
        return None, choice.reason
    opened: list[Index] = []
    for listed in choice.listed:
        index = indexes.open(listed, lambda: check_cancelled(asked.cancelled))
        if index is None:
            return None, f"index {listed.record.id} {indexes.trouble(listed)}"
        opened.append(index)
    records = [listed.record for listed in choice.listed]
    name = INDEX_SEPARATOR.join(record.id for record in records)
    try:
        results, stages = _searched(asked, records, opened)
    except Corrupt as error:
        if question.damaged == "fail":
            raise
        return None, f"rows that index {name} led to are damaged: {error.message}"
    stages = (asked.filter_stage, *stages)
    return TopKAnswer(results, stages, question.scorer, index=name, reason=choice.reason), ""


def _searched(
    asked: _Asked, records: Sequence[IndexRecord], opened: Sequence[Index]
) -> tuple[tuple[Ends, ...], tuple[Stage, ...]]:
    """The ends of each result and the stages, by an index of each checkpoint."""

    def exact_search(plan: Plan, mask: Mask | None) -> tuple[tuple[Ends, ...], tuple[Stage, ...], bool]:
        scan = Scan(plan, mask, asked.view.row_id_count, asked.cancelled, workers=asked.workers)
        return _select(asked.view, scan, asked.k)

    if len(records) == 1:
        search = IndexSearch(asked.view, asked.plan, asked.k, asked.mask, records[0], asked.cancelled)
        return search.run(opened[0], exact_search)
    summed = SummedSearch(asked.view, asked.plan, asked.k, asked.mask, records, asked.cancelled)
    return summed.run([cast("Summable", index) for index in opened], exact_search)


def grouped(
    view: CollectionView,
    question: Question,
    k: int,
    field: str,
    *,
    limits: Limits | None = None,
    cancelled: Cancelled = never,
    workers: Workers | None = None,
) -> GroupedAnswer:
    """Both ends of the rows of each value of a metadata field, k rows each, and what the rows of each score together.

    Exact; raises as ``top_k`` and ``field_codes`` do.
    """
    limits = limits or Limits()
    plan = plan_top_k(view, question, k, limits)
    omissions = _omissions(question, limits)
    mask, filter_stage = _filter(view, question, limits, cancelled, on_damage=_sink(omissions))
    coded = field_codes(view, field, limits, cancelled, _sink(omissions))
    hit_count = 2 * k * plan.result_count * len(coded.values)
    limits.check("result_hits", hit_count, "hits of all results and groups together")

    def attempt(
        mask: Mask | None, on_damage: OnDamage | None, lost: set[int]
    ) -> tuple[tuple[Groups, tuple[Stage, Stage]], bool]:
        scan = Scan(plan, mask, view.row_id_count, cancelled, on_damage, workers)
        return select_groups(view, scan, k, coded, lost)

    (groups, stages), damages = settled(view, mask, omissions, cancelled, attempt)
    return GroupedAnswer(groups, (filter_stage, *stages), question.scorer, damages)


def plan_top_k(view: CollectionView, question: Question, k: int, limits: Limits, *, offset: int = 0) -> Plan:
    """The plan of a question for k rows at each end. Raises as ``top_k`` does for what is wrong with the question."""
    if k < 1:
        raise InvalidInput(f"k must be at least 1, not {k}", field="k")
    k += offset
    limits.check("hits", k, "too many hits are asked for")
    plan = plan_question(view, question, limits)
    limits.check("result_hits", 2 * k * plan.result_count, "hits of all results together")
    return plan


def _select(
    view: CollectionView, scan: Scan, k: int, lost: set[int] | None = None
) -> tuple[tuple[Ends, ...], tuple[Stage, Stage], bool]:
    """Scans and re-scores: the ends of each result, the two stages, and whether every key that was needed could be
    read. ``lost``: as in ``Selection``."""
    unnamed: list[Damage] = []
    note = None if scan.on_damage is None else unnamed.append
    selection = Selection(scan, k, lambda row_ids: view.keys_of(row_ids, note), lost)
    started = time.perf_counter()
    selection.run()
    scanned = time.perf_counter()
    results = selection.ends()
    return results, stages_of(selection, results, scanned - started, time.perf_counter() - scanned), not unnamed


def stages_of(selection: Selection, results: tuple[Ends, ...], scan_s: float, rescore_s: float) -> tuple[Stage, Stage]:
    """What an exact search did. The few rows that are re-scored while the scan goes on count as its time."""
    hit_count = sum(len(end.keys) for ends in results for end in (ends.proponents, ends.opponents))
    return (
        Stage("scan", selection.scanned_count, selection.rescored_count, scan_s),
        Stage("rescore", selection.rescored_count, hit_count, rescore_s),
    )


def scores(
    view: CollectionView,
    question: Question,
    *,
    limits: Limits | None = None,
    cancelled: Cancelled = never,
    workers: Workers | None = None,
) -> ScoreStream:
    """The scores of every row that has a gradient, within the error of float32 products; see ``kernel``. A score past
    the range of float32 leaves as its largest number.

    Raises as ``top_k`` does: what is wrong with the question here, the rest while the blocks are read.
    """
    limits = limits or Limits()
    plan = plan_question(view, question, limits)
    omissions = _omissions(question, limits)
    mask, _ = _filter(view, question, limits, cancelled, on_damage=_sink(omissions))
    scan = Scan(plan, mask, view.row_id_count, cancelled, _sink(omissions), workers)
    blocks = (ScoreBlock(block.row_ids, to_float32(plan.reduced(block.scores()))) for block in blocks_by_row_id(scan))
    return ScoreStream(plan.result_count, question.scorer, blocks, omissions)


def self_influence(
    view: CollectionView,
    question: Question,
    *,
    limits: Limits | None = None,
    cancelled: Cancelled = never,
    workers: Workers | None = None,
) -> ScoreStream:
    """What each row scores as its own query; the question's vectors, groups and kind are not looked at. Raises as
    ``scores`` does."""
    limits = limits or Limits()
    omissions = _omissions(question, limits)
    on_damage = _sink(omissions)
    mask, _ = _filter(view, question, limits, cancelled, on_damage=on_damage)
    terms = self_terms(view, question)
    scan = SelfScan(terms, question.missing, mask, view.row_id_count, cancelled, on_damage, workers)
    return ScoreStream(1, question.scorer, self_scores(scan), omissions)


def count_rows(
    view: CollectionView, where: Mapping[str, Any] | None, *, limits: Limits, cancelled: Cancelled = never
) -> int:
    """How many rows a filter holds for; all of them without one."""
    if where is None:
        return view.row_count
    return find_rows(view, where, limits, cancelled).count


def _filter(
    view: CollectionView, question: Question, limits: Limits, cancelled: Cancelled, *, on_damage: OnDamage | None
) -> tuple[Mask | None, Stage]:
    check_cancelled(cancelled)
    started = time.perf_counter()
    matches = None if question.where is None else find_rows(view, question.where, limits, cancelled, on_damage)
    mask, row_count = (None, view.row_count) if matches is None else (matches.mask(), matches.count)
    return mask, Stage("filter", view.row_count, row_count, time.perf_counter() - started)


def _omissions(question: Question, limits: Limits) -> Omissions | None:
    return Omissions(limits.damages) if question.damaged == "omit" else None


def _sink(omissions: Omissions | None) -> OnDamage | None:
    return None if omissions is None else omissions.add
