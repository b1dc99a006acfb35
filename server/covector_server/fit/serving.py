"""From the name of a scorer to what a query needs of a fit: A of each checkpoint, and the weights of all its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from covector.attribution.methods import method_names
from covector.attribution.scoring import Scorer, scorer_names
from covector.errors import InvalidInput, NotFound, Unavailable, near_matches
from covector_server.fit.cache import FitCache
from covector_server.fit.columns import (
    EMPTY,
    Column,
    check_q,
    fresh_factors,
    fresh_q,
    ignored,
    known_at,
    mean_at,
    stored_column,
)
from covector_server.fit.spec import PER_ROW
from covector_server.fit.stored import StoredPart
from covector_server.metadata.records import FitPart, FitRecord
from covector_server.storage.damage import OnDamage
from covector_server.storage.drafts import Check
from covector_server.storage.view import CheckpointView, ListedFit, PositionedCheckpoint, RowIds

NAMED = 8  # of names in a message


class FitView(Protocol):
    """What is to be known of a collection's state: a ``CollectionView`` is one."""

    @property
    def name(self) -> str: ...

    def listed_fits(self) -> Sequence[ListedFit]:
        """See ``CollectionView``."""
        ...

    def keys_of(self, row_ids: RowIds, on_damage: OnDamage | None = None) -> list[bytes]:
        """See ``CollectionView``."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class FitUse:
    """A fit that a query uses, with its parts loaded, by name of checkpoint. It stays usable if the fit is dropped
    meanwhile."""

    listed: ListedFit
    parts: dict[str, StoredPart]
    cache: FitCache
    check: Check

    @property
    def record(self) -> FitRecord:
        """The fit, as it was listed."""
        return self.listed.record

    def scorers(self, view: FitView, checkpoints: Sequence[CheckpointView], *, omits_damaged: bool) -> list[Scorer]:
        """The rule for each of the checkpoints, for all live rows of the view. Raises InvalidInput for rows without a
        weight that they need, Corrupt for damaged ones unless these are left out, and what ``check`` raises."""
        seen = [cast("PositionedCheckpoint", checkpoint) for checkpoint in checkpoints]
        weight = self.parts[seen[0].name].fit.plan.method.weight
        if weight == "trak_q":
            columns = [self._q(view, checkpoint, omits_damaged) for checkpoint in seen]
            q = mean_at(columns) if len(columns) > 1 else None  # one stands beside the rows as it is
            return [self.parts[checkpoint.name].fit.scorer(q) for checkpoint in seen]
        if weight == PER_ROW:
            columns = [self._factors(view, checkpoint, omits_damaged) for checkpoint in seen]
            pairs = zip(seen, columns, strict=True)
            return [self.parts[checkpoint.name].fit.scorer(known_at(column)) for checkpoint, column in pairs]
        return [self.parts[checkpoint.name].fit.scorer() for checkpoint in seen]

    def _q(self, view: FitView, checkpoint: PositionedCheckpoint, omits_damaged: bool) -> Column:
        key = (str(self.listed.root), checkpoint.id, checkpoint.generation, "trak_q")
        on_damage = ignored if omits_damaged else None
        return self.cache.column(
            key,
            checkpoint.position_count,
            EMPTY,
            lambda first: check_q(view, checkpoint.name, fresh_q(checkpoint, first, on_damage, self.check)),
            is_kept=not omits_damaged,
        )

    def _factors(self, view: FitView, checkpoint: PositionedCheckpoint, omits_damaged: bool) -> Column:
        part, covered = self.parts[checkpoint.name], self._covered(view, checkpoint)
        assert part.factors is not None
        key = (str(self.listed.root / covered.stored.directory), checkpoint.generation, "factors")
        return self.cache.column(
            key,
            checkpoint.position_count,
            stored_column(part.factors, covered.row_count),
            lambda first: fresh_factors(part.fit, checkpoint, first, ignored if omits_damaged else None, self.check),
            is_kept=not omits_damaged,
        )

    def _covered(self, view: FitView, checkpoint: PositionedCheckpoint) -> FitPart:
        """What the part covers of the checkpoint, as the view sees it. A generation that the view does not know yet
        covers less of the one before, and computing more weights than needed is no harm; the other way round is."""
        found = part_at(self.record, checkpoint.name)
        if found.generation < checkpoint.generation:
            listed = [one.record for one in view.listed_fits() if one.record.id == self.record.id]
            found = part_at(listed[0], checkpoint.name) if listed else found
        if found.generation < checkpoint.generation:
            raise Unavailable("the rows were compacted while the query began; ask again")
        return found


def fit_for(view: FitView, scorer: str, names: Sequence[str], cache: FitCache, check: Check) -> FitUse | None:
    """What a query needs of the fit that ``scorer`` names, by method (the newest that covers the checkpoints) or by id;
    None for a scorer that needs no fit. ``names``: of the checkpoints.

    Raises NotFound for an unknown name or where there is no fit yet, InvalidInput for a fit of other checkpoints,
    Corrupt for a damaged one.
    """
    if scorer in scorer_names():
        return None
    listed = pick(view, scorer, names)
    parts = {name: cache.part(listed, part_at(listed.record, name).stored, check) for name in names}
    return FitUse(listed, parts, cache, check)


def pick(view: FitView, scorer: str, names: Sequence[str]) -> ListedFit:
    """The fit that a name means, for some checkpoints. Raises as ``fit_for``."""
    finished = [one for one in view.listed_fits() if one.record.is_finished]
    by_id = [one for one in finished if one.record.id == scorer]
    meant = by_id or [one for one in finished if one.record.method == scorer]
    covering = [one for one in meant if {part.checkpoint for part in one.record.covered} >= set(names)]
    if covering:
        return max(covering, key=lambda one: one.record.made_at_s)
    if meant:
        raise _of_other_checkpoints(meant, scorer, names)
    if scorer in method_names():
        raise NotFound(
            f"scorer {scorer!r} needs a fit, and collection {view.name!r} has none yet; make one: "
            f"collection.fit({scorer!r}).wait(), or covector fit create {view.name} {scorer}",
            scorer=scorer,
        )
    known = [*scorer_names(), *method_names(), *(one.record.id for one in finished)]
    raise NotFound(f"no scorer {scorer!r}; {near_matches(scorer, known)}", scorer=scorer)


def _of_other_checkpoints(meant: Sequence[ListedFit], scorer: str, names: Sequence[str]) -> InvalidInput:
    newest = max(meant, key=lambda one: one.record.made_at_s).record
    has = ", ".join(repr(part.checkpoint) for part in newest.covered[:NAMED])
    wants = ", ".join(map(repr, names[:NAMED]))
    return InvalidInput(
        f"fit {newest.id} is over {has}, the query over {wants}; ask at those, or fit these: "
        f"collection.fit({newest.method!r}, checkpoints={list(names[:NAMED])})",
        field="checkpoints",
        scorer=scorer,
    )


def part_at(record: FitRecord, checkpoint: str) -> FitPart:
    """The part of a checkpoint that the fit covers."""
    return next(part for part in record.covered if part.checkpoint == checkpoint)
