"""No projection: the gradient itself, parameter after parameter in the order of ``named_parameters``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from covector.gradients.contributions import Contribution, Lookup, Outer, Plan, Target, Vector, outer_lines
from covector.types import Block, Projection


@dataclass(frozen=True, slots=True)
class Whole:
    """Keeps every coordinate. The space lists a block for each parameter."""

    def describe(self, plan: Plan) -> Projection:
        return Projection(kind="none", dim=plan.dim)

    def plan(self, targets: Sequence[Target]) -> WholePlan:
        return WholePlan(targets)


class WholePlan:
    """Coordinates [start, stop) of each parameter, flattened in row-major order."""

    def __init__(self, targets: Sequence[Target]) -> None:
        stops = torch.tensor([target.size for target in targets]).cumsum(0).tolist()
        self.dim: int = stops[-1]
        self.blocks = tuple(
            Block(target.name, stop - target.size, stop, target.size)
            for target, stop in zip(targets, stops, strict=True)
        )
        self._range = {block.name: slice(block.start, block.stop) for block in self.blocks}

    def start(self, row_count: int, device: torch.device) -> torch.Tensor:
        return torch.zeros(row_count, self.dim, device=device)

    def add(self, total: torch.Tensor, target: Target, contribution: Contribution) -> None:
        add_whole(total[:, self._range[target.name]], target, contribution)

    def finish(self, total: torch.Tensor) -> torch.Tensor:
        return total


def add_whole(part: torch.Tensor, target: Target, contribution: Contribution) -> None:
    """Adds an unprojected contribution to part: float32[rows, target.size], in place."""
    match contribution:
        case Outer():
            part += outer_lines(contribution, 0, target.shape[0]).flatten(1)
        case Lookup(lines, values):
            width = target.shape[1]
            places = lines[:, :, None] * width + torch.arange(width, device=lines.device)
            add_at(part, places.flatten(1), values.flatten(1))
        case Vector(values):
            part += values


def add_at(total: torch.Tensor, places: torch.Tensor, values: torch.Tensor) -> None:
    """``total[i, places[i, j]] += values[i, j]`` in place, with the same bits every time.

    total: float32[rows, n], places: int64[rows, m], values: float32[rows, m]. On the CPU scatter_add_ goes through
    each row in order; on CUDA its order is not fixed, that of an accumulating index_put_ is.
    """
    if not total.is_cuda:
        total.scatter_add_(1, places, values)
        return
    rows = torch.arange(len(total), device=total.device)[:, None].expand_as(places)
    total.index_put_((rows, places), values, accumulate=True)
