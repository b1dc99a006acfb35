"""What models of halves of the rows do, and the models of all rows that scores are taken from: trained once, kept.

Every training's result is a file of its own in the working directory, so a run that is stopped goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.smollm2 import Float32, Learner, Recipe, State, write_whole

SUBSETS = 64
TRAININGS = {0: SUBSETS, 1: SUBSETS}  # by seed of the order of the rows: how many of the subsets are trained on
LOSS, MARGIN = 0, 1  # places of the outputs
MODELS = (100, 101)  # seeds of the models of all rows


@dataclass(frozen=True, slots=True)
class Truth:
    """masks: bool[subsets, rows]. outputs: float32[seeds, subsets, 2, queries], minus the loss and the margin of each
    query; NaN where a subset was not trained on with a seed."""

    masks: npt.NDArray[np.bool_]
    outputs: Float32

    def mean(self, function: int) -> npt.NDArray[np.float64]:
        """Minus the loss or the margin, the mean over the seeds there are: float64[subsets, queries]."""
        return np.asarray(np.nanmean(self.outputs[:, :, function], axis=0, dtype=np.float64))


def masks_of(recipe: Recipe) -> npt.NDArray[np.bool_]:
    """Random halves of the rows, bool[subsets, rows]."""
    rng = np.random.default_rng(7)
    masks = np.zeros((SUBSETS, recipe.rows), dtype=bool)
    for mask in masks:
        mask[rng.permutation(recipe.rows)[: recipe.rows // 2]] = True
    return masks


def retrained(learner: Learner, work: Path) -> Iterator[str]:
    """Trains a model of each half that has none yet; names each as it is done."""
    masks = masks_of(learner.recipe)
    for seed, subset in [(seed, subset) for seed, count in TRAININGS.items() for subset in range(count)]:
        path = outputs_path(work, seed, subset)
        if not path.exists():
            retrain(learner, np.flatnonzero(masks[subset]), seed, path)
            yield path.stem


def outputs_path(work: Path, seed: int, subset: int) -> Path:
    return work / f"outputs-{seed}-{subset:02d}.npy"


def retrain(learner: Learner, members: npt.NDArray[np.int64], seed: int, path: Path) -> None:
    """Trains on these rows and writes the queries' outputs, float32[2, queries]."""
    learner.train(members.tolist(), seed)
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        np.save(file, learner.outputs())
    unfinished.rename(path)


def whole_model(learner: Learner, seed: int, work: Path) -> list[State]:
    """The states after each epoch of a model of all rows, trained unless they are kept."""
    path = work / f"model-{seed}.pt"
    if not path.exists():
        states: list[State] = []
        learner.train(range(learner.recipe.rows), seed, lambda optimizer: states.append(learner.state(optimizer)))
        write_whole(path, [asdict(state) for state in states])
    return [State(**kept) for kept in torch.load(path)]


def gathered(work: Path, recipe: Recipe) -> Truth:
    """All that was written."""
    outputs = np.full((len(TRAININGS), SUBSETS, 2, recipe.queries), np.nan, dtype=np.float32)
    for place, (seed, count) in enumerate(TRAININGS.items()):
        for subset in range(count):
            outputs[place, subset] = np.load(outputs_path(work, seed, subset))
    return Truth(masks_of(recipe), outputs)


def keep(truth: Truth, recipe: Recipe, path: Path) -> None:
    """Writes the truth as one small file."""
    np.savez_compressed(
        path, masks=np.packbits(truth.masks, axis=1), outputs=truth.outputs, recipe=json.dumps(asdict(recipe))
    )


def kept(path: Path, recipe: Recipe) -> Truth:
    """What ``keep`` wrote. Raises ValueError if that was of another recipe."""
    arrays = np.load(path)
    if json.loads(str(arrays["recipe"])) != asdict(recipe):
        raise ValueError(f"{path} holds the outputs of another recipe; train again with --retrain")
    masks = np.unpackbits(arrays["masks"], axis=1, count=recipe.rows).astype(bool)
    return Truth(masks, arrays["outputs"])
