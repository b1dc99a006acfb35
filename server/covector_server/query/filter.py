"""Filters on metadata: a JSON object becomes a checked condition, and a condition the set of rows it holds for.

    {"field": value}                       the field equals the value
    {"field": {"gte": 2020, "lt": 2023}}   every operator holds: eq ne gt gte lt lte in not_in exists
    {"source": "x", "year": 2020}          every field's condition holds; {} holds for every row
    {"and": [...]}  {"or": [...]}  {"not": {...}}

The words ``and``, ``or`` and ``not`` always join conditions: a field of such a name cannot be filtered on. Integers and
floats are one type, ``number``, compared by exact value; a boolean is no number. On a field that a row does not have,
or has as null, ``ne`` and ``not_in`` hold, ``exists`` says false, and every other operator fails.

Rows that have postings are answered from these, the others one by one: the newest, those whose metadata came after
their postings, and those whose postings cannot be read or cannot tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from covector_server.limits import Limits
from covector_server.metadata.posting_values import Unanswered
from covector_server.metadata.postings_builder import bitmap_of
from covector_server.query.cancellation import Cancelled, check_cancelled
from covector_server.query.filter_parse import FilterParser, parse_where
from covector_server.query.filter_tree import Condition
from covector_server.query.row_matches import MatchRun, RowMatches
from covector_server.storage.damage import Damage, OnDamage
from covector_server.storage.view import CollectionView, PostingsRange, RowIds

__all__ = ["FilterParser", "find_rows", "matching_rows", "parse_where"]


def matching_rows(
    view: CollectionView,
    where: Mapping[str, Any],
    limits: Limits,
    cancelled: Cancelled,
    on_damage: OnDamage | None = None,
) -> npt.NDArray[np.bool_]:
    """Which rows a filter holds for: bool[row_id_count], by row id. Raises as ``find_rows`` does."""
    return find_rows(view, where, limits, cancelled, on_damage).mask()


def find_rows(
    view: CollectionView,
    where: Mapping[str, Any],
    limits: Limits,
    cancelled: Cancelled,
    on_damage: OnDamage | None = None,
) -> RowMatches:
    """The live rows that a filter holds for.

    Raises InvalidInput for a malformed filter, NotFound for an unknown field, LimitExceeded for too large a filter.
    Without ``on_damage`` raises Corrupt for damaged metadata that has no postings; with it, no filter holds for it.
    """
    condition = FilterParser(view.fields, limits).parse(where)
    runs = tuple(_runs(view, condition, cancelled, on_damage))
    return RowMatches(runs, view.row_id_count).without(view.deleted)


def _runs(
    view: CollectionView, condition: Condition, cancelled: Cancelled, on_damage: OnDamage | None
) -> Iterator[MatchRun]:
    ranges, reached = view.postings(), 0
    newer = view.supplemented(ranges)
    for each in ranges:
        check_cancelled(cancelled)
        if each.first < reached:  # its rows are answered
            continue
        found = _from_postings(view, condition, each, newer)
        if found is None:
            continue
        yield from _one_by_one(view, condition, (reached, each.first), cancelled, on_damage)
        yield found
        reached = each.first + each.row_count
    yield from _one_by_one(view, condition, (reached, view.row_id_count), cancelled, on_damage)


def _from_postings(view: CollectionView, condition: Condition, each: PostingsRange, newer: RowIds) -> MatchRun | None:
    """The matches of an indexed range; None if its index does not tell."""
    postings = each.open()
    if postings is None:
        return None
    try:
        found = condition.rows(postings, postings.all_rows())
    except Unanswered:
        return None
    low, high = np.searchsorted(newer, [each.first, each.first + each.row_count])
    if low < high:
        touched = newer[low:high]
        damages: list[Damage] = []
        holds = [condition(row.metadata or {}) for row in view.details_of(touched, damages.append)]
        if damages:
            return None
        offsets = touched - each.first
        found = (found - bitmap_of(offsets)) | bitmap_of(offsets[holds])
    return MatchRun(each.first, found)


def _one_by_one(
    view: CollectionView,
    condition: Condition,
    row_id_range: tuple[int, int],
    cancelled: Cancelled,
    on_damage: OnDamage | None,
) -> Iterator[MatchRun]:
    if row_id_range[0] >= row_id_range[1]:
        return
    for first, run in view.metadata(row_id_range, on_damage):
        check_cancelled(cancelled)
        yield MatchRun(first, bitmap_of(np.flatnonzero([condition(metadata or {}) for metadata in run])))
