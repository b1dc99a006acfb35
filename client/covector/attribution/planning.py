"""What a fit will do and need, known before the first row is read: passes, layers, rank, memory.

``plan_fit`` refuses here what could only fail later, and says what to do about it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from covector.attribution.held_out import CANDIDATES, HELD_OUT, ROWS_MIN, STRIDE, held_count_max
from covector.attribution.inverting import TALL_ROWS
from covector.attribution.methods import Method, method_named
from covector.attribution.sums import TILE_DIM, batch_row_count
from covector.errors import InvalidInput, LimitExceeded
from covector.types import Block, Space

Stage = Literal["squares", "range", "projected", "dense"]

DENSE_DIM_MAX = 16_384  # 2 GiB of moments
RANK_DEFAULT = 1024  # above it
OVERSAMPLING = 32  # directions more than the rank, so that the last ones converge too
EXACT_DAMPING = 0.3  # below it small eigenvalues count, and products are made in float64
TASK_SHARE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPlan:
    """A fit of one checkpoint, checked. ``layers`` lie end to end over [0, dim); a fit that is not by layer has one.
    ``rank`` is None for a dense fit. ``dampings``: the candidates, in the method's unit; the first is the one that is
    taken if none is chosen. ``holds_out``: whether rows are held out to choose by (``held_out``). ``notes``: what a
    user should know of the choices made."""

    method: Method
    dim: int
    layers: tuple[Block, ...]
    row_count: int
    rank: int | None
    dampings: tuple[float, ...]
    range_passes: int
    unit_rows: bool
    task_share: float
    task_row_count: int
    notes: tuple[str, ...]
    holds_out: bool = False

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One for each pass over the rows."""
        if self.method.curvature == "none":
            return ()
        first: tuple[Stage, ...] = ("squares",) if self.method.curvature == "mean_of_inverses" else ()
        if self.rank is None:
            return (*first, "dense")
        ranges: list[Stage] = ["range"] * self.range_passes
        return (*first, *ranges, "projected")

    @property
    def element_bytes(self) -> int:
        """Of the buffer and of the products: 8 where damping is so small that small eigenvalues count (note 016)."""
        inverts = self.method.curvature == "moments"
        return 8 if inverts and min(self.dampings) < EXACT_DAMPING else 4

    @property
    def facts(self) -> dict[str, Any]:
        """Plain values, ready for JSON, that ``plan_of`` makes the plan again from."""
        return {**asdict(self), "method": self.method.name, "notes": list(self.notes)}

    def layer_rank(self, layer: Block) -> int:
        """The rank of a low-rank fit in one layer."""
        return min(self.rank or 0, layer.stop - layer.start)

    def width(self, layer: Block) -> int:
        """How many directions a low-rank fit follows in a layer."""
        return min(self.layer_rank(layer) + OVERSAMPLING, layer.stop - layer.start)

    @property
    def memory_bytes(self) -> int:
        """An upper bound of the memory that the arrays of the fit take at any time, the caller's blocks left out."""
        if not self.stages:
            return 0
        sides = [layer.stop - layer.start for layer in self.layers]
        batch = batch_row_count(self.dim)
        working = batch * self.dim * self.element_bytes + 8 * batch * (len(sides) + 4) + 8 * TILE_DIM**2
        working += batch * max(sides) * 4 if len(sides) > 1 else 0
        working += self._held_bytes
        task = 2 if self.task_row_count else 1
        if self.rank is None:
            squared = [8 * side * side for side in sides]
            return working * task + (task + 1) * sum(squared) + 5 * max(squared)
        widths = [self.width(layer) for layer in self.layers]
        tall = sum(side * width for side, width in zip(sides, widths, strict=True))
        step = max(TALL_ROWS, 4 * max(widths))
        blocks = max(widths) * (3 * 8 * min(step, max(sides)) + 2 * self.element_bytes * batch)
        triangles = 8 * max(widths) ** 2 * (6 + 4 * (max(sides) // step))
        return working * task + (2 * self.element_bytes + 8 * task) * tall + blocks + triangles

    @property
    def _held_bytes(self) -> int:
        """The rows held out, and while one is chosen they again, what A makes of them, and their sums."""
        if not self.holds_out:
            return 0
        held = held_count_max(self.dim, self.element_bytes)
        sides = [layer.stop - layer.start if self.rank is None else self.width(layer) for layer in self.layers]
        batch = batch_row_count(self.dim) * self.dim * self.element_bytes
        return held * self.dim * (self.element_bytes + 4 * 8) + batch + 16 * sum(n * n for n in sides)


def plan_of(facts: Mapping[str, Any]) -> FitPlan:
    """The plan that ``facts`` describes."""
    return FitPlan(
        **{
            **facts,
            "method": method_named(facts["method"]),
            "layers": tuple(Block(**layer) for layer in facts["layers"]),
            "dampings": tuple(facts["dampings"]),
            "notes": tuple(facts["notes"]),
        }
    )


def plan_fit(
    method: str,
    space: Space,
    row_count: int,
    *,
    damping: float | str | Sequence[float] | None = None,
    holds_out: bool = False,
    rank: int | None = None,
    by_layer: bool | None = None,
    unit_rows: bool = False,
    range_passes: int = 1,
    task_row_count: int = 0,
    task_share: float | None = None,
    memory_bytes_max: int | None = None,
) -> FitPlan:
    """Checks what is asked of a fit and decides the rest.

    ``damping``: in the method's unit, one or several candidates to choose among, None for the default; ``holds_out``:
    choose among them by rows held out, which ``damping="held_out"`` does among its own; ``rank``: None for a dense fit
    as far as dim and memory allow; ``by_layer``: whether each layer of the space is fitted alone, None for the method's
    habit, False for all coordinates as one layer; ``unit_rows``: rows and queries count by their direction;
    ``range_passes``: passes to find the directions of a low-rank fit; ``task_share``: of the task's gradients in
    TrackStar's moments, default 0.9.

    Raises NotFound for an unknown method, InvalidInput for what cannot be, LimitExceeded for what needs more memory
    than ``memory_bytes_max``; the messages say what can.
    """
    rule = method_named(method)
    notes: list[str] = []
    layers = _layers(rule, space, by_layer, notes)
    _check_counts(row_count, range_passes)
    if isinstance(damping, str):
        damping, holds_out = _named_damping(damping), True
    plan = FitPlan(
        method=rule,
        dim=space.dim,
        layers=layers,
        row_count=row_count,
        rank=_rank(rank, row_count, layers, notes),
        dampings=_dampings(rule, damping),
        range_passes=range_passes,
        unit_rows=_unit_rows(rule, unit_rows),
        task_share=_task_share(rule, task_row_count, task_share),
        task_row_count=task_row_count,
        notes=tuple(notes),
    )
    _check_undamped(plan)
    if holds_out:
        plan = _holding_out(plan)
    return plan if memory_bytes_max is None else _within(plan, rank is None, memory_bytes_max)


def _check_counts(row_count: int, range_passes: int) -> None:
    if row_count < 1:
        raise InvalidInput("there are no rows to fit; write gradients first")
    if range_passes < 1:
        raise InvalidInput(f"range_passes is {range_passes}; at least one pass finds the directions")


def _layers(rule: Method, space: Space, by_layer: bool | None, notes: list[str]) -> tuple[Block, ...]:
    size = sum(math.prod(parameter.shape) for parameter in space.parameters) or space.dim
    whole = (Block("all", 0, space.dim, max(size, 1)),)
    if not (rule.by_layer if by_layer is None else by_layer):
        if rule.by_layer:
            notes.append(f"{rule.name} works layer by layer; here all coordinates are one layer of {size} parameters")
        return whole
    if not space.blocks:
        why = f"{rule.name} works layer by layer, but" if by_layer is None else "by_layer=True, but"
        raise InvalidInput(
            f"{why} the space has no blocks, so nothing says which coordinates belong to which layer; take the "
            "gradients with CountSketch(blocks='layer'), or treat all coordinates as one layer: by_layer=False "
            "(--one-layer)",
            field="blocks",
        )
    ends = [0, *(block.stop for block in space.blocks)]
    starts = [*(block.start for block in space.blocks), space.dim]
    if ends != starts or any(block.stop <= block.start or block.size < 1 for block in space.blocks):
        raise InvalidInput(f"the blocks of the space do not lie end to end over its {space.dim} coordinates")
    return space.blocks


def _rank(rank: int | None, row_count: int, layers: Sequence[Block], notes: list[str]) -> int | None:
    widest = max(layer.stop - layer.start for layer in layers)
    if rank is None:
        if widest <= DENSE_DIM_MAX:
            return None
        chosen = min(RANK_DEFAULT, row_count)
        notes.append(f"layers of {widest} coordinates are past the {DENSE_DIM_MAX} of a dense fit: rank {chosen}")
        return chosen
    if rank < 1:
        raise InvalidInput(f"rank is {rank}; it must be at least 1", field="rank")
    if rank > row_count:
        raise InvalidInput(
            f"rank {rank} needs at least {rank} rows, and there are {row_count}; add rows, or ask for rank={row_count}",
            field="rank",
        )
    if rank > widest:
        raise InvalidInput(f"rank {rank} is more than the {widest} coordinates; ask for rank={widest}", field="rank")
    return rank


def _named_damping(name: str) -> Sequence[float]:
    if name != HELD_OUT:
        raise InvalidInput(f"damping is {name!r}; it is a number, several, or {HELD_OUT!r}", field="damping")
    return CANDIDATES


def _dampings(rule: Method, damping: float | Sequence[float] | None) -> tuple[float, ...]:
    if damping is None:
        return (rule.damping,)
    given = (damping,) if isinstance(damping, int | float) else tuple(damping)
    if not given:
        raise InvalidInput("damping: no candidates; give at least one", field="damping")
    for value in given:
        if not (math.isfinite(value) and value >= 0):
            raise InvalidInput(f"damping is {value}; it is a number from 0 on, in units of the {rule.damping_unit}")
    if len(given) > 1 and rule.curvature == "mean_of_inverses":
        raise InvalidInput(
            f"{rule.name} damps each row's own term, so a fit has one damping; give one", field="damping"
        )
    return tuple(float(value) for value in given)


def _unit_rows(rule: Method, unit_rows: bool) -> bool:
    if unit_rows and rule.curvature != "moments":
        raise InvalidInput(f"unit_rows=True has no meaning for {rule.name}", field="unit_rows")
    return unit_rows


def _task_share(rule: Method, task_row_count: int, share: float | None) -> float:
    if not task_row_count:
        if share:
            raise InvalidInput(
                f"task_share is {share}, but no task_gradients are given; give gradients of the query task",
                field="task_gradients",
            )
        return 0.0
    if not rule.takes_task:
        raise InvalidInput(f"{rule.name} takes no task_gradients; trackstar does", field="task_gradients")
    share = TASK_SHARE if share is None else share
    if not 0 < share < 1:
        raise InvalidInput(f"task_share is {share}; it must lie between 0 and 1", field="task_share")
    return share


def _check_undamped(plan: FitPlan) -> None:
    if min(plan.dampings) > 0 or plan.method.curvature == "none":
        return
    if plan.method.curvature == "mean_of_inverses":
        raise InvalidInput(f"{plan.method.name} divides by its damping; give one above 0, or None for the default")
    if plan.rank is not None:
        raise InvalidInput("a low-rank fit divides by its damping; give one above 0, or fit without rank=")
    widest = max(layer.stop - layer.start for layer in plan.layers)
    if plan.row_count + plan.task_row_count < widest:
        raise InvalidInput(
            f"without damping {widest} coordinates need at least as many rows, and there are {plan.row_count}; give a "
            "damping above 0 (None takes the default), or sketch to fewer dimensions",
            field="damping",
        )


def _holding_out(plan: FitPlan) -> FitPlan:
    if len(plan.dampings) == 1:
        return plan
    if plan.method.curvature == "none":
        raise InvalidInput(f"{plan.method.name} damps nothing, so there is no damping to choose", field="damping")
    if plan.task_row_count:
        raise InvalidInput(
            "with task_gradients the moments are not those of the rows, so rows held out cannot choose the damping; "
            "give one",
            field="damping",
        )
    if min(plan.dampings) == 0:
        raise InvalidInput("dampings to choose among are above 0; leave 0 out", field="damping")
    if plan.row_count < ROWS_MIN * STRIDE:
        raise InvalidInput(
            f"one row in {STRIDE} is held out to choose the damping, and of {plan.row_count} rows that is too few; "
            f"write at least {ROWS_MIN * STRIDE}, or give one damping (None takes the default)",
            field="damping",
        )
    return replace(plan, holds_out=True)


def _within(plan: FitPlan, may_choose_rank: bool, memory_bytes_max: int) -> FitPlan:
    """The plan, or one of lower rank where the rank is ours to choose, that fits into memory."""
    if plan.memory_bytes <= memory_bytes_max:
        return plan
    rank = min(RANK_DEFAULT, plan.row_count, plan.dim // 2) if plan.rank is None else plan.rank
    while may_choose_rank and rank >= 16 and min(plan.dampings) > 0:
        note = f"a dense fit would need {plan.memory_bytes >> 20} MiB of the {memory_bytes_max >> 20}: rank {rank}"
        lower = replace(plan, rank=rank, notes=(*plan.notes, note))
        if lower.memory_bytes <= memory_bytes_max:
            return lower
        rank //= 2
    raise LimitExceeded(
        f"this fit needs {plan.memory_bytes >> 20} MiB of memory, and may take {memory_bytes_max >> 20}; ask for a "
        "lower rank=, or raise the limit",
        limit="memory_bytes",
        value=memory_bytes_max,
    )
