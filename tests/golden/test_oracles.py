"""Scores agree with those of traker 0.3.2 and dattri 0.3.0, of the same projected gradients (``make oracles``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tests.golden.oracle_scores import PEARSON_MIN, pearson, scores_of

from covector.attribution import fit

Arrays = dict[str, npt.NDArray[np.float32]]

NAMES = [
    "traker/one/0", "traker/one/1", "traker/both/0",
    "dattri/tracin", "dattri/cosine", "dattri/trak", "dattri/datainf",
]  # fmt: skip


@pytest.fixture(scope="module")
def problem(repository: Path) -> Arrays:
    return dict(np.load(repository / "tests/golden/oracles/problem.npz"))


@pytest.fixture(scope="module")
def theirs(repository: Path) -> Arrays:
    return dict(np.load(repository / "tests/golden/oracles/oracles.npz"))


@pytest.mark.parametrize("name", NAMES)
def test_scores_agree(name: str, problem: Arrays, theirs: Arrays) -> None:
    assert pearson(scores_of(problem, theirs)[name], theirs[name]) >= PEARSON_MIN


def test_every_result_is_compared(theirs: Arrays) -> None:
    assert set(theirs) == {*NAMES, "dattri/rows", "dattri/queries"}


def test_the_comparison_sees_a_wrong_damping_and_missing_layers(problem: Arrays, theirs: Arrays) -> None:
    rows, queries, q = problem["rows"][1], problem["queries"][1], problem["trak_q"][1]
    undamped = fit("trak", rows, trak_q=q, damping=0).scores(queries, rows, trak_q=q)
    assert pearson(undamped, theirs["traker/one/1"]) < 0.99
    assert pearson(fit("datainf", rows, by_layer=False).scores(queries, rows), theirs["dattri/datainf"]) < 0.999


def test_tracin_and_datainf_have_their_scale_and_sign(problem: Arrays, theirs: Arrays) -> None:
    found = scores_of(problem, theirs)
    for name in ("dattri/tracin", "dattri/cosine", "dattri/datainf", "dattri/trak"):
        np.testing.assert_allclose(found[name], theirs[name], rtol=0, atol=2e-5 * np.abs(theirs[name]).max())
