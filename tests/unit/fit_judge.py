"""Every method once more, in float64, straight from its formula: loops over rows, whole inverses, nothing streamed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from covector.types import Block

Float64 = npt.NDArray[np.float64]


def mean_eigenvalue(moments: Float64, row_count: int) -> float:
    """The mean of the eigenvalues that can be above zero."""
    return float(np.trace(moments) / min(row_count, len(moments)))


def damped_inverse(rows: Float64, damping: float) -> Float64:
    """(G^T G / n + lambda I)^-1."""
    moments = np.zeros((rows.shape[1], rows.shape[1]))
    for row in rows:
        moments += np.outer(row, row) / len(rows)
    return np.asarray(np.linalg.inv(moments + damping * mean_eigenvalue(moments, len(rows)) * np.eye(len(moments))))


def influence(queries: Float64, rows: Float64, damping: float = 1.0) -> Float64:
    return queries @ damped_inverse(rows, damping) @ rows.T


def trak(queries: Float64, rows: Float64, q: Float64, damping: float = 1.0) -> Float64:
    """Phi (Phi^T Phi + lambda I)^-1 phi, times Q."""
    gram = rows.T @ rows
    inverse = np.linalg.inv(gram + damping * mean_eigenvalue(gram, len(rows)) * np.eye(len(gram)))
    return (queries @ inverse @ rows.T) * q


def datainf(queries: Float64, rows: Float64, blocks: Sequence[Block], damping: float = 0.1) -> Float64:
    """Kwon et al. 2024, equation 5, a layer and a row at a time."""
    total = np.zeros((len(queries), len(rows)))
    for block in blocks:
        v, g = queries[:, block.start : block.stop], rows[:, block.start : block.stop]
        lam = damping * (g**2).sum() / (len(g) * block.size)
        h = np.zeros_like(v)
        for row in g:
            h += v - np.outer(v @ row / (lam + row @ row), row)
        total += (h / (len(g) * lam)) @ g.T
    return total


def trackstar(
    queries: Float64, rows: Float64, task: Float64 | None = None, share: float = 0.9, damping: float = 1.0
) -> Float64:
    """The cosine of R^(-1/2) q and R^(-1/2) g, by the symmetric root."""
    moments, count = rows.T @ rows / len(rows), len(rows)
    if task is not None:
        moments = share * task.T @ task / len(task) + (1 - share) * moments
        count += len(task)
    values, vectors = np.linalg.eigh(moments + damping * mean_eigenvalue(moments, count) * np.eye(len(moments)))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    return cosine(queries @ root, rows @ root)


def cosine(queries: Float64, rows: Float64) -> Float64:
    def unit(vectors: Float64) -> Float64:
        return np.array([vector / np.linalg.norm(vector) for vector in vectors])

    return unit(queries) @ unit(rows).T


def tracin(queries: Sequence[Float64], rows: Sequence[Float64], etas: Sequence[float]) -> Float64:
    return np.asarray(np.sum([eta * (q @ g.T) for q, g, eta in zip(queries, rows, etas, strict=True)], axis=0))


def less(queries: Sequence[Float64], rows: Sequence[Float64], etas: Sequence[float]) -> Float64:
    terms = [eta / sum(etas) * cosine(q, g) for q, g, eta in zip(queries, rows, etas, strict=True)]
    return np.asarray(np.sum(terms, axis=0))
