"""How good scores are, judged by what retrained models did; and how far two sets of scores agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.attribution.scoring import Float64
from covector.errors import InvalidInput

RESAMPLES = 1000


@dataclass(frozen=True, slots=True, eq=False)
class LdsResult:
    """A linear datamodelling score: the ``mean`` over queries, its bootstrap interval [``low``, ``high``] over subsets,
    and ``by_query``, float64[m]. ``subset_count``: models it was judged by."""

    mean: float
    low: float
    high: float
    by_query: Float64
    subset_count: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """The columns of float64[s, m] in order, with their ties, so that ranks under any weights of the s are two sums: of
    the weights below a value, and of those up to it. ``below``, ``up_to``: where each value finds these in the
    flattened running sums, intp[s, m]."""

    order: npt.NDArray[np.intp]
    below: npt.NDArray[np.intp]
    up_to: npt.NDArray[np.intp]

    @staticmethod
    def of(values: Float64) -> Ranking:
        """Ranks columns."""
        count, columns = values.shape
        order = values.argsort(axis=0, kind="stable")
        in_order = np.take_along_axis(values, order, axis=0)
        begins = np.concatenate([np.ones((1, columns), dtype=bool), in_order[1:] != in_order[:-1]])
        ends = np.concatenate([begins[1:], np.ones((1, columns), dtype=bool)])
        places = np.broadcast_to(np.arange(count)[:, None], values.shape)
        first = np.maximum.accumulate(np.where(begins, places, 0), axis=0)
        last = np.minimum.accumulate(np.where(ends, places, count)[::-1], axis=0)[::-1]
        place_of = order.argsort(axis=0)
        offsets = np.arange(columns)
        below = np.take_along_axis(first, place_of, axis=0) * columns + offsets
        return Ranking(order, below, (np.take_along_axis(last, place_of, axis=0) + 1) * columns + offsets)

    def ranks(self, weights: Float64) -> Float64:
        """The rank of each value in its column, float64[s, m], where value j is there weights[j] times; equal ones
        share the middle of their places."""
        sums = np.zeros((len(weights) + 1, self.order.shape[1]))
        np.cumsum(weights[self.order], axis=0, out=sums[1:])
        middle: Float64 = (sums.take(self.below) + sums.take(self.up_to) + 1) / 2
        return middle


def lds(
    scores: npt.ArrayLike,
    masks: npt.ArrayLike,
    outputs: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> LdsResult:
    """The linear datamodelling score (Park et al. 2023, section 2): for each query, Spearman's correlation over subsets
    between the sum of the scores of a subset's rows and what the model trained on that subset did; its mean over
    queries.

    scores: float[m, n], of m queries and n rows; masks: bool[s, n], the rows of each of s subsets; outputs:
    float[s, m], of the s models for the m queries, larger where the behaviour is stronger (a margin, or minus a loss).
    Several models of one subset should come as the mean of their outputs. The interval is a percentile bootstrap over
    subsets, moved so that the resampled means lie around the score: fewer distinct subsets pull Spearman's correlation
    towards zero. A query whose outputs or sums are all equal counts as 0. Raises InvalidInput for shapes that do not
    fit, or values that are not finite.
    """
    wide, member, told = _checked(scores, masks, outputs)
    predicted, actual = Ranking.of(member @ wide.T), Ranking.of(told)
    count = len(member)
    by_query = _spearman(predicted, actual, np.ones(count))
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(count, np.full(count, 1.0 / count), size=resamples).astype(np.float64)
    means = np.array([float(_spearman(predicted, actual, weights).mean()) for weights in draws])
    low, high = _interval(float(by_query.mean()), means, confidence)
    return LdsResult(float(by_query.mean()), low, high, by_query, count)


def agreement(scores: npt.ArrayLike, reference: npt.ArrayLike, k: int = 10) -> tuple[float, float]:
    """The share of the reference's k largest scores that are among the k largest here, and the same of the smallest,
    each the mean over queries. Both float[m, n]; for sketches against unsketched gradients, say."""
    ours, theirs = np.asarray(scores, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if ours.ndim != 2 or ours.shape != theirs.shape:
        raise InvalidInput(f"scores have shape {ours.shape}, the reference {theirs.shape}; both must be [m, n]")
    if not 1 <= k <= ours.shape[1]:
        raise InvalidInput(f"k is {k}; there are {ours.shape[1]} rows")
    _check_finite("scores", ours)
    _check_finite("the reference", theirs)
    return _overlap(-ours, -theirs, k), _overlap(ours, theirs, k)


def _overlap(ours: Float64, theirs: Float64, k: int) -> float:
    smallest = (values.argsort(axis=1, kind="stable")[:, :k] for values in (ours, theirs))
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(*smallest, strict=True)]))


def _spearman(left: Ranking, right: Ranking, weights: Float64) -> Float64:
    """The correlation of ranks in each column, float64[m], 0 where one side is constant."""
    a, b = left.ranks(weights), right.ranks(weights)
    total = weights.sum()
    a -= weights @ a / total
    b -= weights @ b / total
    spread = np.sqrt((weights @ (a * a)) * (weights @ (b * b)))
    found: Float64 = np.divide(weights @ (a * b), spread, out=np.zeros_like(spread), where=spread > 0)
    return found


def _interval(score: float, resampled: Float64, confidence: float) -> tuple[float, float]:
    """The score itself, twice, where nothing was resampled."""
    if not len(resampled):
        return score, score
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1.0 - tail]) + (score - resampled.mean())
    return float(max(low, -1.0)), float(min(high, 1.0))


def _checked(scores: npt.ArrayLike, masks: npt.ArrayLike, outputs: npt.ArrayLike) -> tuple[Float64, Float64, Float64]:
    wide, member, told = (np.asarray(values, dtype=np.float64) for values in (scores, masks, outputs))
    if wide.ndim != 2 or member.ndim != 2 or told.ndim != 2:
        raise InvalidInput("scores must be [queries, rows], masks [subsets, rows], outputs [subsets, queries]")
    if member.shape[1] != wide.shape[1] or told.shape != (len(member), len(wide)):
        raise InvalidInput(
            f"scores {wide.shape}, masks {member.shape} and outputs {told.shape} do not fit: they must be "
            "[queries, rows], [subsets, rows] and [subsets, queries]"
        )
    if len(member) < 3 or not len(wide):
        raise InvalidInput(f"{len(member)} subsets and {len(wide)} queries; at least 3 and 1 are needed")
    for name, values in (("scores", wide), ("masks", member), ("outputs", told)):
        _check_finite(name, values)
    return wide, member, told


def _check_finite(name: str, values: npt.NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        raise InvalidInput(
            f"{name} hold NaN or infinity, first at {tuple(np.argwhere(~np.isfinite(values))[0].tolist())}"
        )
