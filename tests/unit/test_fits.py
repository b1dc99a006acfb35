"""Fits in an open store against ``covector.attribution`` on the decoded rows, and against plain derivations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fit_rig import FitRig, assert_close, plain_map
from tests.index_rig import decaying

from covector.attribution import fit as fit_arrays
from covector.errors import InvalidInput, LimitExceeded, NotFound
from covector.types import Block, Space
from covector_server.jobs.compaction import Rules
from covector_server.jobs.operations import FAILED, SUCCEEDED

DIM, COUNT = 48, 400
ROWS = decaying(COUNT, DIM)
Q = np.random.default_rng(1).uniform(0.05, 1, COUNT).astype(np.float32)
QUERIES = decaying(5, DIM, seed=5).astype(np.float64)
METHODS = ("trak", "influence", "trackstar", "datainf")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[FitRig]:
    made = FitRig(tmp_path / "store", DIM)
    made.write(range(COUNT), ROWS, trak_q=Q)
    yield made
    made.close()


def reach_of(fit: Any, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """|n(q) A q| |g| w of each query and row."""
    scorer = fit.parts[""].scorer(lambda row_ids: np.ones(len(row_ids)))
    prepared = np.linalg.norm(scorer.prepare(QUERIES), axis=1)
    return prepared[:, None] * np.linalg.norm(rows, axis=1) * weights


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("given", [{}, {"damping": 0.3}, {"rank": 16}])
def test_a_served_scorer_is_the_one_on_arrays(rig: FitRig, method: str, given: dict[str, Any]) -> None:
    rig.fitted(method, **given)
    rows = rig.stored(range(COUNT))
    fit = fit_arrays(method, rows, trak_q=Q if method == "trak" else None, **given)
    expected = fit.scores(QUERIES, rows, trak_q=Q if method == "trak" else None)
    weights = 1 / np.linalg.norm(rows @ np.linalg.cholesky(plain_map(rows, 1.0)), axis=1) if method == "trackstar" else 1
    assert_close(rig.scored(QUERIES, method), range(COUNT), expected, reach_of(fit, rows, np.asarray(weights)))


def test_trak_and_influence_by_hand(rig: FitRig) -> None:
    rows = rig.stored(range(COUNT))
    rig.fitted("influence")
    rig.fitted("trak", damping=0.5)
    inverse = plain_map(rows, 1.0)
    reach = np.linalg.norm(QUERIES @ inverse, axis=1)[:, None] * np.linalg.norm(rows, axis=1)
    assert_close(rig.scored(QUERIES, "influence"), range(COUNT), QUERIES @ inverse @ rows.T, reach)
    inverse = plain_map(rows, 0.5) / COUNT
    reach = np.linalg.norm(QUERIES @ inverse, axis=1)[:, None] * np.linalg.norm(rows, axis=1)
    assert_close(rig.scored(QUERIES, "trak"), range(COUNT), QUERIES @ inverse @ rows.T * Q, reach)
