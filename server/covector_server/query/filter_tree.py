"""A checked filter as a tree of conditions, each of which can be read in two ways.

``condition(metadata)`` says whether it holds for one row: the plain meaning, and the judge of the other reading.
``condition.rows(postings, within)`` gives the rows of ``within`` for which it holds, from an index, without looking at
any row. Each condition narrows the set it is given, so that a conjunction does less work with every part.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pyroaring import BitMap

from covector_server.metadata.postings import Postings

Metadata = Mapping[str, Any]
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}


class Condition(Protocol):
    """A condition on the metadata of a row."""

    def __call__(self, row: Metadata) -> bool:
        """Whether it holds for a row with this metadata; {} for a row without."""
        ...

    def rows(self, postings: Postings, within: BitMap) -> BitMap:
        """The rows of ``within`` for which it holds. Raises Unanswered where the index cannot tell."""
        ...


@dataclass(frozen=True, slots=True)
class All:
    """Every part holds."""

    parts: tuple[Condition, ...]

    def __call__(self, row: Metadata) -> bool:
        return all(part(row) for part in self.parts)

    def rows(self, postings: Postings, within: BitMap) -> BitMap:
        for part in self.parts:
            within = part.rows(postings, within)
        return within


@dataclass(frozen=True, slots=True)
class Either:
    """One part holds."""

    parts: tuple[Condition, ...]

    def __call__(self, row: Metadata) -> bool:
        return any(part(row) for part in self.parts)

    def rows(self, postings: Postings, within: BitMap) -> BitMap:
        found = BitMap()
        for part in self.parts:
            found |= part.rows(postings, within - found)
        return found


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: Condition

    def __call__(self, row: Metadata) -> bool:
        return not self.part(row)

    def rows(self, postings: Postings, within: BitMap) -> BitMap:
        return within - self.part.rows(postings, within)


@dataclass(frozen=True, slots=True)
class Exists:
    """The row has the field, and not as null."""

    field: str

    def __call__(self, row: Metadata) -> bool:
        return row.get(self.field) is not None

    def rows(self, postings: Postings, within: BitMap) -> BitMap:
        return within & postings.having(self.field)


@dataclass(frozen=True, slots=True)
class In:
    """The field is one of the values."""

    field: str
    values: frozenset[Any]

    def __call__(self, row: Metadata) -> bool:
        return row.get(self.field) in self.values

    def rows(self, postings: Postings, within: BitMap) -> BitMap:
        return postings.among(self.field, self.values, within)


@dataclass(frozen=True, slots=True)
class Compare:
    """The field compares so with the operand."""

    field: str
    comparison: str
    operand: Any

    def __call__(self, row: Metadata) -> bool:
        value = row.get(self.field)
        return value is not None and COMPARISONS[self.comparison](value, self.operand)

    def rows(self, postings: Postings, within: BitMap) -> BitMap:
        return postings.compared(self.field, self.comparison, self.operand, within)
