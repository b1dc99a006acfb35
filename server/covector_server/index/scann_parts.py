"""Structures of the ``scann`` kind: a tree of cells, and asymmetric hashing of what is in them (ScaNN).

Guo and others, Accelerating large-scale inference with anisotropic vector quantization, ICML 2020. The codebooks are
learnt from all rows of a part, not a sample: norms of gradients spread over decades, and a sample misses the few long
rows that most answers are made of. The threshold of the anisotropic loss is meant for unit vectors, so rows are divided
by a norm that few exceed.

ScaNN takes no other route to a searcher than a directory. What is loaded are the verified bytes, written to a temporary
one; ScaNN holds them in memory of its own. No ``docids``: they would be pickled. Its module would import TensorFlow if
that is there, which a server must not load on the side.

Files: those that ScaNN saves, with relative paths.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from covector.errors import Corrupt
from covector_server.index.contract import Float32, MissingLibrary
from covector_server.index.parts import PartFiles, Proposal, Setting, stacked

KIND = "scann"
ASSETS = "scann_assets.pbtxt"
GROWTH = 6  # peak of a build in float32 copies of the rows; 5.2 were measured
PART_ROWS_MAX = 1 << 17
BLOCK_DIM = 2  # coordinates of a code of 4 bits
LONG = 0.99  # of the rows, that are at most 1 long
THRESHOLD = 0.2  # of the anisotropic loss, as ScaNN's documentation has it

_importing = threading.Lock()


@dataclass(frozen=True, slots=True)
class ScannStructure:
    """``parts.Structure``."""

    searcher: Any  # scann_ops_pybind.ScannSearcher
    scale: float
    member_count: int
    held_bytes: int

    def propose(self, vectors: Float32, count: int, effort: float) -> Sequence[Proposal]:
        """See ``parts.Structure``."""
        cells = leaf_count(self.member_count)
        looked_at = min(cells, int(np.ceil(max(effort, 2 * count / self.member_count) * cells)))
        numbers, products = self.searcher.search_batched(vectors, count, count, looked_at)
        found = []
        for mine, estimates in zip(numbers, products, strict=True):
            there = ~np.isnan(estimates)  # lists that are too short are filled up
            found.append((mine[there].astype(np.int64), estimates[there] * np.float32(self.scale)))
        return found


class ScannLibrary:
    """``parts.Library``."""

    kind = KIND
    spread = 4
    settings = (Setting(128), Setting(256))
    efforts = (0.05, 0.1, 0.2, 0.4, 1.0)
    has_trees = False

    def part_rows(self, width: int, memory_bytes: int) -> int:
        """See ``parts.Library``."""
        return max(1, min(PART_ROWS_MAX, memory_bytes // (GROWTH * 4 * width)))

    def cost(self, width: int, effort: float) -> float:
        return 2 * effort * width / (4 * BLOCK_DIM)

    def require(self) -> None:
        """See ``parts.Library``."""
        if find_spec("scann") is None:
            raise MissingLibrary(
                "a scann index needs the package scann where the store is: pip install 'covector[scann]', or build "
                "another kind",
                package="scann",
            )

    def build(self, pieces: Iterator[Float32], shape: tuple[int, int], trees: int, target: Path) -> dict[str, Any]:
        """See ``parts.Library``."""
        vectors = stacked(pieces, shape)
        norms = np.sqrt(np.einsum("nk,nk->n", vectors, vectors))
        scale = float(np.quantile(norms, LONG)) or 1.0
        vectors /= np.float32(scale)
        member_count, width = shape
        cells = leaf_count(member_count)
        builder = _module().builder(vectors, 1, "dot_product")
        builder = builder.tree(
            num_leaves=cells,
            num_leaves_to_search=cells,
            training_sample_size=member_count,
            random_init=False,  # the other way to begin is not the same twice
        )
        builder = builder.score_ah(
            min(BLOCK_DIM, width), anisotropic_quantization_threshold=THRESHOLD, training_sample_size=member_count
        )
        builder.set_n_training_threads(1).build().serialize(str(target), relative_path=True)
        return {"scale": scale}

    def open(self, files: PartFiles, shape: tuple[int, int]) -> ScannStructure:
        """See ``parts.Library``."""
        self.require()
        module = _module()
        with tempfile.TemporaryDirectory(prefix="covector-scann-") as directory:
            for name, data in files.maps.items():
                (Path(directory) / name).write_bytes(data)
            searcher = module.load_searcher(directory, assets_backcompat_shim=False)
        if searcher.size() != shape[0]:
            raise Corrupt(f"scann has {searcher.size()} rows, {shape[0]} are right; build the index again")
        held_bytes = sum(len(data) for data in files.maps.values())
        return ScannStructure(searcher, float(files.facts["scale"]), shape[0], held_bytes)


def leaf_count(member_count: int) -> int:
    """Cells of a part."""
    return max(1, int(member_count**0.5))


def _module() -> Any:
    with _importing, _without("tensorflow"):
        from scann.scann_ops.py import scann_ops_pybind

    return scann_ops_pybind


@contextmanager
def _without(name: str) -> Iterator[None]:
    """While the block runs, importing this module fails as if it were not installed, unless it is loaded already."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # what the import system takes for "not there"
    try:
        yield
    finally:
        del sys.modules[name]
