"""What a layer's backward pass says about its parameters, row by row, and what a projection does with it.

A layer never hands over a gradient of shape [rows, *parameter.shape]: it hands over the factors it is made of, and the
projection decides what to materialise. Contributions to the same parameter add up: a layer that is called twice, or
a tensor tied between two layers, simply contributes twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from covector.types import Block, Projection


@dataclass(frozen=True, slots=True)
class Target:
    """A parameter to differentiate by. ``transposed``: it is stored as [inputs, outputs] (GPT-2's Conv1D)."""

    name: str
    parameter: nn.Parameter
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.parameter.shape)

    @property
    def size(self) -> int:
        return self.parameter.numel()


@dataclass(frozen=True, slots=True)
class Outer:
    """A matrix's gradient, summed over places: ``sum_t left[:, t, :, None] * right[:, t, None, :]``.

    left: float32[rows, places, shape[0]], right: float32[rows, places, shape[1]].
    """

    left: torch.Tensor
    right: torch.Tensor


@dataclass(frozen=True, slots=True)
class Lookup:
    """An embedding's gradient: ``values[:, t]`` is added to line ``lines[:, t]`` of the matrix.

    lines: int64[rows, places], values: float32[rows, places, shape[1]].
    """

    lines: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True, slots=True)
class Vector:
    """A vector's gradient itself: values float32[rows, size]."""

    values: torch.Tensor


Contribution = Outer | Lookup | Vector


class Plan(Protocol):
    """A projection laid out over the targets of one model."""

    dim: int
    blocks: tuple[Block, ...]

    def start(self, row_count: int, device: torch.device) -> torch.Tensor:
        """Zeros to accumulate the rows of a batch in."""

    def add(self, total: torch.Tensor, target: Target, contribution: Contribution) -> None:
        """Adds the projection of a contribution to ``total``, in place."""

    def finish(self, total: torch.Tensor) -> torch.Tensor:
        """The projected gradients, float32[rows, dim]."""


class Projector(Protocol):
    """How gradients become sketches, before any model is known."""

    def describe(self, plan: Plan) -> Projection:
        """What the space says about the projection."""

    def plan(self, targets: Sequence[Target]) -> Plan:
        """Lays the projection out. Raises InvalidInput where it cannot."""


def line_chunks(target_shape: tuple[int, ...], elements_max: int) -> list[tuple[int, int]]:
    """Ranges of a matrix's lines of at most ``elements_max`` elements each (one line at least), the same every time."""
    lines, width = target_shape
    step = max(1, elements_max // max(width, 1))
    return [(start, min(start + step, lines)) for start in range(0, lines, step)]


def outer_lines(contribution: Outer, start: int, stop: int) -> torch.Tensor:
    """Lines [start, stop) of the gradients of a matrix, float32[rows, stop - start, shape[1]]."""
    return torch.bmm(contribution.left[:, :, start:stop].transpose(1, 2), contribution.right)
