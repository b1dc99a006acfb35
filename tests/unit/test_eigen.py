"""Principal directions from one pass over rows, against a full decomposition."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from tests.index_rig import decaying

from covector_server.index.eigen import orthogonal, top_moments


def batches(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + 100] for start in range(0, len(rows), 100))


@pytest.mark.parametrize("decay", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("count", [5, 40])
def test_the_directions_hold_about_as_much_as_the_best(decay: float, count: int) -> None:
    rows = decaying(1_500, 120, decay=decay)
    values, vectors = top_moments(rows[::5], batches(rows), len(rows), count)
    best = np.linalg.eigvalsh(rows.T.astype(np.float64) @ rows / len(rows))[::-1][:count]
    held = np.square(rows.astype(np.float64) @ vectors).mean(axis=0)
    assert vectors.shape == (120, count)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(count), atol=1e-3)
    assert held.sum() >= 0.97 * best.sum()
    assert np.all(np.diff(values) <= 0)
    assert np.all(values <= held * (1 + 1e-3) + 1e-6 * best[0])


@pytest.mark.parametrize("rank", [1, 3])
def test_rows_of_fewer_directions_than_are_asked_for(rank: int) -> None:
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((300, rank)) @ rng.standard_normal((rank, 50))).astype(np.float32)
    values, vectors = top_moments(rows[:60], batches(rows), len(rows), 20)
    assert len(values) == rank
    np.testing.assert_allclose(rows @ vectors @ vectors.T, rows, atol=1e-3 * np.abs(rows).max())


@pytest.mark.parametrize("ratio", [1.0, 1e-2, 1e-5])
def test_orthogonal_columns_of_the_same_span(ratio: float) -> None:
    rng = np.random.default_rng(1)
    block = (rng.standard_normal((200, 1)) + ratio * rng.standard_normal((200, 12))).astype(np.float32)
    found = orthogonal(block)
    assert found.shape == (200, 12)
    np.testing.assert_allclose(found.T @ found, np.eye(12), atol=1e-2)
    residual = block - found @ (found.T @ block)
    assert np.abs(residual).max() <= 1e-5 * np.abs(block).max()


def test_a_column_that_depends_on_others_is_left_out() -> None:
    block = np.random.default_rng(2).standard_normal((50, 4)).astype(np.float32)
    block[:, 3] = block[:, 0]
    assert orthogonal(block).shape == (50, 3)
