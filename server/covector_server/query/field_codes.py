"""The value of one metadata field of every row, as a number: what rows are grouped by.

Rows that have postings take theirs from these, the others are looked at one by one, as a filter does it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from covector.errors import LimitExceeded, NotFound, near_matches
from covector_server.limits import Limits
from covector_server.metadata.fields import Value
from covector_server.metadata.posting_values import Unanswered
from covector_server.query.cancellation import Cancelled, check_cancelled
from covector_server.storage.damage import Damage, OnDamage
from covector_server.storage.view import CollectionView, PostingsRange, RowIds

Codes = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class FieldCodes:
    """``codes``: int32[row_id_count], by row id; ``values[code]`` is the value, None (code 0) for rows without one."""

    codes: Codes
    values: list[Value]


def field_codes(
    view: CollectionView, name: str, limits: Limits, cancelled: Cancelled, on_damage: OnDamage | None = None
) -> FieldCodes:
    """The values of a field. Raises NotFound for an unknown field, LimitExceeded where it has too many values, and
    Corrupt for damaged metadata that has no postings; with ``on_damage`` its rows count as rows without the field."""
    if name not in view.fields:
        raise NotFound(f"no metadata field {name!r}; {near_matches(name, view.fields)}", field=name)
    numbering = _Numbering(name, view.fields[name] == "boolean", limits)
    codes = np.zeros(view.row_id_count, dtype=np.int32)
    ranges, reached = view.postings(), 0
    newer = view.supplemented(ranges)
    for each in ranges:
        check_cancelled(cancelled)
        if each.first < reached or not _fill_from_postings(view, each, newer, numbering, codes):
            continue
        _fill_one_by_one(view, (reached, each.first), numbering, codes, on_damage)
        reached = each.first + each.row_count
    _fill_one_by_one(view, (reached, view.row_id_count), numbering, codes, on_damage)
    return FieldCodes(codes, [None, *numbering.values])


@dataclass(slots=True)
class _Numbering:
    """Gives values their numbers, from 1 on, as they come."""

    name: str
    is_boolean: bool
    limits: Limits
    values: list[Value] = field(default_factory=list)
    _numbers: dict[Value, int] = field(default_factory=dict)

    def number(self, value: Value) -> int:
        if value is None:
            return 0
        found = self._numbers.get(value)
        if found is not None:
            return found
        if len(self.values) >= self.limits.query_groups:
            raise LimitExceeded(
                f"field {self.name!r} has more than query_groups={self.limits.query_groups} values; group by a coarser "
                "field, or cut the rows by a filter",
                limit="query_groups",
            )
        self.values.append(bool(value) if self.is_boolean else value)
        self._numbers[value] = len(self.values)
        return len(self.values)


def _fill_from_postings(
    view: CollectionView, each: PostingsRange, newer: RowIds, numbering: _Numbering, codes: Codes
) -> bool:
    """The codes of an indexed range; False if its index does not tell."""
    postings = each.open()
    if postings is None:
        return False
    try:
        offsets, places, values = postings.coded(numbering.name)
    except Unanswered:
        return False
    low, high = np.searchsorted(newer, [each.first, each.first + each.row_count])
    damages: list[Damage] = []
    touched = view.details_of(newer[low:high], damages.append) if low < high else []
    if damages:
        return False
    numbers = np.array([numbering.number(value) for value in values], dtype=np.int32)
    if len(offsets):
        codes[each.first + offsets.astype(np.int64)] = numbers[places]
    for row_id, row in zip(newer[low:high].tolist(), touched, strict=True):
        codes[row_id] = numbering.number((row.metadata or {}).get(numbering.name))
    return True


def _fill_one_by_one(
    view: CollectionView,
    row_id_range: tuple[int, int],
    numbering: _Numbering,
    codes: Codes,
    on_damage: OnDamage | None,
) -> None:
    if row_id_range[0] >= row_id_range[1]:
        return
    for first, run in view.metadata(row_id_range, on_damage):
        codes[first : first + len(run)] = [numbering.number((one or {}).get(numbering.name)) for one in run]
