"""Exact or by an index: what a plan would cost either way, and why an index is not used where one might be.

Costs are in elements of rows: float16 numbers that are read and multiplied. A row that is read alone, from anywhere,
costs more than one of a run; so does a second query less than the first, since what it needs was read already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from covector.errors import Corrupt
from covector_server.index.cache import IndexCache
from covector_server.index.contract import candidate_count
from covector_server.index.kinds import backend_of, summing_kinds
from covector_server.metadata.records import IndexPart, IndexRecord
from covector_server.query.planner import Plan, Term
from covector_server.query.question import Question
from covector_server.storage.view import CollectionView, ListedIndex, PositionedCheckpoint

APART = 6.0  # what a row costs that is read alone and scored in float64
MORE_VECTORS = 0.25  # what a vector costs beside the first, in a scan
FIXED_ELEMENTS = 500_000  # of taking the path at all


@dataclass(frozen=True, slots=True)
class Choice:
    """The indexes to use, one for each checkpoint, none for exact search; ``reason`` says why, for people."""

    listed: tuple[ListedIndex, ...]
    reason: str


def choose(
    view: CollectionView, plan: Plan, question: Question, k: int, match_count: int | None, indexes: IndexCache
) -> Choice:
    """match_count: rows that the filter holds for, None without one."""
    hindrance = _hindrance(plan, question)
    if hindrance:
        return Choice((), hindrance)
    try:
        listed_now = view.listed_indexes()
    except Corrupt as error:
        return Choice((), f"the list of indexes is damaged: {error.message}")
    chosen: list[ListedIndex] = []
    index_costs = exact_costs = 0.0
    for term in plan.terms:
        checkpoint = positioned(term)
        sound = _sound(listed_now, checkpoint, question, indexes, summed=len(plan.terms) > 1)
        if isinstance(sound, str):
            return Choice((), sound)
        row_count = checkpoint.row_count if match_count is None else min(match_count, checkpoint.row_count)
        exact_costs += row_count * plan.dim * _vectors_cost(plan)
        costs = {listed.record.id: index_cost(listed.record, checkpoint, plan, k) for listed in sound}
        chosen.append(min(sound, key=lambda listed: costs[listed.record.id]))
        index_costs += costs[chosen[-1].record.id]
    names = " and ".join(listed.record.id for listed in chosen)
    row_count = view.row_count if match_count is None else match_count
    if index_costs >= exact_costs:
        return Choice((), f"exact search of {row_count} rows costs less than index {names}")
    return Choice(tuple(chosen), f"index {names} costs less than exact search of {row_count} rows")


def _sound(
    listed_now: Sequence[ListedIndex],
    checkpoint: PositionedCheckpoint,
    question: Question,
    indexes: IndexCache,
    *,
    summed: bool,
) -> list[ListedIndex] | str:
    """The indexes that a checkpoint can be asked by, or why there is none."""
    fitting = [listed for listed in listed_now if fits(listed.record, checkpoint, question)]
    rule = f"checkpoint {checkpoint.name!r} and {_rule_name(question)}"
    if summed and fitting and not any(backend_of(listed.record.kind).can_sum for listed in fitting):
        return (
            f"only a {' or '.join(summing_kinds())} index can be summed over checkpoints, and there is none for {rule}"
        )
    if summed:
        fitting = [listed for listed in fitting if backend_of(listed.record.kind).can_sum]
    if not fitting:
        return f"no index for {rule}" + (", one of several checkpoints that are summed" if summed else "")
    sound = [listed for listed in fitting if not indexes.trouble(listed)]
    return sound or f"index {fitting[0].record.id} {indexes.trouble(fitting[0])}"


def positioned(term: Term) -> PositionedCheckpoint:
    """The checkpoint of a term. Where there are indexes, checkpoints can be told by positions."""
    return cast("PositionedCheckpoint", term.view)


def _hindrance(plan: Plan, question: Question) -> str:
    if question.exact:
        return "exact search was asked for"
    if plan.reduce_max:
        return "the smallest of a maximum over groups is not among the groups' smallest"
    return ""


def fits(record: IndexRecord, checkpoint: PositionedCheckpoint, question: Question) -> bool:
    """Whether an index is of this very checkpoint, as the view sees it, and answers the scorer, or was built for the
    very fit."""
    if len(record.parts) != 1 or record.fit != (question.fit.record.id if question.fit else ""):
        return False
    if question.fit is None and question.scorer not in record.scorers:
        return False
    (part,) = record.covered
    return (part.checkpoint_id, part.generation) == (checkpoint.id, checkpoint.generation) and covers(part, checkpoint)


def _rule_name(question: Question) -> str:
    return f"scorer {question.scorer!r}" if question.fit is None else f"fit {question.fit.record.id}"


def covers(part: IndexPart, checkpoint: PositionedCheckpoint) -> bool:
    """Whether the view is not older than what the index covers."""
    return part.row_count <= checkpoint.position_count


def index_cost(record: IndexRecord, checkpoint: PositionedCheckpoint, plan: Plan, k: int) -> float:
    """Elements that a query reads with an index."""
    (part,) = record.covered
    fresh = (checkpoint.position_count - part.row_count) * plan.dim
    oversampling = record.oversampling_of(plan.terms[0].scorer.name)
    apart = 2 * candidate_count(oversampling, k) * plan.group_count * plan.dim * APART
    return FIXED_ELEMENTS + (record.query_elements + fresh) * _vectors_cost(plan) + apart


def _vectors_cost(plan: Plan) -> float:
    return 1 + MORE_VECTORS * (plan.group_count - 1)
