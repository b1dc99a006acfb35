"""Scores by other libraries, of the same projected gradients: what tests/golden/test_oracles.py compares ours with.

    python -m benchmarks.oracles --out tests/golden/oracles

The gradients are real: an MLP on sklearn's digits at two epochs of its training, sketched to 64 coordinates. The
libraries take models, not gradients. So they get a model whose gradients are these: f(theta) has the gradient of
checkpoint 0 at theta = 0 and that of checkpoint 1 at theta = 1. Written are problem.npz (the gradients) and oracles.npz
(the scores); their agreement with covector is printed, and the exit status is 1 if it is too low anywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from benchmarks import digits
from dattri.algorithm.influence_function import IFAttributorDataInf
from dattri.algorithm.tracin import TracInAttributor
from dattri.algorithm.trak import TRAKAttributor
from dattri.func.projection import random_project
from dattri.task import AttributionTask
from tests.golden.oracle_scores import BLOCKS, ETAS, PEARSON_MIN, REGULARIZATION, pearson, scores_of
from trak import TRAKer
from trak.modelout_functions import AbstractModelOutput
from trak.projectors import NoOpProjector

from covector.types import Block

Float32 = npt.NDArray[np.float32]

ROWS, QUERIES, DIM = 240, 20, 64
EPOCHS = (10, 40)
PROJECTION = {"proj_dim": 48, "proj_max_batch_size": 32, "proj_seed": 3, "device": "cpu", "proj_type": "normal"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Scores by traker and dattri, of real gradients.")
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    torch.manual_seed(0)
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    problem = make_problem()
    with contextlib.redirect_stderr(io.StringIO()):
        found = {**by_traker(problem), **by_dattri(problem)}
    np.savez_compressed(out / "problem.npz", **problem)
    np.savez_compressed(out / "oracles.npz", **{name: values.astype(np.float32) for name, values in found.items()})
    agreements = {name: pearson(found[name], ours) for name, ours in scores_of(problem, found).items()}
    for name, agreement in agreements.items():
        print(f"{name:24} Pearson {agreement:.9f}")
    sys.exit(0 if min(agreements.values()) >= PEARSON_MIN else 1)


def make_problem() -> dict[str, npt.NDArray[Any]]:
    """rows float32[2, ROWS, DIM], queries float32[2, QUERIES, DIM], trak_q float32[2, ROWS], etas float64[2]."""
    data = digits.load(ROWS, QUERIES, pooled=True)
    recipe = digits.Recipe(hidden=8, epochs=EPOCHS[-1], rate=0.2, batch=24)
    models = digits.train(data, np.arange(ROWS)[None], [0], recipe, EPOCHS[:-1])
    rng = np.random.default_rng(1)
    sides = list(zip(digits.blocks_of(16, recipe.hidden), BLOCKS, strict=True))
    projections = [
        rng.choice([-1.0, 1.0], size=(a.size, b.stop - b.start)) / np.sqrt(b.stop - b.start) for a, b in sides
    ]
    found: dict[str, list[Float32]] = {"rows": [], "queries": [], "trak_q": []}
    for model in models:
        for name, images, labels in (
            ("rows", data.rows, data.row_labels),
            ("queries", data.queries, data.query_labels),
        ):
            whole, q = digits.gradients(model.one(0), images, labels, "margin")
            parts = [whole[:, a.start : a.stop] @ p for (a, _), p in zip(sides, projections, strict=True)]
            found[name].append(np.concatenate(parts, axis=1).astype(np.float32))
            if name == "rows":
                found["trak_q"].append(q.astype(np.float32))
    return {name: np.stack(arrays) for name, arrays in found.items()} | {"etas": np.array(ETAS)}


# -- a model that has given gradients --------------------------------------------------------------------------------


def value(theta: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
    """A function of theta whose gradient is pair[0] at theta = 0 and pair[1] at theta = 1. pair: [2, dim]."""
    return (pair[0] * theta + (pair[1] - pair[0]) * theta**2 / 2).sum()


class Given(torch.nn.Module):
    """Its parameter is theta; called with one example's pair of gradients."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros(dim))

    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        return value(self.theta, pair)


def at(checkpoint: int, dim: int) -> dict[str, torch.Tensor]:
    return {"theta": torch.full((dim,), float(checkpoint))}


def pairs(values: npt.NDArray[Any]) -> torch.Tensor:
    """[checkpoints, n, dim] -> [n, checkpoints, dim]."""
    return torch.from_numpy(np.ascontiguousarray(np.swapaxes(values, 0, 1)))


# -- traker ----------------------------------------------------------------------------------------------------------


class GivenOutput(AbstractModelOutput):
    """A batch is (pairs, q): the gradients come from ``value``, and Q is what is given."""

    def __init__(self) -> None:
        super().__init__()

    @staticmethod
    def get_output(_model: Any, weights: Any, _buffers: Any, pair: torch.Tensor, _q: torch.Tensor) -> torch.Tensor:
        return value(weights["theta"], pair)

    def get_out_to_loss_grad(self, model: Any, weights: Any, buffers: Any, batch: Any) -> torch.Tensor:
        checkpoint = int(weights["theta"][0].item())
        return batch[1][:, checkpoint : checkpoint + 1].clone()


