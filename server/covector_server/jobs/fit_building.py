"""Learning a fit: rows of each checkpoint in order, pass after pass; files aside, one transaction a step.

Where it stands is saved aside now and then, as a directory of its own that the fit's entry in the catalog lists: a fit
that was killed, cancelled or cut off by the end of the server goes on from there when it is asked for again. The rows
are those that were live when a checkpoint was begun, as they were committed then; a row that is deleted meanwhile is
learnt all the same, and counted with those that went afterwards.

Asked for again when it is finished, a fit follows the rows that came since: by adding them to its sums where that gives
the same (``fit.spec.can_fold``) and none of its rows went, else by learning anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import Any, Protocol

import numpy as np

from covector.attribution.checkpoint_fit import CheckpointFit
from covector.attribution.learning import FitJob
from covector.attribution.planning import FitPlan
from covector.attribution.scoring import Float64
from covector.errors import Conflict, Corrupt, LimitExceeded
from covector.types import Space
from covector_server.fit.blocks import live_blocks, live_count
from covector_server.fit.spec import FitSpec, can_fold, has_row_weights, memory_bytes, plan_part
from covector_server.fit.stored import job_arrays, open_job, part_arrays
from covector_server.metadata.records import FilesRecord, FitPart, FitRecord
from covector_server.storage.disk import Disk
from covector_server.storage.drafts import Draft
from covector_server.storage.fit_files import FITS, arrays_of, fit_draft, open_fit_files, write_fit_files
from covector_server.storage.view import PositionedCheckpoint, Positions

ATTEMPTS = 3  # of a fit under whose hands the rows are moved
SAVE_SHARE = 20  # a save may take one in so many seconds

Report = Callable[[int, int], None]  # rows done, rows in all; may raise to stop


class Ledger(Protocol):
    """The list of fits of a collection, as a build needs it."""

    def listed(self) -> list[FitRecord]:
        """All of them."""
        ...

    def advance(self, record: FitRecord, before: FitRecord | None, generations: Mapping[int, int]) -> None:
        """As ``fit_files.advance_fit``; directories that nothing lists any more are removed in time."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPlace:
    """Where a fit is made, and within which limits."""

    collection_directory: Path
    space: Space
    row_id_count: int
    disk: Disk
    save_s: float
    memory_bytes_max: int


@dataclass(slots=True)
class _Work:
    """A checkpoint that is being learnt: its first ``row_count`` positions without the ``dead``; ``position``: of the
    row that the job wants next."""

    view: PositionedCheckpoint
    job: FitJob
    row_count: int
    dead: Positions
    position: int = 0

    @property
    def rows_done(self) -> int:
        """Positions that went by, over all passes."""
        return self.job.stage_number * self.row_count + self.position


def plans_of(place: FitPlace, spec: FitSpec, views: Sequence[PositionedCheckpoint]) -> list[FitPlan]:
    """The plan for each checkpoint. Raises what is wrong with the request."""
    spec.check_tasks(len(views), place.space.dim)
    return [plan_part(spec, place.space, view, place.row_id_count, place.memory_bytes_max) for view in views]


def plan_facts(place: FitPlace, views: Sequence[PositionedCheckpoint], plans: Sequence[FitPlan]) -> dict[str, Any]:
    """What is told of a fit before it begins."""
    checkpoints = {
        view.name: {
            "rows": plan.row_count,
            "passes": _pass_count(plan),
            "rank": plan.rank,
            "layers": len(plan.layers),
            "memory_bytes": memory_bytes(plan, place.row_id_count),
        }
        for view, plan in zip(views, plans, strict=True)
    }
    notes = list(dict.fromkeys(note for plan in plans for note in plan.notes))
    peak = max(memory_bytes(plan, place.row_id_count) for plan in plans)
    return {"memory_bytes": peak, "checkpoints": checkpoints, "notes": notes}


def _pass_count(plan: FitPlan) -> int:
    return len(plan.stages) + (plan.method.weight == "inverse_whitened_norm")


