"""Structures of the ``annoy`` kind: forests of random projection trees (Annoy), memory-mapped.

Annoy's own inner product puts rows of all norms on the same branches and finds few of the largest products. What it is
given here are the rows, centred, and lifted to a sphere (Bachrach and others, Speeding up the Xbox recommender system,
2014): x becomes ((x - mean) / reach, sqrt(1 - |x - mean|^2 / reach^2)). Among these, the nearest to a unit query with a
last coordinate of 0 are those with the largest products:

    |q - x'|^2 = 2 - 2 <q, x - mean> / reach

Files: ``trees``, as Annoy saves them, and ``mean``, float32[width].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from covector.errors import Corrupt
from covector_server.index.contract import Float32, MissingLibrary
from covector_server.index.parts import PartFiles, Proposal, Setting, stacked

KIND = "annoy"
PART_ROWS_MAX = 1 << 18
NODES = 16.0  # float16 numbers that a row costs which is read alone, from anywhere, over those of its vector
SEED = 7


@dataclass(frozen=True, slots=True)
class AnnoyStructure:
    """``parts.Structure``."""

    trees: Any  # annoy.AnnoyIndex
    mean: Float32
    reach: float
    member_count: int

    @property
    def held_bytes(self) -> int:
        return 0  # the trees are mapped

    def propose(self, vectors: Float32, count: int, effort: float) -> Sequence[Proposal]:
        """See ``parts.Structure``."""
        nodes = max(int(effort * self.member_count), 2 * count)
        return [self._propose(vector, count, nodes) for vector in vectors]

    def _propose(self, vector: Float32, count: int, nodes: int) -> Proposal:
        norm = float(np.linalg.norm(vector))
        unit = (vector / norm if norm > 0 else vector).tolist()
        numbers, distances = self.trees.get_nns_by_vector([*unit, 0.0], count, nodes, include_distances=True)
        nearness = 1 - np.square(np.array(distances, dtype=np.float32)) / 2
        estimates = nearness * np.float32(norm * self.reach) + vector @ self.mean
        return np.array(numbers, dtype=np.int64), estimates.astype(np.float32)


class AnnoyLibrary:
    """``parts.Library``. Few coordinates first: a row is kept as float32, and a leaf holds about as many rows as there
    are coordinates."""

    kind = KIND
    spread = 4
    settings = (Setting(64, 10), Setting(256, 10), Setting(256, 20))
    efforts = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)  # a row that is met in several trees counts as often
    has_trees = True

    def part_rows(self, width: int, memory_bytes: int) -> int:
        """See ``parts.Library``. What is built lies in a mapped file; the rows are in memory once."""
        return max(1, min(PART_ROWS_MAX, memory_bytes // (4 * (width + 16))))

    def cost(self, width: int, effort: float) -> float:
        return 2 * effort * (2 * width + NODES)

    def require(self) -> None:
        """See ``parts.Library``."""
        if find_spec("annoy") is None:
            raise MissingLibrary(
                "an annoy index needs the package annoy where the store is: pip install 'covector[annoy]', or build "
                "another kind",
                package="annoy",
            )

    def build(self, pieces: Iterator[Float32], shape: tuple[int, int], trees: int, target: Path) -> dict[str, Any]:
        """See ``parts.Library``."""
        vectors = stacked(pieces, shape)
        mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
        vectors -= mean
        squares = np.einsum("nk,nk->n", vectors, vectors)
        reach = float(np.sqrt(squares.max())) or 1.0
        built = _index(shape[1])
        built.set_seed(SEED)
        built.on_disk_build(str(target / "trees"))
        row = np.empty(shape[1] + 1, dtype=np.float32)
        buffer = row.data  # Annoy takes numbers one by one; of a buffer they come without an array's detours
        for number, (vector, square) in enumerate(zip(vectors, squares, strict=True)):
            row[:-1] = vector / np.float32(reach)
            row[-1] = np.sqrt(max(0.0, 1.0 - square / reach**2))
            built.add_item(number, buffer)
        built.build(trees, n_jobs=1)
        built.unload()
        mean.tofile(target / "mean")
        return {"reach": reach}

    def open(self, files: PartFiles, shape: tuple[int, int]) -> AnnoyStructure:
        """See ``parts.Library``."""
        self.require()
        member_count, width = shape
        trees, mean = _index(width), np.frombuffer(files.maps["mean"], "<f4")
        trees.load(str(files.directory / f"{files.prefix}trees"))
        if trees.get_n_items() != member_count or len(mean) != width:
            raise Corrupt(f"the trees have {trees.get_n_items()} rows, {member_count} are right; build the index again")
        return AnnoyStructure(trees, mean, float(files.facts["reach"]), member_count)


def _index(width: int) -> Any:
    from annoy import AnnoyIndex

    return AnnoyIndex(width + 1, "euclidean")
