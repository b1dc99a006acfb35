"""What is asked of a fit, and the plan of it at each checkpoint: passes, rank and memory, before a row is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.attribution.checkpoint_fit import CheckpointFit
from covector.attribution.methods import method_named
from covector.attribution.planning import FitPlan, plan_fit
from covector.attribution.rows import ArrayBlock
from covector.attribution.scoring import first_non_finite_row, split_scale
from covector.errors import InvalidInput, LimitExceeded
from covector.types import Space
from covector_server.storage.view import CheckpointView

PER_ROW = "inverse_whitened_norm"  # weights that take a product with A for each row, and are stored
BLOCK_BYTES = 64 << 20  # of rows and files on their way, about


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FitSpec:
    """What is asked. ``checkpoints``: names, none for the only one; ``tasks``: float32[checkpoints, m, dim], gradients
    of the query task at each, or None; ``damping``: one, or candidates that rows held out choose among. The rest as in
    ``plan_fit``, None for its own choice."""

    method: str
    checkpoints: Sequence[str] = ()
    damping: float | Sequence[float] | None = None
    rank: int | None = None
    by_layer: bool | None = None
    unit_rows: bool = False
    range_passes: int = 1
    task_share: float | None = None
    tasks: npt.NDArray[np.float32] | None = None

    def parameters(self, checkpoints: Sequence[str]) -> dict[str, Any]:
        """What makes two fits the same, as JSON values; ``checkpoints``: the names that it came to."""
        return {
            "method": self.method,
            "checkpoints": sorted(checkpoints),
            "damping": list(self.damping) if isinstance(self.damping, Sequence) else self.damping,
            "rank": self.rank,
            "by_layer": self.by_layer,
            "unit_rows": self.unit_rows,
            "range_passes": self.range_passes,
            "task_share": self.task_share,
            "tasks": "" if self.tasks is None else sha256(self.tasks.tobytes()).hexdigest(),
        }

    def task(self, number: int) -> ArrayBlock | None:
        """The query task's gradients at one of the checkpoints."""
        if self.tasks is None:
            return None
        unit, scales = split_scale(self.tasks[number].astype(np.float64))
        return ArrayBlock(unit, scales, np.full(len(unit), np.nan))

    def check_tasks(self, checkpoint_count: int, dim: int) -> None:
        """Raises InvalidInput for gradients of the query task that do not fit or are not finite."""
        if self.tasks is None:
            return
        if self.tasks.ndim != 3 or self.tasks.shape[0] != checkpoint_count or self.tasks.shape[2] != dim:
            raise InvalidInput(
                f"task_gradients have shape {self.tasks.shape}; the fit is over {checkpoint_count} checkpoints of dim "
                f"{dim}",
                field="task_gradients",
            )
        for number, vectors in enumerate(self.tasks):
            bad = first_non_finite_row(vectors)
            if bad is not None:
                raise InvalidInput(f"task_gradients: row {bad} of checkpoint {number} holds NaN or infinity", row=bad)


def plan_part(
    spec: FitSpec, space: Space, checkpoint: CheckpointView, row_id_count: int, memory_bytes_max: int
) -> FitPlan:
    """The plan for one checkpoint. Raises as ``plan_fit``: what is asked cannot be, or needs too much memory."""
    room = memory_bytes_max - other_bytes(spec.method, row_id_count)
    if room <= 0:
        raise LimitExceeded(
            f"a fit may take {memory_bytes_max >> 20} MiB of memory, which the weights of {row_id_count} rows fill "
            "alone; raise the limit fit_memory_bytes",
            limit="fit_memory_bytes",
            value=memory_bytes_max,
        )
    return plan_fit(
        spec.method,
        space,
        checkpoint.row_count,
        damping=spec.damping,
        holds_out=isinstance(spec.damping, Sequence),
        rank=spec.rank,
        by_layer=spec.by_layer,
        unit_rows=spec.unit_rows,
        range_passes=spec.range_passes,
        task_row_count=0 if spec.tasks is None else spec.tasks.shape[1],
        task_share=spec.task_share,
        memory_bytes_max=room,
    )


def other_bytes(method: str, row_id_count: int) -> int:
    """Memory of a fit beside its plan's: rows on their way, and the weights of rows where they are stored."""
    return BLOCK_BYTES + (8 * row_id_count if method_named(method).weight == PER_ROW else 0)


def memory_bytes(plan: FitPlan, row_id_count: int) -> int:
    """An upper bound of the anonymous memory that a fit of this plan takes."""
    return plan.memory_bytes + other_bytes(plan.method.name, row_id_count)


def has_row_weights(fit: CheckpointFit) -> bool:
    """Whether the weights of its rows are stored with it."""
    return fit.plan.method.weight == PER_ROW


def can_fold(plan: FitPlan) -> bool:
    """Whether rows that come later can be added to what was learnt, with the result of learning from all of them: where
    all that is kept is a sum over rows. The directions of a low-rank fit, and DataInf's damping, follow from all rows;
    and single rows, such as those held out, are not kept once a fit is finished."""
    return len(plan.stages) == 1 and not plan.holds_out