def by_traker(problem: dict[str, npt.NDArray[Any]]) -> dict[str, Float32]:
    """One checkpoint without damping and with, and both checkpoints together."""
    one = regularizer(problem["rows"][1])
    return {
        "traker/one/0": run_traker(problem, [1], 0.0),
        "traker/one/1": run_traker(problem, [1], one),
        "traker/both/0": run_traker(problem, [0, 1], 0.0),
    }


def regularizer(rows: Float32) -> float:
    """The mean nonzero eigenvalue of what traker inverts: it divides gradients by the root of their length."""
    return float((rows.astype(np.float64) ** 2).sum() / min(rows.shape) / rows.shape[1])


def run_traker(problem: dict[str, npt.NDArray[Any]], checkpoints: list[int], lambda_reg: float) -> Float32:
    rows, queries = pairs(problem["rows"]), pairs(problem["queries"])
    q = torch.from_numpy(np.ascontiguousarray(problem["trak_q"].T))
    none = torch.zeros(len(queries), 2)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        traker = TRAKer(
            model=Given(DIM), task=GivenOutput(), train_set_size=len(rows), save_dir=folder, device="cpu",
            projector=NoOpProjector(grad_dim=DIM, proj_dim=DIM, seed=0, proj_type="none", device="cpu"),
            use_half_precision=False, lambda_reg=lambda_reg, logging_level=40,
        )  # fmt: skip
        for checkpoint in checkpoints:
            traker.load_checkpoint(at(checkpoint, DIM), model_id=checkpoint)
            traker.featurize(batch=(rows, q), num_samples=len(rows))
        traker.finalize_features()
        for checkpoint in checkpoints:
            traker.start_scoring_checkpoint("e", at(checkpoint, DIM), model_id=checkpoint, num_targets=len(queries))
            traker.score(batch=(queries, none), num_samples=len(queries))
        return np.asarray(traker.finalize_scores("e", model_ids=checkpoints)).T.copy()


# -- dattri ----------------------------------------------------------------------------------------------------------


def by_dattri(problem: dict[str, npt.NDArray[Any]]) -> dict[str, Float32]:
    """TRAK and TracIn project in any case: what they projected to is among the results, to score the same."""
    found = {}
    projected = {name: project(problem[name]) for name in ("rows", "queries")}
    found["dattri/rows"], found["dattri/queries"] = projected["rows"], projected["queries"]
    loaders = (loader(problem["rows"], problem["trak_q"]), loader(problem["queries"], None))
    tracin = TracInAttributor(
        task_of(DIM, 2), weight_list=torch.tensor(ETAS), normalized_grad=False, projector_kwargs=dict(PROJECTION)
    )
    found["dattri/tracin"] = tracin.attribute(*loaders).numpy().T
    cosine = TracInAttributor(
        task_of(DIM, 2), weight_list=torch.ones(2), normalized_grad=True, projector_kwargs=dict(PROJECTION)
    )
    found["dattri/cosine"] = cosine.attribute(*loaders).numpy().T
    trak = TRAKAttributor(
        task_of(DIM, 2),
        correct_probability_func=probability,
        projector_kwargs=dict(PROJECTION),
        regularization=REGULARIZATION,
    )
    trak.cache(loaders[0])
    found["dattri/trak"] = trak.attribute(loaders[1]).detach().numpy().T
    found["dattri/datainf"] = np.sum([datainf(problem, block) for block in BLOCKS], axis=0)
    return found


def loader(values: npt.NDArray[Any], q: npt.NDArray[Any] | None) -> Any:
    given = pairs(values)
    told = torch.zeros(len(given), 2) if q is None else torch.from_numpy(np.ascontiguousarray(q.T))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(given, told), batch_size=len(given))


def output(params: dict[str, torch.Tensor], data: Any) -> torch.Tensor:
    return value(params["theta"], data[0].reshape(2, -1))


def probability(params: dict[str, torch.Tensor], data: Any) -> torch.Tensor:
    late = params["theta"].reshape(-1)[0]
    q = data[1].reshape(-1)
    return 1 - (q[0] * (1 - late) + q[1] * late)


def task_of(dim: int, checkpoints: int) -> AttributionTask:
    states = [at(number if checkpoints == 2 else 1, dim) for number in range(checkpoints)]
    return AttributionTask(loss_func=output, model=Given(dim), checkpoints=states)


def project(values: Float32) -> Float32:
    found = []
    for checkpoint, given in enumerate(values):
        tensor = torch.from_numpy(given)
        found.append(random_project(tensor, len(tensor), **PROJECTION)(tensor, ensemble_id=checkpoint).numpy())
    return np.stack(found)


def datainf(problem: dict[str, npt.NDArray[Any]], block: Block) -> Float32:
    """One layer, with the paper's damping, which this library leaves to the caller."""
    rows, queries = (problem[name][:, :, block.start : block.stop] for name in ("rows", "queries"))
    attributor = IFAttributorDataInf(
        task_of(block.stop - block.start, 1),
        regularization=0.1 * float((rows[1].astype(np.float64) ** 2).sum(1).mean() / block.size),
    )
    attributor.cache(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(pairs(rows)), batch_size=1))
    train = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(pairs(rows)), batch_size=len(rows[1]))
    test = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(pairs(queries)), batch_size=len(queries[1]))
    return attributor.attribute(train, test).detach().numpy().T


if __name__ == "__main__":
    main()
