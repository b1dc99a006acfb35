"""A small real problem whose truth is cheap: sklearn's digits, an MLP in numpy, exact per-example gradients.

Many models train at once, as one batched product a step, so hundreds of subsets take seconds. Gradients are worked out
by hand and exact; ``blocks_of`` says where the parameters lie in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from covector.types import Block

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CLASSES = 10
MOMENTUM = 0.9
BETA1, BETA2 = 0.9, 0.999  # of the Adam moments that are kept beside the training


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is trained: SGD with momentum, the learning rate falling to zero on a line."""

    hidden: int = 32
    epochs: int = 40
    rate: float = 0.1
    batch: int = 50


@dataclass(frozen=True, slots=True)
class Digits:
    """Rows to train on and unseen queries: images float64[n, pixels] from 0 to 1, and their digits."""

    rows: Float64
    row_labels: Ints
    queries: Float64
    query_labels: Ints


@dataclass(frozen=True, slots=True)
class Models:
    """Parameters of several models, each array with a leading axis of models, and Adam's moments of their training."""

    w1: Float32  # [models, pixels, hidden]
    b1: Float32
    w2: Float32
    b2: Float32
    first: Float32  # [models, parameters], the moving mean of minibatch gradients
    second: Float32  # and of their squares

    def one(self, number: int) -> list[Float64]:
        """The parameters of one model, in float64."""
        return [array[number].astype(np.float64) for array in (self.w1, self.b1, self.w2, self.b2)]


def load(row_count: int = 1000, query_count: int = 300, pooled: bool = False) -> Digits:
    """The digits in a fixed order; ``pooled`` halves the sides of the images."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    images, labels = found.data[order] / 16.0, found.target[order].astype(np.int64)
    if pooled:
        images = images.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(len(images), 16)
    stop = row_count + query_count
    return Digits(images[:row_count], labels[:row_count], images[row_count:stop], labels[row_count:stop])


def blocks_of(pixels: int, hidden: int) -> tuple[Block, ...]:
    """Where each layer's parameters lie in a gradient."""
    sizes = {"w1": pixels * hidden, "b1": hidden, "w2": hidden * CLASSES, "b2": CLASSES}
    ends = np.cumsum(list(sizes.values())).tolist()
    return tuple(Block(name, end - size, end, size) for (name, size), end in zip(sizes.items(), ends, strict=True))


def train(
    digits: Digits, members: Ints, seeds: Sequence[int], recipe: Recipe, stops: Sequence[int] = ()
) -> list[Models]:
    """Trains a model on each set of rows. members: int[models, rows of each]; ``seeds``: of the start and of the order
    of each. Returns the models after each epoch of ``stops``, and at the end."""
    count, size = members.shape
    starts = [_start(digits.rows.shape[1], recipe, seed) for seed in seeds]
    state = [np.stack(arrays) for arrays in zip(*starts, strict=True)]
    speed = [np.zeros_like(array) for array in state]
    moments = [np.zeros((count, sum(array[0].size for array in state)), np.float32) for _ in range(2)]
    rngs = [np.random.default_rng([seed, 1]) for seed in seeds]
    images, steps, found = digits.rows.astype(np.float32), recipe.epochs * (size // recipe.batch), []
    step = 0
    for epoch in range(recipe.epochs):
        order = np.stack([member[rng.permutation(size)] for member, rng in zip(members, rngs, strict=True)])
        for start in range(0, size - recipe.batch + 1, recipe.batch):
            batch = order[:, start : start + recipe.batch]
            gradients = _mean_gradients(state, images[batch], digits.row_labels[batch])
            _keep_moments(moments, gradients)
            rate = recipe.rate * (1 - step / steps)
            step += 1
            for array, fast, gradient in zip(state, speed, gradients, strict=True):
                fast *= MOMENTUM
                fast += gradient
                array -= np.float32(rate) * fast
        if epoch + 1 in stops:
            found.append(Models(*(array.copy() for array in (*state, *moments))))
    return [*found, Models(*state, *moments)]


def _start(pixels: int, recipe: Recipe, seed: int) -> list[Float32]:
    rng, hidden = np.random.default_rng(seed), recipe.hidden
    first = rng.standard_normal((pixels, hidden)) * np.sqrt(2 / pixels)
    second = rng.standard_normal((hidden, CLASSES)) * np.sqrt(2 / hidden)
    arrays = (first, np.zeros(hidden), second, np.zeros(CLASSES))
    return [array.astype(np.float32) for array in arrays]


def _forward(state: Sequence[npt.NDArray], images: npt.NDArray) -> tuple[npt.NDArray, npt.NDArray]:
    w1, b1, w2, b2 = state
    hidden = np.maximum(images @ w1 + b1[..., None, :], 0)
    return hidden, hidden @ w2 + b2[..., None, :]


def _probabilities(logits: npt.NDArray) -> npt.NDArray:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def _mean_gradients(state: Sequence[Float32], images: Float32, labels: Ints) -> list[Float32]:
    hidden, logits = _forward(state, images)
    slope = _probabilities(logits)
    right = np.take_along_axis(slope, labels[..., None], -1)
    np.put_along_axis(slope, labels[..., None], right - 1, -1)
    slope /= images.shape[-2]
    back = (slope @ np.swapaxes(state[2], 1, 2)) * (hidden > 0)
    return [np.swapaxes(images, 1, 2) @ back, back.sum(1), np.swapaxes(hidden, 1, 2) @ slope, slope.sum(1)]


def _keep_moments(moments: Sequence[Float32], gradients: Sequence[Float32]) -> None:
    flat = np.concatenate([gradient.reshape(len(gradient), -1) for gradient in gradients], axis=1)
    moments[0][:] = BETA1 * moments[0] + (1 - BETA1) * flat
    moments[1][:] = BETA2 * moments[1] + (1 - BETA2) * flat**2


def margins(models: Models, images: Float64, labels: Ints) -> Float32:
    """z_y - logsumexp of the other logits, float32[models, n]. The loss is log(1 + exp(-margin)): both order alike."""
    state = (models.w1, models.b1, models.w2, models.b2)
    logits = _forward(state, images.astype(np.float32))[1].astype(np.float64)
    right = np.broadcast_to(labels[:, None], (*logits.shape[:-1], 1))
    own = np.take_along_axis(logits, right, -1)
    np.put_along_axis(logits, right, -np.inf, -1)
    peak = logits.max(-1, keepdims=True)
    others = peak + np.log(np.exp(logits - peak).sum(-1, keepdims=True))
    return (own - others)[..., 0].astype(np.float32)


def gradients(state: Sequence[Float64], images: Float64, labels: Ints, function: str) -> tuple[Float64, Float64]:
    """Per-example gradients of one model, float64[n, parameters], of the ``loss`` or the ``margin``; and 1 - p of the
    right digit, float64[n]."""
    hidden, logits = _forward(state, images)
    chance, right = _probabilities(logits), np.eye(CLASSES)[labels]
    slope = chance - right
    if function == "margin":
        others = chance * (1 - right)
        slope = right - others / others.sum(1, keepdims=True)
    back = (slope @ state[2].T) * (hidden > 0)
    first = (images[:, :, None] * back[:, None, :]).reshape(len(images), -1)
    second = (hidden[:, :, None] * slope[:, None, :]).reshape(len(images), -1)
    return np.concatenate([first, back, second, slope], axis=1), 1 - (chance * right).sum(1)
