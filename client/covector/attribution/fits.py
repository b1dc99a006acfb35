"""Fits over one or several checkpoints, on arrays: ``fit`` learns, ``Fit.scores`` scores. No server is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.attribution.checkpoint_fit import CheckpointFit
from covector.attribution.learning import FitJob
from covector.attribution.planning import plan_fit
from covector.attribution.rows import ArrayBlock, blocks_of, check_trak_q, trak_q_of
from covector.attribution.scoring import (
    Float64,
    check_kinds,
    check_weights,
    finite_rows,
    sign,
    split_scale,
)
from covector.errors import InvalidInput
from covector.types import GradientKind, Gradients, Space

Inputs = npt.ArrayLike | Gradients

ONLY = ""  # the name of the checkpoint where there is one array


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the rows of a checkpoint came from, as far as it was said: what queries must fit."""

    space: Space | None = None
    kind: GradientKind = field(default_factory=GradientKind)
    weights_digest: str | None = None

    @staticmethod
    def of(given: Inputs) -> Origin:
        """That of ``Gradients``; of a bare array nothing is known."""
        return Origin(given.space, given.kind, given.checkpoint) if isinstance(given, Gradients) else Origin()

    def check(self, name: str, other: Origin) -> None:
        """Raises InvalidInput where the other is of another space or other weights."""
        difference = self.space.difference(other.space) if self.space and other.space else None
        if difference is not None:
            raise InvalidInput(
                f"{name} are of another space than the rows of the fit: {difference} (here the fit)",
                field=difference.split(":")[0],
            )
        check_weights("the rows of the fit", self.weights_digest, other.weights_digest)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """A fit over one or several checkpoints, by name; one array alone has the name "".

    ``damping_scores``: the candidates that were tried and what each scored on the held-out measure, larger being
    better; empty if there was no choice.
    """

    method: str
    parts: Mapping[str, CheckpointFit]
    etas: Mapping[str, float]
    origins: Mapping[str, Origin]
    damping_scores: tuple[tuple[float, float], ...] = ()

    @property
    def damping(self) -> float:
        """The damping that was taken, in units of ``damping_unit``."""
        return self._first.damping

    @property
    def damping_unit(self) -> str:
        """What damping is a multiple of."""
        return self._first.plan.method.damping_unit

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the choices made."""
        return tuple(dict.fromkeys(note for part in self.parts.values() for note in part.plan.notes))

    @property
    def _first(self) -> CheckpointFit:
        return next(iter(self.parts.values()))

    def scores(
        self,
        queries: Inputs | Mapping[str, Inputs],
        rows: Inputs | Mapping[str, Inputs],
        *,
        trak_q: npt.ArrayLike | Mapping[str, npt.ArrayLike] | None = None,
    ) -> Float64:
        """float64[m, n], the score of every row for every query; above zero is a proponent.

        queries: float[m, dim]; rows: float[n, dim], any rows of the space, those of the fit or others. For several
        checkpoints both are mappings by the fit's names, of the same queries and rows in the same order. ``trak_q``:
        float[n], for trak, where rows are no ``Gradients`` that have it; its mean over the checkpoints counts. Raises
        InvalidInput for what does not fit.
        """
        names = list(self.parts)
        asked, given = _by_name("queries", queries, names), _by_name("rows", rows, names)
        q = self._mean_q(given, {} if trak_q is None else _by_name("trak_q", trak_q, names))
        scorer = self._first.scorer()
        weights = scorer.checkpoint_weights([self.etas[name] for name in names])
        terms = [
            weight * self._term(name, asked[name], given[name], q) for name, weight in zip(names, weights, strict=True)
        ]
        shapes = {term.shape for term in terms}
        if len(shapes) > 1:
            raise InvalidInput(f"the checkpoints have different numbers of queries and rows: {sorted(shapes)}")
        return np.asarray(np.sum(terms, axis=0))

    def _term(self, name: str, queries: Inputs, rows: Inputs, q: Float64 | None) -> Float64:
        """Scores at one checkpoint."""
        part, asked, given = self.parts[name], Origin.of(queries), Origin.of(rows)
        scorer = part.scorer()
        for what, other in (("the queries", asked), ("these rows", given)):
            self.origins[name].check(what, other)
        row_kind = given.kind.filled_from(self.origins[name].kind)
        check_kinds(scorer, row_kind, asked.kind)
        wide = finite_rows("queries", queries)
        if wide.shape[1] != part.plan.dim:
            raise InvalidInput(f"queries have dim {wide.shape[1]}, the fit has {part.plan.dim}", field="dim")
        unit, scales = split_scale(scorer.prepare(wide))
        columns = [np.zeros((len(wide), 0))]
        for block in blocks_of(rows, q):
            if block.rows.shape[1] != part.plan.dim:
                raise InvalidInput(f"rows have dim {block.rows.shape[1]}, the fit has {part.plan.dim}", field="dim")
            columns.append((unit @ block.rows.T) * scales[:, None] * part.row_factors(block))
        return np.asarray(np.concatenate(columns, axis=1) * sign(row_kind, asked.kind))

    def _mean_q(self, rows: Mapping[str, Inputs], trak_q: Mapping[str, npt.ArrayLike]) -> Float64 | None:
        """TRAK's Q is a mean over checkpoints, of its own."""
        if self._first.plan.method.weight != "trak_q":
            return None
        found = [trak_q_of(given, trak_q.get(name), len(np.asarray(given))) for name, given in rows.items()]
        for one in found:
            check_trak_q(one)
        if len({len(one) for one in found}) > 1:
            raise InvalidInput(f"the checkpoints have different numbers of rows: {[len(one) for one in found]}")
        return np.asarray(np.mean(found, axis=0))


