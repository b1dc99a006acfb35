"""Gradients of the language model of ``smollm2``, as scores want them: sketched as users would, or exact.

An exact score needs inner products alone. So what is kept of the gradients themselves, with their 325,632 coordinates,
is one Gram matrix a parameter, of rows and queries together. ``coordinates`` turns a sum of those back into vectors,
as many as there are rows, with the same inner products.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.smollm2 import BETAS, Adapters, Learner, State

from covector.gradients import CountSketch, GradientModel
from covector.gradients.contributions import Vector
from covector.gradients.selection import select
from covector.types import Block, Function, Space

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

DIMS = (1024, 4096, 16384)
DEFAULT_DIM = 4096
LAYERED_DIMS = (16384, 65536)
KRONECKER_DAMPINGS = (0.1, 1.0, 10.0)
EPSILON = 1e-8
SMALLEST = 1e-12  # of the largest eigenvalue: directions below are rounding


@dataclass(frozen=True, slots=True)
class Taken:
    """What is kept of the gradients of n rows and m queries at one state. sketches: float32[n + m, dim] by name;
    grams: float64[parameters, n + m, n + m]; trak_q: float32[n]."""

    row_count: int
    sketches: Mapping[str, Float32]
    grams: Float64
    trak_q: Float32

    def sketch(self, name: str) -> tuple[Float32, Float32]:
        """Rows and queries."""
        found = self.sketches[name]
        return found[: self.row_count], found[self.row_count :]

    def exact(self) -> tuple[Float64, Float64]:
        """Rows and queries, unsketched, in as many coordinates as there are rows, and one."""
        return coordinates(self.grams.sum(axis=0), self.row_count)

    def exact_by(self, groups: Sequence[Sequence[int]], blocks: Sequence[Block]) -> tuple[Float64, Float64, Space]:
        """The same for each group of parameters, and the space that says where each group lies."""
        parts = [coordinates(self.grams[list(group)].sum(axis=0), self.row_count) for group in groups]
        stops = np.cumsum([rows.shape[1] for rows, _ in parts]).tolist()
        placed = tuple(
            Block(blocks[group[0]].name, stop - rows.shape[1], stop, sum(blocks[one].size for one in group))
            for group, stop, (rows, _) in zip(groups, stops, parts, strict=True)
        )
        rows, queries = (np.concatenate(side, axis=1) for side in zip(*parts, strict=True))
        return rows, queries, Space(dim=stops[-1], blocks=placed)


def coordinates(gram: Float64, row_count: int) -> tuple[Float64, Float64]:
    """Vectors of the inner products ``gram``, float64[n + m, n + m]: rows float64[n, n + 1] and queries
    float64[m, n + 1]. The last coordinate, 0 in every row, is what of a query no row has."""
    values, vectors = np.linalg.eigh(gram[:row_count, :row_count])
    counted = values > SMALLEST * max(values[-1], np.finfo(np.float64).tiny)
    roots = np.sqrt(np.where(counted, values, 0.0))
    queries = gram[row_count:, :row_count] @ vectors
    queries = np.divide(queries, roots, out=np.zeros_like(queries), where=counted)
    beyond = np.diag(gram)[row_count:] - (queries**2).sum(axis=1)
    rows = np.concatenate([vectors * roots, np.zeros((row_count, 1))], axis=1)
    return rows, np.concatenate([queries, np.sqrt(np.maximum(beyond, 0.0))[:, None]], axis=1)


class Gradients:
    """Takes gradients at states of a learner, and keeps what ``Taken`` says of them in ``work``."""

    def __init__(self, learner: Learner, work: Path) -> None:
        self._learner, self._work = learner, work
        self._targets = select(learner.model, "trainable")
        stops = np.cumsum([target.size for target in self._targets]).tolist()
        self.blocks = tuple(
            Block(target.name, stop - target.size, stop, target.size)
            for target, stop in zip(self._targets, stops, strict=True)
        )

    def _sketcher(self, dim: int, blocks: Any) -> GradientModel:
        projection = CountSketch(dim, blocks=blocks)
        return GradientModel(self._learner.model, self._learner.tokenizer, projection=projection)

    def groups(self, level: str) -> list[list[int]]:
        """Parameters that go together: each by itself, A with B, or those of a decoder layer."""
        cuts: dict[str, Callable[[str], str]] = {
            "parameter": lambda name: name,
            "module": lambda name: name.split(".lora_")[0],
            "layer": lambda name: name.split(".layers.")[1].split(".")[0],
        }
        cut = cuts[level]
        found: dict[str, list[int]] = {}
        for number, block in enumerate(self.blocks):
            found.setdefault(cut(block.name), []).append(number)
        return list(found.values())

    def taken(self, name: str, state: State, function: Function, correction: str = "none") -> Taken:
        """Of a state, kept under ``name``. ``correction``: "adam" takes rows as Adam's updates (Xia et al. 2024) and
        queries plain; "root" divides both by the root of Adam's second moment."""
        row_count = len(self._learner.rows)
        path = self._work / f"taken-{name}-{function}-{correction}.npz"
        if not path.exists():
            whole, trak_q = self._whole(state, function)
            self._keep(path, corrected(whole, row_count, state, correction), trak_q[:row_count])
        arrays = dict(np.load(path))
        sketches = {key.partition("/")[2]: array for key, array in arrays.items() if key.startswith("sketch/")}
        return Taken(row_count, sketches, arrays["grams"], arrays["trak_q"])

    def _whole(self, state: State, function: Function) -> tuple[Float32, Float32]:
        """Unsketched gradients of rows and queries, float32[n + m, parameters], and TRAK's Q of them."""
        learner = self._learner
        learner.restore(state.adapters)
        model = GradientModel(learner.model, learner.tokenizer, projection=None, output=function, batch_size=16)
        rows = [model.encode(tokens, number) for number, tokens in enumerate(learner.row_tokens + learner.query_tokens)]
        whole, trak_q = np.empty((len(rows), model.space.dim), np.float32), np.empty(len(rows), np.float32)
        for batch in model.batches(rows):
            answers = model.answer([rows[number] for number in batch], batch)
            whole[batch], trak_q[batch] = answers.values, answers.trak_q
        return whole, trak_q

    def _keep(self, path: Path, whole: Float32, trak_q: Float32) -> None:
        arrays: dict[str, Any] = {f"sketch/{dim}": self._sketched(whole, CountSketch(dim)) for dim in DIMS}
        arrays["sketch/layers"] = self._sketched(whole, CountSketch(DEFAULT_DIM, blocks="layer"))
        arrays["grams"] = np.stack([part @ part.T for part in (part.astype(np.float64) for part in self._parts(whole))])
        arrays["trak_q"] = trak_q
        write_arrays(path, arrays)

    def _parts(self, whole: Float32) -> list[Float32]:
        return [whole[:, block.start : block.stop] for block in self.blocks]

    def _sketched(self, whole: Float32, sketch: CountSketch) -> Float32:
        plan = sketch.plan(self._targets)
        total = plan.start(len(whole), torch.device("cpu"))
        for target, block in zip(self._targets, self.blocks, strict=True):
            plan.add(total, target, Vector(torch.from_numpy(whole[:, block.start : block.stop])))
        return plan.finish(total).numpy()

    def by_layer(self, name: str, state: State) -> dict[int, Float32]:
        """Sketches of the loss's gradients, a part for each parameter: float32[n + m, dim] by dim."""
        path = self._work / f"layers-{name}.npz"
        if not path.exists():
            whole, _ = self._whole(state, "loss")
            sketches = {f"{dim}": self._sketched(whole, CountSketch(dim, blocks="layer")) for dim in LAYERED_DIMS}
            write_arrays(path, sketches)
        return {int(dim): array for dim, array in np.load(path).items()}

    def layered_space(self, dim: int, level: str) -> Space:
        """The space of ``by_layer``'s sketches, whose blocks are groups of parameters."""
        own = self._sketcher(dim, "layer").space.blocks
        joined = [[own[number] for number in group] for group in self.groups(level)]
        blocks = tuple(
            Block(group[0].name, group[0].start, group[-1].stop, sum(block.size for block in group))
            for group in joined
        )  # fmt: skip
        return Space(dim=dim, blocks=blocks)

    def kronecker(self, name: str, state: State) -> dict[str, Float64]:
        """Scores by eigenvalue-corrected Kronecker factors, as EK-FAC's, but with factors made of the rows' gradients
        and not of activations: float64[queries, rows] by damping, in the mean eigenvalue of each parameter."""
        path = self._work / f"kronecker-{name}.npz"
        if not path.exists():
            row_count = len(self._learner.rows)
            whole, _ = self._whole(state, "loss")
            total = {f"{damping:g}": np.zeros((len(whole) - row_count, row_count)) for damping in KRONECKER_DAMPINGS}
            for part, target in zip(self._parts(whole), self._targets, strict=True):
                turned = in_eigenbases(part.reshape(-1, *target.shape), row_count)
                rows, queries = turned[:row_count], turned[row_count:]
                curvature = (rows**2).mean(axis=0)
                for damping, scores in total.items():
                    scores += queries / (curvature + float(damping) * curvature.mean()) @ rows.T
            write_arrays(path, total)
        return dict(np.load(path))


