"""Count-sketch: every coordinate of the gradient is added, with a random sign, to one of ``dim`` buckets.

Coordinate i (row-major) of the parameter called ``name`` goes to slot ``draw(i) mod 2 * dim`` of the stream
(seed, name) of ``hashing``; its bucket is half the slot, rounded down, and its sign is + for an even slot, - for an odd
one. Inner products are kept in expectation, cosines within about 1/sqrt(dim). (Charikar, Chen, Farach-Colton 2002.)

The sums of a batch are kept by slot, [rows, 2 * dim], so that a table of slots is all that a gradient meets on its way:
no multiplication by signs; the two slots of a bucket are subtracted once, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from covector.errors import InvalidInput
from covector.gradients.contributions import Contribution, Lookup, Outer, Plan, Target, Vector, line_chunks, outer_lines
from covector.gradients.hashing import GENERATOR_VERSION, draws_below, key_of
from covector.gradients.whole import add_at
from covector.types import Block, Projection

CHUNK_ELEMENTS_MAX = 1 << 20
"""The part of a layer's gradient that exists at once, in elements a row."""

TABLE_BYTES_MAX = 1 << 30
"""Tables of slots are kept up to this; those beyond are drawn anew for each batch."""

SLOTS_MAX = 1 << 31
"""The most slots a sketch has, so that its bias (SLOTS_MAX / 2^63) is nothing."""


@dataclass(frozen=True, slots=True)
class CountSketch:
    """Sketches gradients to ``dim`` coordinates.

    ``blocks="single"``: one sketch of all parameters together (the most accurate for its size).
    ``blocks="layer"``: one sketch for each parameter, ``dim`` divided evenly among them, the first ones getting the
    remainder; the space's blocks say where each lies and how large its parameter is. DataInf wants this.
    """

    dim: int = 4096
    seed: int = field(default=0, kw_only=True)
    blocks: Literal["single", "layer"] = field(default="single", kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.dim, bool) or not isinstance(self.dim, int) or not 1 <= self.dim < SLOTS_MAX // 2:
            raise InvalidInput(f"CountSketch: dim must be an integer from 1 to 2^30 - 1, not {self.dim!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise InvalidInput(f"CountSketch: seed must be an integer, not {self.seed!r}")
        if self.blocks not in ("single", "layer"):
            raise InvalidInput(f"CountSketch: blocks must be 'single' or 'layer', not {self.blocks!r}")

    def describe(self, plan: Plan) -> Projection:
        return Projection(kind="count_sketch", dim=self.dim, seed=self.seed, version=GENERATOR_VERSION)

    def plan(self, targets: Sequence[Target]) -> SketchPlan:
        return SketchPlan(self, targets)


class SketchPlan:
    """A count-sketch laid out over the parameters of a model, with its tables of slots."""

    def __init__(self, sketch: CountSketch, targets: Sequence[Target]) -> None:
        self.dim = sketch.dim
        self.blocks = _layer_blocks(sketch.dim, targets) if sketch.blocks == "layer" else ()
        ranges = {block.name: (block.start, block.stop) for block in self.blocks}
        self._slots = SlotTables(sketch.seed, {t.name: ranges.get(t.name, (0, sketch.dim)) for t in targets})

    def start(self, row_count: int, device: torch.device) -> torch.Tensor:
        return torch.zeros(row_count, 2 * self.dim, device=device)

    def add(self, total: torch.Tensor, target: Target, contribution: Contribution) -> None:
        match contribution:
            case Outer():
                for start, stop in line_chunks(target.shape, CHUNK_ELEMENTS_MAX):
                    lines = outer_lines(contribution, start, stop)
                    self._add_elements(total, target, start * target.shape[1], lines.flatten(1))
            case Lookup(lines, values):
                slots = self._slots.of_lines(target.name, lines, target.shape[1])
                add_at(total, slots.flatten(1), values.flatten(1))
            case Vector(values):
                self._add_elements(total, target, 0, values)

    def finish(self, total: torch.Tensor) -> torch.Tensor:
        return fold(total)

    def _add_elements(self, total: torch.Tensor, target: Target, start: int, values: torch.Tensor) -> None:
        """Adds values: float32[rows, n], the elements from ``start`` on."""
        slots = self._slots.of_range(target.name, start, start + values.shape[1], total.device)
        add_at(total, slots.expand_as(values), values)


def fold(total: torch.Tensor) -> torch.Tensor:
    """Subtracts the odd slot of each bucket from the even one: float32[rows, 2 * dim] -> float32[rows, dim]."""
    return total[:, 0::2] - total[:, 1::2]


class SlotTables:
    """The slots of elements, drawn once and kept while there is room.

    ``ranges``: for each parameter the buckets [start, stop) that it is sketched to.
    """

    def __init__(self, seed: int, ranges: dict[str, tuple[int, int]]) -> None:
        self._keys = {name: key_of(seed, name) for name in ranges}
        self._ranges = ranges
        self._kept: dict[tuple[str, int, int, torch.device], torch.Tensor] = {}
        self._kept_bytes = 0

    def of_range(self, name: str, start: int, stop: int, device: torch.device) -> torch.Tensor:
        """The slots of elements start .. stop - 1, int64[stop - start]: torch adds by int32 15 times slower."""
        place = (name, start, stop, device)
        table = self._kept.get(place)
        if table is None:
            table = self._draw(name, torch.arange(start, stop, device=device))
            if self._kept_bytes + table.nbytes <= TABLE_BYTES_MAX:
                self._kept[place] = table
                self._kept_bytes += table.nbytes
        return table

    def of_lines(self, name: str, lines: torch.Tensor, width: int) -> torch.Tensor:
        """The slots of whole lines of a matrix, int64[*lines.shape, width]; each distinct line is drawn once."""
        distinct, where = torch.unique(lines, return_inverse=True)
        elements = distinct[:, None] * width + torch.arange(width, device=lines.device)
        return self._draw(name, elements)[where]

    def _draw(self, name: str, elements: torch.Tensor) -> torch.Tensor:
        start, stop = self._ranges[name]
        return draws_below(2 * (stop - start), self._keys[name], elements).add_(2 * start)


def _layer_blocks(dim: int, targets: Sequence[Target]) -> tuple[Block, ...]:
    if dim < len(targets):
        raise InvalidInput(
            f"CountSketch(blocks='layer'): dim {dim} cannot be divided among {len(targets)} parameters; "
            f"give at least {len(targets)}, or use blocks='single'"
        )
    base, remainder = divmod(dim, len(targets))
    starts = [base * index + min(index, remainder) for index in range(len(targets) + 1)]
    return tuple(
        Block(target.name, start, stop, target.size)
        for target, start, stop in zip(targets, starts, starts[1:], strict=False)
    )
