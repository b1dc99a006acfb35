"""The checkpoints that a question is about, and which rows' sums over them lack nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from covector.errors import InvalidInput, NotFound, near_matches
from covector_server.query.question import CheckpointChoice, Missing, Question
from covector_server.storage.damage import OnDamage
from covector_server.storage.view import CheckpointView, CollectionView, Positions, RowIds


def choices_of(question: Question) -> Sequence[CheckpointChoice]:
    """The question's choices; a question that names none is about the only checkpoint there is."""
    return question.checkpoints or (CheckpointChoice(""),)


def checkpoints_of(view: CollectionView, question: Question) -> list[CheckpointView]:
    """The checkpoints of a question, in its order. Raises as ``find_checkpoint`` does."""
    return [find_checkpoint(view, choice.name) for choice in choices_of(question)]


def find_checkpoint(view: CollectionView, name: str) -> CheckpointView:
    """The checkpoint of this name, or the only one for an empty name. Raises NotFound or InvalidInput, naming them."""
    known = view.checkpoints
    if name in known:
        return known[name]
    if name:
        raise NotFound(f"no checkpoint {name!r} in {view.name!r}; {near_matches(name, known)}", checkpoint=name)
    if not known:
        raise NotFound(f"collection {view.name!r} has no checkpoints yet; write gradients first")
    if len(known) > 1:
        names = ", ".join(repr(known_name) for known_name in list(known)[:8])
        raise InvalidInput(f"collection {view.name!r} has several checkpoints; say which: {names}", field="checkpoints")
    return next(iter(known.values()))


def whole_sums(
    views: Sequence[CheckpointView],
    missing: Missing,
    seen: npt.NDArray[np.int32],
    row_ids: RowIds,
    on_damage: OnDamage | None,
) -> Positions:
    """Places of the rows whose sum lacks nothing, given at how many of the checkpoints each was seen. With damage, a
    row that was not seen may be there all the same, and then its sum is not known."""
    if missing == "omit":
        return np.flatnonzero(seen >= len(views))
    places = np.flatnonzero(seen)
    if on_damage is None:
        return places
    partial = places[seen[places] < len(views)]
    stored = sum((view.has(row_ids[partial], on_damage).astype(np.int32) for view in views), start=np.int32(0))
    return np.setdiff1d(places, partial[seen[partial] < stored])