class FitBuild:
    """One fit, of some checkpoints as they are seen. ``run`` may be called once."""

    def __init__(self, place: FitPlace, spec: FitSpec, ledger: Ledger, report: Report) -> None:
        self._place = place
        self._spec = spec
        self._ledger = ledger
        self._report = report
        self._views: Sequence[PositionedCheckpoint] = ()
        self._listed: FitRecord | None = None  # as the catalog has it
        self._done, self._total = 0, 0
        self._save_at_s = 0.0

    def run(self, views: Sequence[PositionedCheckpoint]) -> tuple[FitRecord, bool]:
        """The finished fit, and whether it was made: False if one stood that is as good. Raises Moved, Conflict,
        Corrupt for damaged rows, InvalidInput for what cannot be learnt, and what ``report`` raises."""
        plans = plans_of(self._place, self._spec, views)
        self._views = views
        parameters = self._spec.parameters([view.name for view in views])
        same = [one for one in self._ledger.listed() if one.parameters == parameters]
        pending = next((one for one in same if not one.is_finished), None)
        finished = next((one for one in same if one.is_finished), None)
        if finished is not None and pending is None and all(self._is_current(finished, view) for view in views):
            return finished, False
        self._listed = pending
        record = pending or _begun(parameters)
        self._total = sum(view.position_count * _pass_count(plan) for view, plan in zip(views, plans, strict=True))
        self._save_at_s = time.monotonic() + self._place.save_s
        for number, (view, plan) in enumerate(zip(views, plans, strict=True)):
            if _part_of(record, view) is None:
                work = self._resumed(record, view) or self._folding(finished, view) or self._new(number, view, plan)
                record = self._learnt(record, work)
            self._done += view.position_count * _pass_count(plan)
        if not record.is_finished:
            record = self._finished(record)
            self._advance(record, None)
        self._report(self._total, self._total)
        return record, True

    # Where to begin

    def _is_current(self, record: FitRecord, view: PositionedCheckpoint) -> bool:
        part = _part_of(record, view)
        return part is not None and part.row_count == view.position_count and not lost_count(part, view.dead)

    def _new(self, number: int, view: PositionedCheckpoint, plan: FitPlan) -> _Work:
        return _Work(view, FitJob(plan, self._spec.task(number)), view.position_count, view.dead)

    def _resumed(self, record: FitRecord, view: PositionedCheckpoint) -> _Work | None:
        """Where an earlier run of the same fit stood; None if it had not begun with these rows."""
        if record.state is None or record.state_checkpoint_id != view.id:
            return None
        try:
            files = open_fit_files(self._root, FilesRecord(**record.state), self._check)
            facts, dead = files.parameters, np.array(arrays_of(files)["dead"])
            if facts["generation"] != view.generation or facts["row_count"] > view.position_count:
                return None
            return _Work(view, open_job(files), facts["row_count"], dead, facts["position"])
        except (Corrupt, KeyError):
            return None

    def _folding(self, finished: FitRecord | None, view: PositionedCheckpoint) -> _Work | None:
        """What a finished fit learnt, to go on with the rows that came since; None if it has to be learnt anew."""
        part = None if finished is None else _part_of(finished, view)
        if part is None or part.row_count > view.position_count or lost_count(part, view.dead):
            return None
        try:
            files = open_fit_files(self._root, part.stored, self._check)
            if not can_fold(CheckpointFit.of(files.parameters["fit"], {}).plan):
                return None
            return _Work(view, open_job(files), view.position_count, view.dead, part.row_count)
        except (Corrupt, KeyError):
            return None

    # Learning

    def _learnt(self, record: FitRecord, work: _Work) -> FitRecord:
        """Learns a checkpoint, and lists what is new."""
        if work.job.plan.stages:
            record = self._pass(record, work)
            while work.job.end_pass():
                work.position = 0
                record = self._saved_if_due(record, work)
                record = self._pass(record, work)
        fit = work.job.finish(self._chosen_damping(record, work))
        factors = self._factors(fit, work) if has_row_weights(fit) else None
        with fit_draft(self._place.collection_directory, record.method, self._place.disk) as draft:
            stored = write_fit_files(draft, {"fit": fit.facts}, part_arrays(fit, factors, work.job), self._check)
            self._place.disk.step("fit.written")
            record = _with_part(record, work, fit, stored)
            if len(record.parts) == len(self._views):
                record = self._finished(record)
            self._advance(record, draft)
        self._place.disk.step("fit.part_listed")
        return record

    def _chosen_damping(self, record: FitRecord, work: _Work) -> float | None:
        """What was chosen at a checkpoint before this one, which is taken at all; None for the job's own choice."""
        others = [one for one in self._views if one.id != work.view.id and _part_of(record, one)]
        return record.damping if work.job.plan.holds_out and others else None

    def _pass(self, record: FitRecord, work: _Work) -> FitRecord:
        for position, tile in live_blocks(work.view, work.position, work.row_count, work.dead):
            work.job.update(tile)
            work.position = position
            self._report(self._done + work.rows_done, self._total)
            record = self._saved_if_due(record, work)
        return record

    def _factors(self, fit: CheckpointFit, work: _Work) -> Float64:
        """W * scale of the rows, by row id."""
        found = np.full(self._place.row_id_count, np.nan)
        for position, tile in live_blocks(work.view, 0, work.row_count, work.dead):
            found[tile.row_ids] = fit.row_factors(tile)
            self._report(self._done + len(fit.plan.stages) * work.row_count + position, self._total)
        return found

    def _saved_if_due(self, record: FitRecord, work: _Work) -> FitRecord:
        if time.monotonic() < self._save_at_s:
            return record
        started_s = time.monotonic()
        facts = {
            "plan": work.job.plan.facts,
            "generation": work.view.generation,
            "row_count": work.row_count,
            "position": work.position,
        }
        with fit_draft(self._place.collection_directory, record.method, self._place.disk) as draft:
            stored = write_fit_files(draft, facts, {**job_arrays(work.job), "dead": work.dead}, self._check)
            self._place.disk.step("fit.saved")
            record = replace(record, state=asdict(stored), state_checkpoint_id=work.view.id)
            self._advance(record, draft)
        self._place.disk.step("fit.save_listed")
        ended_s = time.monotonic()
        self._save_at_s = ended_s + max(self._place.save_s, SAVE_SHARE * (ended_s - started_s))
        return record

    # Listing

    def _finished(self, record: FitRecord) -> FitRecord:
        kept = {view.name for view in self._views}
        parts = [part for part in record.parts if part["checkpoint"] in kept]
        return replace(record, parts=parts, state=None, is_finished=True, made_at_s=time.time())

    def _advance(self, record: FitRecord, draft: Draft | None) -> None:
        if draft is not None:
            draft.may_be_listed = True
        try:
            self._ledger.advance(record, self._listed, {view.id: view.generation for view in self._views})
        except (Conflict, LimitExceeded):
            if draft is not None:
                draft.may_be_listed = False  # refused: the transaction did not happen
            raise
        self._listed = record

    @property
    def _root(self) -> Path:
        return self._place.collection_directory / FITS

    def _check(self) -> None:
        self._report(self._done, self._total)


