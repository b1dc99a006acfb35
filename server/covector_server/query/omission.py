"""What an answer leaves out because it is damaged: added up by place, so that it can say so.

An answer with ``damaged="omit"`` is exact over the rows that can be read. A row counts as readable only if all that the
score needs is: a chunk that is bad at one of several checkpoints takes the row out of the sum altogether.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from covector.errors import Corrupt
from covector_server.limits import Limits
from covector_server.query.cancellation import Cancelled, check_cancelled
from covector_server.query.question import Ends, ScoreBlock
from covector_server.query.scan import Mask
from covector_server.storage.damage import Damage, OnDamage
from covector_server.storage.view import NO_KEY, CollectionView

Answer = TypeVar("Answer")
ROWS_AT_ONCE = 32_768  # whose keys are read at once
OTHERS = ""  # the path of what stands for the places that did not fit
DETAIL_ROWS = 64  # whose texts and metadata are read at once


class Omissions:
    """The rows left out, by checkpoint, file and message; past ``damages_max`` places, the rest in one. ``add`` is a
    sink for ``storage.view``; any thread may tell it."""

    def __init__(self, damages_max: int) -> None:
        self._damages_max = damages_max
        self._row_counts: dict[tuple[str, str, str], int] = {}
        self._counting = threading.Lock()

    def another(self) -> Omissions:
        """An empty one with the same bound."""
        return Omissions(self._damages_max)

    def add(self, damage: Damage) -> None:
        """Counts rows left out. Damage that took none is not told: it took its rows elsewhere."""
        place = (damage.checkpoint, damage.path, damage.message)
        with self._counting:
            if place not in self._row_counts and len(self._row_counts) >= self._damages_max:
                place = ("", OTHERS, f"more than damages={self._damages_max} places are damaged; these are the others")
            if damage.row_count:
                self._row_counts[place] = self._row_counts.get(place, 0) + damage.row_count

    def take(self) -> tuple[Damage, ...]:
        """What was left out since this was last asked, by place; what stands for the others last."""
        with self._counting:
            taken, self._row_counts = self._row_counts, {}
        places = sorted(taken, key=lambda place: (place[1] == OTHERS, place))
        return tuple(Damage(*place, taken[place]) for place in places)


def rows_with_keys(view: CollectionView, mask: Mask | None, omissions: Omissions, cancelled: Cancelled) -> Mask:
    """The rows of ``mask`` whose keys can be read: bool[row_id_count]. The others are counted."""
    row_ids = np.arange(view.row_id_count) if mask is None else np.flatnonzero(mask)
    named = np.zeros(view.row_id_count, dtype=bool)
    for start in range(0, len(row_ids), ROWS_AT_ONCE):
        check_cancelled(cancelled)
        run = row_ids[start : start + ROWS_AT_ONCE]
        named[run] = [key != NO_KEY for key in view.keys_of(run, omissions.add)]
    return named


Attempt: TypeAlias = Callable[[Mask | None, OnDamage | None, set[int]], tuple[Answer, bool]]


def settled(
    view: CollectionView, mask: Mask | None, omissions: Omissions | None, cancelled: Cancelled, attempt: Attempt[Answer]
) -> tuple[Answer, tuple[Damage, ...]]:
    """An answer in which nothing gave way to rows that it then had to leave out, and what it leaves out.

    ``attempt(mask, on_damage, lost)`` returns an answer and whether all its keys could be read; ``lost``: ids of rows
    that were found damaged after they were scanned. ``omissions`` None: damage raises Corrupt.
    """
    lost: set[int] = set()
    while True:
        left_out, lost_count = None if omissions is None else omissions.another(), len(lost)
        answer, all_named = attempt(mask, None if left_out is None else left_out.add, lost)
        if len(lost) > lost_count:
            continue  # others gave way to rows that are damaged by now: once more, without these
        if all_named or omissions is None:
            break
        mask = rows_with_keys(view, mask, omissions, cancelled)  # some of the best cannot be named: once more
    return answer, () if omissions is None or left_out is None else (*omissions.take(), *left_out.take())


def damaged_details(
    view: CollectionView, found: Iterable[Ends], limits: Limits, cancelled: Cancelled
) -> tuple[Damage, ...]:
    """The damage to texts and metadata of the hits, which leave without them; known before the first hit leaves."""
    omissions = Omissions(limits.damages)
    ends = [end.row_ids for both in found for end in (both.proponents, both.opponents)]
    row_ids = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *ends]))
    for start in range(0, len(row_ids), DETAIL_ROWS):
        check_cancelled(cancelled)
        view.details_of(row_ids[start : start + DETAIL_ROWS], omissions.add)
    return omissions.take()


def told_before(damages: Sequence[Damage]) -> OnDamage:
    """A sink that lets damage pass if the answer has told of it, and raises Corrupt if not: it is too late to tell."""
    told = {(damage.path, damage.message) for damage in damages}
    told_of_others = any(damage.path == OTHERS for damage in damages)

    def on_damage(damage: Damage) -> None:
        if not told_of_others and (damage.path, damage.message) not in told:
            raise Corrupt(f"{damage.path}: {damage.message}; this was found while the answer was sent, ask again")

    return on_damage


def named_scores(
    view: CollectionView, block: ScoreBlock, places: slice, omissions: Omissions | None
) -> tuple[list[bytes], npt.NDArray[np.float32]]:
    """Keys and scores float32[results, n] of some rows of a block, those left out whose keys cannot be read."""
    keys = view.keys_of(block.row_ids[places], None if omissions is None else omissions.add)
    values = block.scores[:, places]
    if NO_KEY not in keys:
        return keys, values
    named = [place for place, key in enumerate(keys) if key != NO_KEY]
    return [keys[place] for place in named], values[:, named]
