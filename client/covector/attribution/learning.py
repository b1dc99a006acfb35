"""Learning a fit from streamed rows, one checkpoint at a time.

    job = FitJob(plan)
    while True:
        for block in blocks:        # the same rows in the same order in every pass
            job.update(block)
        if not job.end_pass():
            break
    part = job.finish()

``state`` may be saved at any moment, and ``restore`` goes on from it with the next row, to the bit. After the last pass
the job stays open: rows that come later are folded in by ``update``, and ``finish`` is asked again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.attribution.checkpoint_fit import CheckpointFit
from covector.attribution.held_out import HeldRows, Means, Without, held_out_score
from covector.attribution.inverting import Damped, dense_map, low_rank_map, mean_of_inverses_map, orthonormal, zero_map
from covector.attribution.planning import FitPlan
from covector.attribution.preconditioner import ByLayer, Identity, Preconditioner
from covector.attribution.rows import ArrayBlock, RowBlock, check_trak_q, layer_squares, row_norms
from covector.attribution.scoring import Float64, inverse_or_zero
from covector.attribution.sums import (
    Arrays,
    GramSum,
    LayerSum,
    NoSum,
    ProductSum,
    ProjectedSum,
    RowSums,
    batch_row_count,
)
from covector.errors import Conflict, InvalidInput


@dataclass(frozen=True, slots=True)
class Mixture:
    """The means over the rows, and over the task's gradients by their share."""

    rows: Means
    task: RowSums | None = None
    share: float = 0.0

    def mean(self, number: int) -> Float64:
        """Of a layer's sum."""
        return self._mixed(self.rows.mean(number), None if self.task is None else self.task.mean(number))

    def take_mean(self, number: int) -> Float64:
        """The same, where the sum is not needed any more."""
        return self._mixed(self.rows.take_mean(number), None if self.task is None else self.task.take_mean(number))

    def mean_squares(self) -> Float64:
        """Of squared norms, float64[layers]."""
        return self._mixed(self.rows.mean_squares(), None if self.task is None else self.task.mean_squares())

    def _mixed(self, ours: Float64, theirs: Float64 | None) -> Float64:
        if theirs is not None:
            ours *= 1 - self.share
            theirs *= self.share
            ours += theirs
        return ours