def lost_count(part: FitPart, dead: Positions) -> int:
    """Rows that a part learnt from and that were deleted or replaced since; dead: of its checkpoint, sorted. It stays
    the same when a compaction takes them out of the files."""
    return part.learnt_count - live_count(part.row_count, dead)


def _begun(parameters: dict[str, Any]) -> FitRecord:
    method = parameters["method"]
    return FitRecord(f"{method}-{token_hex(4)}", method, parameters, started_at_s=time.time())


def _part_of(record: FitRecord, view: PositionedCheckpoint) -> FitPart | None:
    """The part of a checkpoint in the generation that the view sees."""
    found = [part for part in record.covered if part.checkpoint_id == view.id]
    return found[0] if found and found[0].generation == view.generation else None


def _with_part(record: FitRecord, work: _Work, fit: CheckpointFit, stored: FilesRecord) -> FitRecord:
    view, learnt = work.view, live_count(work.row_count, work.dead)
    part = FitPart(view.id, view.name, view.generation, work.row_count, learnt, asdict(stored), work.row_count - learnt)
    others = [other for other in record.parts if other["checkpoint_id"] != view.id]
    return replace(
        record,
        parts=[*others, asdict(part)],
        state=None,
        state_checkpoint_id=0,
        damping=fit.damping,
        damping_unit=fit.plan.method.damping_unit,
        damping_scores=[list(one) for one in fit.damping_scores] or record.damping_scores,
        rank=fit.plan.rank,
        notes=list(dict.fromkeys([*record.notes, *fit.plan.notes])),
    )


def summary(record: FitRecord, is_new: bool) -> dict[str, Any]:
    """What an operation says of the fit that it made."""
    return {
        "fit": record.id,
        "method": record.method,
        "is_new": is_new,
        "checkpoints": [part.checkpoint for part in record.covered],
        "rows": sum(part.learnt_count for part in record.covered),
        "damping": record.damping,
        "damping_unit": record.damping_unit,
        "damping_scores": record.damping_scores,
        "rank": record.rank,
        "notes": record.notes,
        "size_bytes": record.size_bytes,
    }