def fit(
    method: str,
    rows: Inputs | Mapping[str, Inputs],
    *,
    trak_q: npt.ArrayLike | Mapping[str, npt.ArrayLike] | None = None,
    etas: Mapping[str, float] | None = None,
    damping: float | str | Sequence[float] | None = None,
    held_out: Callable[[Fit], float] | None = None,
    task_gradients: Inputs | Mapping[str, Inputs] | None = None,
    task_share: float | None = None,
    rank: int | None = None,
    by_layer: bool | None = None,
    unit_rows: bool = False,
    range_passes: int = 1,
    space: Space | None = None,
    memory_bytes_max: int | None = None,
) -> Fit:
    """Learns a method from arrays: ``trak``, ``influence``, ``datainf``, ``trackstar`` or ``less``.

    rows: float[n, dim] or ``Gradients``, or a mapping of checkpoint names (or of models, or of projections) to these;
    ``etas``: the checkpoints' weights, 1 each by default; ``damping``: in units of the mean nonzero eigenvalue
    (datainf: of the mean squared entry), None for the default, or several candidates, of which ``held_out`` (fit -> a
    number, larger is better) chooses, or else rows held out of the moments (``attribution.held_out``), as with
    ``damping="held_out"``; over several checkpoints the rows of the first choose for all. ``task_gradients``:
    the query task's, for trackstar; ``space``: says the layers of bare arrays. The rest as in ``plan_fit``.

    Raises NotFound for an unknown method, InvalidInput for what does not fit, LimitExceeded for more memory than
    ``memory_bytes_max``.
    """
    named = rows if isinstance(rows, Mapping) else {ONLY: rows}
    if not named:
        raise InvalidInput("there are no checkpoints to fit; give at least one", field="rows")
    names = list(named)
    tasks = {} if task_gradients is None else _by_name("task_gradients", task_gradients, names)
    weights = {} if trak_q is None else _by_name("trak_q", trak_q, names)
    holds_out = held_out is None and isinstance(damping, Sequence)
    jobs = {}
    for name, given in named.items():
        task = _one_block(tasks[name]) if name in tasks else None
        shape = np.shape(given.values if isinstance(given, Gradients) else given)
        if len(shape) != 2:
            raise InvalidInput(f"rows must be float[n, dim], not of shape {shape}")
        plan = plan_fit(
            method,
            _space_of(given, shape[1], space),
            shape[0],
            damping=damping,
            holds_out=holds_out,
            rank=rank,
            by_layer=by_layer,
            unit_rows=unit_rows,
            range_passes=range_passes,
            task_row_count=0 if task is None else len(task.rows),
            task_share=task_share,
            memory_bytes_max=memory_bytes_max,
        )
        jobs[name] = _run(FitJob(plan, task), given, weights.get(name))
    first = next(iter(jobs.values())).finish()
    whole = Fit(
        method=method,
        parts={name: job.finish(first.damping) if number else first for number, (name, job) in enumerate(jobs.items())},
        etas=dict.fromkeys(names, 1.0) if etas is None else _by_name("etas", etas, names),
        origins={name: Origin.of(given) for name, given in named.items()},
        damping_scores=first.damping_scores,
    )
    return whole if held_out is None else _chosen(whole, jobs, held_out)


def _run(job: FitJob, rows: Inputs, trak_q: npt.ArrayLike | None) -> FitJob:
    more = bool(job.plan.stages)
    while more:
        for block in blocks_of(rows, trak_q):
            job.update(block)
        more = job.end_pass()
    return job


def _chosen(whole: Fit, jobs: Mapping[str, FitJob], held_out: Callable[[Fit], float]) -> Fit:
    """The fit at the damping that the held-out measure likes best; the first of equals."""
    candidates = next(iter(jobs.values())).plan.dampings
    if len(candidates) == 1:
        return whole
    best, scores = whole, []
    for damping in candidates:
        tried = replace(whole, parts={name: job.finish(damping) for name, job in jobs.items()})
        scores.append((damping, float(held_out(tried))))
        if not np.isfinite(scores[-1][1]):
            raise InvalidInput(f"held_out gave {scores[-1][1]} at damping {damping}; it must give a number")
        if scores[-1][1] > max((score for _, score in scores[:-1]), default=-np.inf):
            best = tried
    return replace(best, damping_scores=tuple(scores))


def _space_of(rows: Inputs, dim: int, space: Space | None) -> Space:
    own = rows.space if isinstance(rows, Gradients) else space
    if own is not None and own.dim != dim:
        raise InvalidInput(f"rows have dim {dim}, the space has {own.dim}", field="dim")
    return own or Space(dim=dim)


def _one_block(task: Inputs) -> ArrayBlock:
    unit, scales = split_scale(finite_rows("task_gradients", task))
    return ArrayBlock(unit, scales, np.full(len(unit), np.nan))


def _by_name(what: str, given: Any, names: Sequence[str]) -> Mapping[str, Any]:
    """What is given for each checkpoint, by name. Raises InvalidInput where names are missing or unknown."""
    if not isinstance(given, Mapping):
        if list(names) != [ONLY]:
            raise InvalidInput(
                f"{what}: the fit is over {', '.join(map(repr, names))}; give a mapping of these", field=what
            )
        return {ONLY: given}
    if set(given) != set(names):
        raise InvalidInput(
            f"{what} are given for {', '.join(map(repr, given)) or 'nothing'}, the fit is over "
            f"{', '.join(map(repr, names))}; they must be the same",
            field=what,
        )
    return given
