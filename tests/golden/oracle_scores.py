"""Our scores of the gradients in tests/golden/oracles, under the names of what traker and dattri made of them.

``benchmarks/oracles.py`` makes both files in an environment of its own; ``test_oracles.py`` compares in every run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.attribution import fit, score
from covector.types import Block, Space

Array = npt.NDArray[Any]

ETAS = (0.07, 0.02)
BLOCKS = (Block("w1", 0, 40, 128), Block("b1", 40, 44, 8), Block("w2", 44, 60, 80), Block("b2", 60, 64, 10))
REGULARIZATION = 0.05  # of dattri's TRAK
PEARSON_MIN = 0.9999


def scores_of(problem: Mapping[str, Array], theirs: Mapping[str, Array]) -> dict[str, Array]:
    """problem: rows float32[2, n, dim], queries float32[2, m, dim], trak_q float32[2, n]; theirs: the libraries'
    results, of which only what they projected to is read. Returns float64[m, n] by name."""
    return _like_traker(problem) | _like_dattri(problem, theirs)


def pearson(left: Array, right: Array) -> float:
    """The correlation of all entries."""
    return float(np.corrcoef(left.ravel(), right.ravel())[0, 1])


def _like_traker(problem: Mapping[str, Array]) -> dict[str, Array]:
    rows, queries, q = problem["rows"], problem["queries"], problem["trak_q"]

    def trak(checkpoint: int, damping: float | None, weights: Array) -> Array:
        learnt = fit("trak", rows[checkpoint], trak_q=q[checkpoint], damping=damping)
        return learnt.scores(queries[checkpoint], rows[checkpoint], trak_q=weights)

    together = [trak(number, 0.0, q.mean(axis=0)) / _inverse_size(rows[number]) for number in range(2)]
    return {
        "traker/one/0": trak(1, 0.0, q[1]),
        "traker/one/1": trak(1, None, q[1]),
        "traker/both/0": np.sum(together, axis=0),
    }


def _inverse_size(rows: Array) -> float:
    """traker divides each checkpoint's inverse by the mean size of its entries, which weighs the checkpoints."""
    wide = rows.astype(np.float64)
    return float(np.abs(np.linalg.inv(wide.T @ wide)).mean())


def _like_dattri(problem: Mapping[str, Array], theirs: Mapping[str, Array]) -> dict[str, Array]:
    rows, queries = theirs["dattri/rows"], theirs["dattri/queries"]
    pairs = list(zip(queries, rows, strict=True))
    space = Space(dim=problem["rows"].shape[2], blocks=BLOCKS)
    return {
        "dattri/tracin": np.sum(
            [eta * score(a, b, scorer="tracin") for (a, b), eta in zip(pairs, ETAS, strict=True)], 0
        ),
        "dattri/cosine": np.sum([score(a, b, scorer="cosine") for a, b in pairs], axis=0),
        "dattri/trak": _trak_of_two(problem, queries, rows),
        "dattri/datainf": fit("datainf", problem["rows"][1], space=space).scores(
            problem["queries"][1], problem["rows"][1]
        ),
    }


def _trak_of_two(problem: Mapping[str, Array], queries: Array, rows: Array) -> Array:
    """dattri damps by a number of its own, in other units at each checkpoint, so each is a fit of its own here."""
    dim, q = problem["rows"].shape[2], problem["trak_q"]
    found = []
    for number in range(2):
        squares = (rows[number].astype(np.float64) ** 2).sum()
        damping = REGULARIZATION * dim * min(rows[number].shape) / squares
        learnt = fit("trak", rows[number], trak_q=q[number], damping=damping)
        found.append(learnt.scores(queries[number], rows[number], trak_q=q.mean(axis=0)))
    return np.asarray(np.mean(found, axis=0))
