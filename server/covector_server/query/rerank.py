"""Exact scores of candidates: both ends of a result among a few rows.

Every candidate is scored in float32 first, with the bound of its error, by the arithmetic of an exact scan. Those that
may be among the k best at an end, some more than 2 k, are scored in float64, and these scores alone decide and leave:
the ends are those that float64 scores of all candidates would give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from covector.attribution.scoring import Float64
from covector_server.query.planner import Term
from covector_server.query.question import End, Ends
from covector_server.storage.view import Positions, RowIds, Strip

Mask = npt.NDArray[np.bool_]
KeysOf = Callable[[RowIds], list[bytes]]


def union_of(top: Positions, bottom: Positions) -> Positions:
    """The positions in either, ascending, each once."""
    both = np.concatenate([top, bottom])
    both.sort()
    return both[np.flatnonzero(np.diff(both, prepend=-1))]


def term_of(term: Term, group: int) -> Term:
    """The share of one group alone."""
    one = slice(group, group + 1)
    return replace(
        term,
        vectors=term.vectors[one],
        narrow=term.narrow[one],
        packed=term.packed[one],
        coefficients=term.coefficients[one],
        reaches=term.reaches[one],
    )


def best_of(term: Term, strips: Sequence[Strip], k: int, keys_of: KeysOf) -> Ends:
    """The k best at both ends of a term of one group, among rows in strips. ``keys_of`` is asked once."""
    scored = [term.approximate(strip) for strip in strips]
    scores = np.concatenate([np.empty(0), *(one.scores()[0] for one in scored)])
    errors = np.concatenate([np.empty(0), *(one.bounds()[0] for one in scored)])
    doubtful = _may_be_best(scores, errors, k) | _may_be_best(-scores, errors, k)
    row_ids, exact = _exact(term, strips, doubtful)
    return ends_of(row_ids, exact, k, keys_of)


def ends_of(row_ids: RowIds, scores: Float64, k: int, keys_of: KeysOf) -> Ends:
    """The k best at both ends of exact scores, equal ones in order of key; no score is -0.0."""
    chosen = [_best(turn * scores, k) for turn in (1.0, -1.0)]
    wanted = union_of(*chosen)
    keys = dict(zip(wanted.tolist(), keys_of(row_ids[wanted]), strict=True))
    values = scores.tolist()
    top = sorted(chosen[0].tolist(), key=lambda at: (-values[at], keys[at]))[:k]
    bottom = sorted(chosen[1].tolist(), key=lambda at: (values[at], keys[at]))[:k]
    return Ends(*(End(row_ids[end], [keys[at] for at in end], scores[end] + 0.0) for end in (top, bottom)))


def _may_be_best(scores: Float64, errors: Float64, k: int) -> Mask:
    """Which scores, off by at most their errors, may be among the k largest."""
    if len(scores) <= k:
        return np.ones(len(scores), dtype=bool)
    surest = np.partition(scores - errors, -k)[-k]
    may: Mask = scores + errors >= surest
    return may


def _best(scores: Float64, k: int) -> Positions:
    """Where the k largest are, and all that equal the last of them."""
    if len(scores) <= k:
        return np.arange(len(scores))
    return np.flatnonzero(scores >= np.partition(scores, -k)[-k])


def _exact(term: Term, strips: Sequence[Strip], chosen: Mask) -> tuple[RowIds, Float64]:
    """Row ids and float64 scores of some of the rows in strips."""
    row_ids, scores, first = [np.empty(0, dtype=np.int64)], [np.empty(0)], 0
    for strip in strips:
        some = strip.pick(np.flatnonzero(chosen[first : first + len(strip.row_ids)]))
        first += len(strip.row_ids)
        if len(some.row_ids):
            row_ids.append(some.row_ids)
            scores.append(term.exact(some, slice(0, 1))[0])
    return np.concatenate(row_ids), np.concatenate(scores)
