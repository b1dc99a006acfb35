"""Directions for scorers with a map, against plain float64 algebra: with as many as there are coordinates nothing is
lost, with fewer what is kept is what whitened rows reach farthest along."""

from __future__ import annotations

import numpy as np
import pytest
from tests.index_rig import ArrayCheckpoint, decaying

from covector.attribution.preconditioner import ByLayer, Dense, LowRank, Preconditioner
from covector.attribution.scoring import scorer_named
from covector_server.index import map_basis as bases
from covector_server.index.map_basis import MapBasis, map_basis
from covector_server.index.source import CheckpointSource

DIM, ROW_COUNT = 48, 600
ROWS = decaying(ROW_COUNT, DIM)
ROWS[:, :16] *= 10
CHECKPOINT = ArrayCheckpoint.of(ROWS)
UNIT = CHECKPOINT.rows.astype(np.float64)
VECTORS = np.random.default_rng(3).standard_normal((20, DIM))


def inverse(moments: np.ndarray, damping: float = 1.0) -> np.ndarray:
    """(H + lambda)^-1, lambda in units of the mean eigenvalue."""
    return np.linalg.inv(moments + damping * np.trace(moments) / len(moments) * np.eye(len(moments)))


def dense(rows: np.ndarray = ROWS, scale: float = 1.0) -> Dense:
    unit = inverse(rows.astype(np.float64).T @ rows.astype(np.float64) / len(rows))
    top = float(np.linalg.eigvalsh(unit)[-1])
    return Dense(unit / top, top * scale)


def low_rank(rank: int) -> LowRank:
    values, vectors = np.linalg.eigh(ROWS.astype(np.float64).T @ ROWS / len(ROWS))
    kept = values[::-1][:rank]
    return LowRank(vectors[:, ::-1][:, :rank].astype(np.float32), kept / (kept + values.mean()), 1e7)


def by_layer() -> ByLayer:
    """Layers whose gradients differ by an order of magnitude, and their maps by two, as inverses of moments do."""
    return ByLayer(((0, 16, dense(ROWS[:, :16], 1e4)), (16, DIM, dense(ROWS[:, 16:], 1e6))))


MAPS: dict[str, Preconditioner] = {
    "dense": dense(),
    "isotropic": Dense(np.eye(DIM), 3.0),
    "one layer": ByLayer(((0, DIM, dense()),)),
    "low rank": low_rank(8),
    "low rank, all of it": low_rank(DIM),
    "by layer": by_layer(),
    "low rank by layer": ByLayer(
        ((0, 16, dense(ROWS[:, :16])), (16, DIM, LowRank(np.eye(32)[:, :3], np.full(3, 0.5), 1)))
    ),
}


def made(preconditioner: Preconditioner, rank: int) -> MapBasis:
    source = CheckpointSource(CHECKPOINT, DIM, scorer_named("dot"), lambda done, total: None, preconditioner)  # type: ignore[arg-type]
    return map_basis(source, source.live, source.views(source.live), rank)


def estimates(basis: MapBasis, vectors: np.ndarray) -> np.ndarray:
    """Of the products of vectors with all unit rows, as the codes would have them without rounding."""
    asked = np.concatenate(list(basis.vectors), axis=1).astype(np.float64)
    coded = asked if basis.rows is None else np.concatenate(list(basis.rows), axis=1).astype(np.float64)
    return (vectors @ asked.T * basis.gains / DIM) @ (UNIT @ coded.T * basis.roots).T


@pytest.mark.parametrize("name", MAPS)
def test_all_directions_lose_nothing(name: str) -> None:
    found = estimates(made(MAPS[name], DIM), VECTORS)
    reach = np.linalg.norm(VECTORS, axis=1)[:, None] * np.linalg.norm(UNIT, axis=1)
    assert np.abs((found - VECTORS @ UNIT.T) / reach).max() < 1e-3


@pytest.mark.parametrize("name", MAPS)
def test_directions_are_at_unit_rms_and_as_many_as_asked_for(name: str) -> None:
    basis = made(MAPS[name], 12)
    for side in (basis.vectors, basis.rows):
        if side is not None:
            whole = np.concatenate(list(side), axis=1)
            assert whole.shape == (12, DIM)
            np.testing.assert_allclose(np.sqrt(np.mean(whole**2, axis=1)), 1.0, rtol=1e-3)
    assert len(basis.roots) == len(basis.gains) == 12


@pytest.mark.parametrize("name", ["dense", "by layer", "low rank, all of it"])
def test_few_directions_are_those_of_whitened_rows(name: str) -> None:
    """What a rank of 12 leaves out of the scores of rows, as their own queries, is little more than with the principal
    directions of whitened rows, found by a plain decomposition."""
    preconditioner = MAPS[name]
    root = np.linalg.cholesky(preconditioner.apply(np.eye(DIM)))
    whitened = ROWS.astype(np.float64) @ root
    _, principal = np.linalg.eigh(whitened.T @ whitened)
    best = whitened @ principal[:, ::-1][:, :12]
    exact = whitened @ whitened.T
    found = estimates(made(preconditioner, 12), preconditioner.apply(ROWS.astype(np.float64))) * CHECKPOINT.scales
    assert np.linalg.norm(found - exact) <= 1.25 * np.linalg.norm(best @ best.T - exact)


def test_heavy_rows_are_held_to_a_bound() -> None:
    source = CheckpointSource(CHECKPOINT, DIM, scorer_named("dot"), lambda done, total: None)  # type: ignore[arg-type]
    weights = bases._weights(source, source.live)
    assert weights.max() == 1
    assert 1 <= (weights == 1).sum() <= 0.02 * ROW_COUNT
    lighter = weights < 1
    np.testing.assert_allclose(
        weights[lighter] / weights[lighter].max(),
        CHECKPOINT.scales[lighter] / CHECKPOINT.scales[lighter].max(),
        rtol=1e-5,
    )
