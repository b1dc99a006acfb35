"""Kronecker-factored projection: a matrix's gradient is projected from both sides, and never exists itself.

For a layer y = W x the gradient of W is sum_t delta_t x_t^T; the sketch keeps ``sum_t (C delta_t)(A x_t)^T``, which is
C W' A^T for the gradient W'. (LoGra: Choe et al. 2024, "What is your data worth to GPT?".) A and C have entries
+-1/sqrt(rows) from the streams (seed, name + "/in") and (seed, name + "/out") of ``hashing``, element j * k + i being
line i of column j. Embeddings are matrices like any other: x is the indicator of the token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from covector.errors import InvalidInput
from covector.gradients.contributions import Contribution, Lookup, Outer, Plan, Target, Vector
from covector.gradients.hashing import GENERATOR_VERSION, key_of, signs
from covector.gradients.sketch import SlotTables, fold
from covector.gradients.whole import add_at
from covector.types import Block, Projection


@dataclass(frozen=True, slots=True, kw_only=True)
class Kronecker:
    """Projects each matrix's inputs to ``dim_in`` and outputs to ``dim_out`` coordinates, one block a parameter.

    An axis that is no longer than its target is kept as it is. An embedding's outputs are its lines (tokens), its
    inputs the hidden coordinates, so that it can be tied to the output layer. Vectors (biases, norms) have no factors:
    one of at most ``dim_in * dim_out`` elements is kept as it is, a longer one is count-sketched to that many.
    """

    dim_in: int
    dim_out: int
    seed: int = field(default=0)

    def __post_init__(self) -> None:
        for name, value in (("dim_in", self.dim_in), ("dim_out", self.dim_out)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidInput(f"Kronecker: {name} must be an integer of at least 1, not {value!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise InvalidInput(f"Kronecker: seed must be an integer, not {self.seed!r}")

    def describe(self, plan: Plan) -> Projection:
        return Projection(
            kind="kronecker", dim=plan.dim, seed=self.seed, version=GENERATOR_VERSION,
            dim_in=self.dim_in, dim_out=self.dim_out,
        )  # fmt: skip

    def plan(self, targets: Sequence[Target]) -> KroneckerPlan:
        return KroneckerPlan(self, targets)


class KroneckerPlan:
    """The projection laid out over the parameters of a model; a matrix's block is row-major, like the matrix."""

    def __init__(self, projection: Kronecker, targets: Sequence[Target]) -> None:
        self._projection = projection
        shapes = {target.name: self._block_shape(target) for target in targets}
        stops = torch.tensor([_product(shapes[target.name]) for target in targets]).cumsum(0).tolist()
        self.dim: int = stops[-1]
        self.blocks = tuple(
            Block(target.name, stop - _product(shapes[target.name]), stop, target.size)
            for target, stop in zip(targets, stops, strict=True)
        )
        self._range = {block.name: slice(block.start, block.stop) for block in self.blocks}
        vectors = {t.name: (0, shapes[t.name][0]) for t in targets if len(t.shape) != 2}
        self._slots = SlotTables(projection.seed, vectors)
        self._sides: dict[tuple[str, int, torch.device], torch.Tensor | None] = {}

    def start(self, row_count: int, device: torch.device) -> torch.Tensor:
        return torch.zeros(row_count, self.dim, device=device)

    def add(self, total: torch.Tensor, target: Target, contribution: Contribution) -> None:
        part = total[:, self._range[target.name]]
        match contribution:
            case Outer(left, right):
                part += _outer(self._project(target, 0, left), self._project(target, 1, right))
            case Lookup(lines, values):
                part += _outer(self._indicators(target, lines), self._project(target, 1, values))
            case Vector(values):
                part += self._vector(target, values, part.shape[1])

    def finish(self, total: torch.Tensor) -> torch.Tensor:
        return total

    def _block_shape(self, target: Target) -> tuple[int, ...]:
        bounds = (self._projection.dim_out, self._projection.dim_in)
        if len(target.shape) != 2:
            return (min(target.size, bounds[0] * bounds[1]),)
        lines, width = bounds[::-1] if target.transposed else bounds
        return min(lines, target.shape[0]), min(width, target.shape[1])

    def _side(self, target: Target, axis: int, device: torch.device) -> torch.Tensor | None:
        """The projection of an axis, float32[shape[axis], k], or None where the axis is kept."""
        place = (target.name, axis, device)
        if place not in self._sides:
            size, k = target.shape[axis], self._block_shape(target)[axis]
            label = target.name + ("/in" if (axis == 1) != target.transposed else "/out")
            key = key_of(self._projection.seed, label)
            self._sides[place] = None if size == k else signs(key, size * k, device).view(size, k) / k**0.5
        return self._sides[place]

    def _project(self, target: Target, axis: int, values: torch.Tensor) -> torch.Tensor:
        side = self._side(target, axis, values.device)
        return values if side is None else values @ side

    def _indicators(self, target: Target, lines: torch.Tensor) -> torch.Tensor:
        side = self._side(target, 0, lines.device)
        if side is None:
            return torch.nn.functional.one_hot(lines, target.shape[0]).to(torch.float32)
        return side[lines]

    def _vector(self, target: Target, values: torch.Tensor, k: int) -> torch.Tensor:
        if k == target.size:
            return values
        slots = self._slots.of_range(target.name, 0, target.size, values.device)
        total = torch.zeros(len(values), 2 * k, device=values.device)
        add_at(total, slots.expand_as(values), values)
        return fold(total)


def _outer(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """sum_t left[:, t] right[:, t]^T, flattened: float32[rows, k_left * k_right]."""
    return torch.bmm(left.transpose(1, 2), right).flatten(1)


def _product(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