def in_eigenbases(matrices: Float32, row_count: int) -> Float64:
    """Gradients of a matrix, float32[n + m, a, b], as float64[n + m, a * b] in the eigenbases of both sides' second
    moments over the n rows."""
    wide = matrices.astype(np.float64)
    rows = wide[:row_count]
    left, right = (np.linalg.eigh(np.tensordot(rows, rows, (axes, axes)))[1] for axes in ((0, 2), (0, 1)))
    return np.asarray((left.T @ wide @ right).reshape(len(wide), -1))


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes a file of arrays that is there whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    unfinished.rename(path)


def corrected(whole: Float32, row_count: int, state: State, correction: str) -> Float32:
    """Gradients with the optimiser's correction; see ``Gradients.taken``."""
    if correction == "none":
        return whole
    first, second = flat(state.first), flat(state.second)
    if correction == "root":
        return np.asarray(whole / np.sqrt(second + EPSILON), dtype=np.float32)
    update = BETAS[0] * first + (1 - BETAS[0]) * whole[:row_count]
    update /= np.sqrt(BETAS[1] * second + (1 - BETAS[1]) * whole[:row_count] ** 2 + EPSILON)
    return np.concatenate([update, whole[row_count:]])


def flat(adapters: Adapters) -> Float32:
    """Values of all parameters in their order, float32[parameters]."""
    return torch.cat([value.flatten() for value in adapters.values()]).numpy()
