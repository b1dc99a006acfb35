"""A score above zero is a proponent: training without the row raises the query's loss. Shown by training again."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from covector.attribution import fit, score
from covector.types import GradientKind, Gradients, Space

Float64 = npt.NDArray[np.float64]
ROWS, QUERIES, DIM, RIDGE = 60, 8, 6, 1e-2
TRUTH = np.array([1.5, -1, 0.5, 0, 0, -0.5])


def drawn(count: int, seed: int) -> tuple[Float64, Float64]:
    """Inputs and labels of -1 and 1, some of them wrong."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((count, DIM))
    return inputs, np.where(inputs @ TRUTH + rng.standard_normal(count) > 0, 1.0, -1.0)


def chance_of_wrong(weights: Float64, inputs: Float64, labels: Float64) -> Float64:
    """1 - p of the right label."""
    return 1 / (1 + np.exp(labels * (inputs @ weights)))


def losses(weights: Float64, inputs: Float64, labels: Float64) -> Float64:
    return np.log1p(np.exp(-labels * (inputs @ weights)))


def trained(inputs: Float64, labels: Float64) -> Float64:
    """Ridge logistic regression by Newton's method, to its optimum."""
    weights = np.zeros(DIM)
    for _ in range(30):
        wrong = chance_of_wrong(weights, inputs, labels)
        slope = -(wrong * labels) @ inputs + ROWS * RIDGE * weights
        curvature = (inputs * (wrong * (1 - wrong))[:, None]).T @ inputs + ROWS * RIDGE * np.eye(DIM)
        weights -= np.linalg.solve(curvature, slope)
    return weights


class Truth:
    """What leaving out each row does to each query's loss, and the gradients at the full model."""

    def __init__(self) -> None:
        (x, y), (qx, qy) = drawn(ROWS, 0), drawn(QUERIES, 1)
        full = trained(x, y)
        kept = [np.delete(np.arange(ROWS), row) for row in range(ROWS)]
        self.rise = np.stack([losses(trained(x[k], y[k]), qx, qy) - losses(full, qx, qy) for k in kept], axis=1)
        self.margins = {"rows": y[:, None] * x, "queries": qy[:, None] * qx}
        self.q = chance_of_wrong(full, x, y)
        self.losses = {
            "rows": -self.q[:, None] * self.margins["rows"],
            "queries": -chance_of_wrong(full, qx, qy)[:, None] * self.margins["queries"],
        }

    def gradients(self, what: str, function: str) -> Gradients:
        values = (self.margins if function == "margin" else self.losses)[what].astype(np.float32)
        kind = GradientKind(function=function)  # type: ignore[arg-type]
        q = self.q.astype(np.float32) if function == "margin" and what == "rows" else None
        return Gradients(values, Space(dim=DIM), kind, trak_q=q)


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth()


def correlation(scores: Float64, rise: Float64) -> float:
    """The mean over queries of the correlation over rows."""
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(scores, rise, strict=True)]))


@pytest.mark.parametrize("scorer", ["dot", "cosine", "tracin", "less"])
def test_scorers_without_a_fit(scorer: str, truth: Truth) -> None:
    found = score(truth.gradients("queries", "loss"), truth.gradients("rows", "loss"), scorer=scorer)
    assert correlation(found, truth.rise) > 0.5


@pytest.mark.parametrize(("method", "options", "least"), [
    ("influence", {"damping": 0.1}, 0.9), ("influence", {"damping": 0.1, "rank": 4}, 0.7), ("influence", {}, 0.8),
    ("datainf", {"by_layer": False}, 0.6), ("trackstar", {}, 0.6), ("less", {}, 0.5),
])  # fmt: skip
def test_methods_on_losses(method: str, options: dict[str, Any], least: float, truth: Truth) -> None:
    rows = truth.gradients("rows", "loss")
    found = fit(method, rows, **options).scores(truth.gradients("queries", "loss"), rows)
    assert correlation(found, truth.rise) > least


def test_trak_on_margins(truth: Truth) -> None:
    rows = truth.gradients("rows", "margin")
    for damping in (0.0, 1.0):
        found = fit("trak", rows, damping=damping).scores(truth.gradients("queries", "margin"), rows)
        assert correlation(found, truth.rise) > 0.8


@pytest.mark.parametrize(("of_rows", "of_queries"), [("loss", "margin"), ("margin", "loss")])
def test_where_senses_differ_the_sign_is_turned(of_rows: str, of_queries: str, truth: Truth) -> None:
    rows, queries = truth.gradients("rows", of_rows), truth.gradients("queries", of_queries)
    assert correlation(fit("influence", rows).scores(queries, rows), truth.rise) > 0.4
    assert correlation(score(queries, rows), truth.rise) > 0.2
