"""A small problem for ``covector evaluate``: a logistic regression, the gradients of its margins, and what retrains it.

    python examples/which_scorer.py                         # writes rows.npz and queries.npy
    covector evaluate --rows rows.npz --queries queries.npy --train which_scorer:train --plot lds.png

``train`` is what a user writes: it takes the numbers of the rows to train on, and returns the model's output for every
query, larger where the behaviour is stronger. Run the second command where this file is, or with PYTHONPATH=examples.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ROWS, QUERIES, DIM, RIDGE = 400, 50, 40, 1.0
Float64 = npt.NDArray[np.float64]

rng = np.random.default_rng(0)
scales = np.geomspace(1, 0.1, DIM)
truth = rng.standard_normal(DIM) / scales
images, asked = (scales * rng.standard_normal((count, DIM)) for count in (ROWS, QUERIES))
labels = np.sign(images @ truth + 6 * rng.standard_normal(ROWS))
asked_labels = np.sign(asked @ truth)


def fitted(rows: npt.NDArray[np.int64]) -> Float64:
    """The parameters after Newton's method on these rows, float64[DIM]."""
    theta = np.zeros(DIM)
    for _ in range(15):
        wrong = 1 / (1 + np.exp(labels[rows] * (images[rows] @ theta)))
        hessian = (images[rows].T * (wrong * (1 - wrong))) @ images[rows] + RIDGE * np.eye(DIM)
        theta += np.linalg.solve(hessian, images[rows].T @ (labels[rows] * wrong) - RIDGE * theta)
    return theta


def train(rows: npt.NDArray[np.int64]) -> Float64:
    """The margins of all queries, float64[QUERIES], of a model trained on some rows."""
    return asked_labels * (asked @ fitted(rows))


if __name__ == "__main__":
    theta = fitted(np.arange(ROWS))
    np.savez("rows.npz", gradients=labels[:, None] * images, trak_q=1 / (1 + np.exp(labels * (images @ theta))))
    np.save("queries.npy", asked_labels[:, None] * asked)
