"""Exact scores of candidates: both ends of a result among a few rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from covector.attribution.scoring import Float64
from covector_server.query.planner import Term
from covector_server.query.question import End, Ends
from covector_server.storage.view import Positions, RowIds, Strip

KeysOf = Callable[[RowIds], list[bytes]]


def union_of(top: Positions, bottom: Positions) -> Positions:
    """The positions in either, ascending, each once."""
    both = np.concatenate([top, bottom])
    both.sort()
    is_new = np.ones(len(both), dtype=bool)
    np.not_equal(both[1:], both[:-1], out=is_new[1:])
    return both[is_new]


def best_of(term: Term, group: int, strips: Sequence[Strip], k: int, keys_of: KeysOf) -> Ends:
    """The k best of one group at both ends, by float64 scores of all rows in the strips. ``keys_of`` is asked once."""
    scores = [term.exact(strip, slice(group, group + 1))[0] for strip in strips]
    if len(strips) == 1:
        return ends_of(strips[0].row_ids, scores[0], k, keys_of)
    row_ids = np.concatenate([np.empty(0, dtype=np.int64), *(strip.row_ids for strip in strips)])
    return ends_of(row_ids, np.concatenate([np.empty(0), *scores]), k, keys_of)


def ends_of(row_ids: RowIds, scores: Float64, k: int, keys_of: KeysOf) -> Ends:
    """The k best at both ends of exact scores, equal ones in order of key; no score is -0.0."""
    order = np.argsort(scores)
    ascending = scores[order]
    smallest = order[: ascending.searchsorted(ascending[k - 1], "right")] if k < len(order) else order
    largest = order[ascending.searchsorted(ascending[-k]) :] if k < len(order) else order
    wanted = union_of(largest, smallest)
    keys = dict(zip(wanted.tolist(), keys_of(row_ids[wanted]), strict=True))
    values = scores.tolist()
    top = sorted(largest.tolist(), key=lambda at: (-values[at], keys[at]))[:k]
    bottom = sorted(smallest.tolist(), key=lambda at: (values[at], keys[at]))[:k]
    return Ends(*(End(row_ids[end], [keys[at] for at in end], scores[end] + 0.0) for end in (top, bottom)))