class FitJob:
    """The sums of a plan as rows stream by. ``task``: gradients of the query task, as many as the plan says; ``seed``
    draws the first directions of a low-rank fit."""

    def __init__(self, plan: FitPlan, task: RowBlock | None = None, seed: int = 0) -> None:
        if plan.task_row_count != (0 if task is None else len(task.rows)):
            raise InvalidInput(
                f"the plan is for {plan.task_row_count} task gradients; give these", field="task_gradients"
            )
        self.plan = plan
        self.stage_number = 0
        self._task = task
        self._spans = [(layer.start, layer.stop) for layer in plan.layers]
        self._dtype = np.dtype(np.float64 if plan.element_bytes == 8 else np.float32)
        self._lambdas: Float64 | None = None  # DataInf's, of each layer
        self._expected_rows: int | None = None  # what the pass before saw
        drawn = range(len(plan.layers)) if "range" in plan.stages else ()
        self._bases = [self._drawn(number, seed) for number in drawn]
        self._sums = self._new_sums()
        self._held = HeldRows(plan.dim, plan.row_count, self._dtype) if plan.holds_out else None

    @property
    def row_count(self) -> int:
        """Rows seen in this pass, which is the position of the row that it wants next."""
        return self._sums.row_count

    def update(self, block: RowBlock) -> None:
        """Takes the next rows of this pass. Raises InvalidInput for another dim, or where trak's Q is missing."""
        self._check_block(block)
        if self.plan.method.weight == "trak_q":
            check_trak_q(block.trak_q)
        if self._held is not None and self.stage_number + 1 == len(self.plan.stages):
            self._held.take(block, self.row_count)
        self._add(self._sums, block)

    def end_pass(self) -> bool:
        """Ends a pass; whether there is another. Raises Conflict if it saw other rows than the one before."""
        stages = self.plan.stages
        if self.stage_number + 1 >= len(stages):
            return False
        self._check_row_count(exactly=True)
        mixture = self._mixture()
        if stages[self.stage_number] == "squares":
            sizes = [layer.size for layer in self.plan.layers]
            self._lambdas = mixture.mean_squares() / sizes * self.plan.dampings[0]
        else:
            totals = (mixture.take_mean(number) for number in range(len(self._spans)))
            self._bases = [orthonormal(total).astype(self._dtype) for total in totals]
        self._expected_rows = self._sums.row_count
        self.stage_number += 1
        self._sums = self._new_sums()
        return True

    def finish(self, damping: float | None = None) -> CheckpointFit:
        """The fit of all rows so far. ``damping``: one of the plan's candidates; without it the one that the rows held
        out like best, or the first. Raises InvalidInput for too few rows, moments that cannot be inverted, or gradients
        that are all zero; Conflict before the last pass."""
        plan = self.plan
        if not plan.stages:
            return CheckpointFit(plan=plan, preconditioner=Identity(), row_count=0, damping=0.0, lambdas=())
        if damping is not None and damping not in plan.dampings:
            raise InvalidInput(f"damping {damping} is none of the plan's candidates {plan.dampings}", field="damping")
        if self.stage_number + 1 < len(plan.stages):
            raise Conflict(f"pass {self.stage_number + 1} of {len(plan.stages)} is not over yet; call end_pass()")
        self._check_row_count(exactly=False)
        count = self._sums.row_count
        if count < (plan.rank or 1):
            raise InvalidInput(f"{count} rows came, fewer than the rank {plan.rank or 1}; ask for a lower rank=")
        mixture = self._mixture()
        scores = self._held_out_scores() if damping is None else ()
        if damping is None:
            damping = max(scores, key=lambda one: one[1])[0] if scores else plan.dampings[0]
        damped = self._damped(mixture, damping, float(count) if plan.method.over_rows else 1.0)
        return CheckpointFit(
            plan=plan,
            preconditioner=self._preconditioner(mixture, damped),
            row_count=count,
            damping=damping,
            lambdas=tuple(layer.unit * layer.damping for layer in damped),
            damping_scores=scores,
        )

    def state(self) -> Arrays:
        """Everything learnt so far, as arrays. Views: save them before the next ``update``."""
        found: Arrays = {"stage": np.array([self.stage_number])}
        found.update({f"sums/{name}": values for name, values in self._sums.state().items()})
        found.update({f"basis/{number}": basis for number, basis in enumerate(self._bases)})
        if self._lambdas is not None:
            found["lambdas"] = self._lambdas
        if self._expected_rows is not None:
            found["expected_rows"] = np.array([self._expected_rows])
        if self._held is not None:
            found.update({f"held/{name}": values for name, values in self._held.state().items()})
        if self._task is not None:
            found.update({"task/rows": self._task.rows, "task/scales": self._task.scales})
        return found

    @staticmethod
    def restore(plan: FitPlan, state: Mapping[str, npt.NDArray[Any]]) -> FitJob:
        """The job that ``state`` was taken of. The plan must be equal to its plan."""
        task = None
        if "task/rows" in state:
            scales = state["task/scales"]
            task = ArrayBlock(state["task/rows"], scales, np.full(len(scales), np.nan))
        job = FitJob(plan, task)
        job.stage_number = int(state["stage"][0])
        job._bases = [state[f"basis/{number}"] for number in range(len(plan.layers)) if f"basis/{number}" in state]
        job._lambdas = state.get("lambdas")
        job._expected_rows = int(state["expected_rows"][0]) if "expected_rows" in state else None
        job._sums = job._new_sums()
        job._sums.restore(_below("sums/", state))
        if job._held is not None:
            job._held.restore(_below("held/", state))
        return job

    # -- what is summed ------------------------------------------------------------------------------------------------

    def _drawn(self, number: int, seed: int) -> npt.NDArray[Any]:
        layer = self.plan.layers[number]
        shape = (layer.stop - layer.start, self.plan.width(layer))
        return np.random.default_rng([seed, number]).standard_normal(shape, dtype=np.float32).astype(self._dtype)

    def _new_sums(self) -> RowSums:
        stages = self.plan.stages
        stage = stages[self.stage_number] if stages else "squares"
        return RowSums(self._spans, [self._new_sum(stage, number) for number in range(len(self._spans))], self._dtype)

    def _new_sum(self, stage: str, number: int) -> LayerSum:
        start, stop = self._spans[number]
        if stage == "dense":
            return GramSum(stop - start)
        if stage == "range":
            return ProductSum(self._bases[number])
        return ProjectedSum(self._bases[number]) if stage == "projected" else NoSum()

    def _add(self, sums: RowSums, block: RowBlock) -> None:
        step = batch_row_count(self.plan.dim)
        for start in range(0, len(block.rows), step):
            rows, scales = block.rows[start : start + step], block.scales[start : start + step]
            sums.update(rows, self._factors(rows, scales.astype(np.float64)))

    def _factors(self, rows: npt.NDArray[Any], scales: Float64) -> Float64:
        """By what unit rows are multiplied before they are summed."""
        if self.plan.unit_rows:
            return np.where(scales > 0, inverse_or_zero(row_norms(rows)), 0.0)
        if self._lambdas is None:
            return scales
        damped = self._lambdas + layer_squares(rows, self._spans) * scales[:, None] ** 2
        return scales[:, None] * np.sqrt(inverse_or_zero(damped))

    def _mixture(self) -> Mixture:
        self._sums.flush()
        task = None
        if self._task is not None:
            self._check_block(self._task)
            task = self._new_sums()
            self._add(task, self._task)
            task.flush()
        return Mixture(self._sums, task, self.plan.task_share)

    # -- what becomes of it --------------------------------------------------------------------------------------------

    def _held_out_scores(self) -> tuple[tuple[float, float], ...]:
        """Each candidate with what the rows held out say of it; empty if none are held out."""
        if self._held is None:
            return ()
        block = self._held.block()
        if not len(block.rows):
            raise InvalidInput(f"{self.row_count} rows came, too few to hold some out; give one damping")
        held = self._new_sums()
        self._add(held, block)
        held.flush()
        rest = Mixture(Without(self._sums, held))
        rows = block.rows * self._factors(block.rows, block.scales)[:, None]
        found = []
        for damping in self.plan.dampings:
            tried = self._preconditioner(rest, self._damped(rest, damping, 1.0))
            found.append((damping, held_out_score(tried, rows)))
        if not np.isfinite([score for _, score in found]).all():
            raise InvalidInput("the rows held out give no score to choose a damping by; give one", field="damping")
        return tuple(found)

    def _damped(self, mixture: Mixture, damping: float, over: float) -> list[Damped]:
        names = [layer.name for layer in self.plan.layers]
        if self._lambdas is not None:
            found = [Damped(name, float(value), 1.0, over) for name, value in zip(names, self._lambdas, strict=True)]
        else:
            rows = mixture.rows.row_count + self.plan.task_row_count
            sides = [min(stop - start, rows) for start, stop in self._spans]
            units = mixture.mean_squares() / sides
            found = [Damped(name, float(unit), damping, over) for name, unit in zip(names, units, strict=True)]
        if not any(layer.unit for layer in found):
            raise InvalidInput("all gradients are zero, so nothing can be learnt of them; look at how they were taken")
        return found

    def _preconditioner(self, mixture: Mixture, damped: list[Damped]) -> Preconditioner:
        maps = [self._map(mixture, number, layer) for number, layer in enumerate(damped)]
        parts = tuple((start, stop, part) for (start, stop), part in zip(self._spans, maps, strict=True))
        return maps[0] if len(maps) == 1 else ByLayer(parts)

    def _map(self, mixture: Mixture, number: int, damped: Damped) -> Preconditioner:
        layer = self.plan.layers[number]
        if not damped.unit:
            return zero_map(layer.stop - layer.start, damped.over)
        basis = self._bases[number] if self.plan.rank is not None else None
        mean, rank = mixture.mean(number), self.plan.layer_rank(layer)
        if self.plan.method.curvature == "mean_of_inverses":
            return mean_of_inverses_map(damped, mean, basis, rank)
        return dense_map(damped, mean) if basis is None else low_rank_map(damped, mean, basis, rank)

    # -- checks --------------------------------------------------------------------------------------------------------

    def _check_block(self, block: RowBlock) -> None:
        if block.rows.ndim != 2 or block.rows.shape[1] != self.plan.dim:
            raise InvalidInput(f"rows have shape {block.rows.shape}; this fit is over dim {self.plan.dim}", field="dim")

    def _check_row_count(self, *, exactly: bool) -> None:
        """The last pass may see more rows than those before: these are folded in."""
        seen, before = self._sums.row_count, self._expected_rows
        if before is not None and (seen < before or (exactly and seen > before)):
            raise Conflict(
                f"pass {self.stage_number + 1} saw {seen} rows, the one before {before}; give each the same rows"
            )


def _below(prefix: str, arrays: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
