"""From a question to a plan: everything is checked here, so that what runs a plan need not ask again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from covector.attribution.scoring import (
    Float64,
    RowFacts,
    Scorer,
    check_kinds,
    check_weights,
    first_non_finite_row,
    group_means,
    norms,
    sign,
    split_scale,
)
from covector.errors import InvalidInput
from covector_server.kernels.scan import exact_products, fast_products, padded, relative_error
from covector_server.kernels.topk import Scored
from covector_server.limits import Limits
from covector_server.query.checkpoints import checkpoints_of, choices_of
from covector_server.query.fitted import scorers_of
from covector_server.query.question import Missing, Question, Reduce
from covector_server.storage.view import CheckpointView, CollectionView, Strip, Tile


@dataclass(frozen=True, slots=True)
class Term:
    """One checkpoint's share of the scores: ``coefficients[g] * factor(row) * <vectors[g], row>`` for g groups."""

    view: CheckpointView
    scorer: Scorer
    vectors: Float64  # [g, dim], at about unit RMS, or zero
    narrow: npt.NDArray[np.float32]  # [g, dim], the same
    packed: npt.NDArray[np.float32]  # the same, as the kernel takes them
    coefficients: Float64  # [g], sign, weight of the checkpoint and scale of the vectors
    reaches: Float64  # [g], |coefficient| |vector|, times the relative error of products

    def approximate(self, strip: Strip) -> Scored:
        """Scores from float32 products, with the bounds of their errors."""
        products, row_norms = fast_products(strip.rows, self.packed)
        factors = self._factors(strip, row_norms)
        return Scored(products, self.coefficients, factors, self.reaches, np.abs(factors) * row_norms, strip.row_ids)

    def exact(self, rows: Tile | Strip, groups: slice) -> Float64:
        """Scores float64[g', n] of some groups, from float64 products."""
        strip = Strip.of(rows) if isinstance(rows, Tile) else rows
        products, row_norms = exact_products(strip.rows, self.vectors[groups])
        return products * self.coefficients[groups, None] * self._factors(strip, row_norms)

    def _factors(self, strip: Strip, row_norms: Float64) -> Float64:
        return self.scorer.row_factor(RowFacts(row_norms, strip.scales, strip.trak_q, strip.row_ids))


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked question: one term a checkpoint, and how the groups' scores become results."""

    terms: tuple[Term, ...]
    reduce_max: bool
    missing: Missing

    @property
    def group_count(self) -> int:
        return len(self.terms[0].coefficients)

    @property
    def result_count(self) -> int:
        return 1 if self.reduce_max else self.group_count

    @property
    def dim(self) -> int:
        dim: int = self.terms[0].vectors.shape[1]
        return dim

    def groups_of(self, result: int) -> slice:
        """The groups that a result is the maximum of."""
        return slice(0, self.group_count) if self.reduce_max else slice(result, result + 1)

    def reduced(self, by_group: Float64) -> Float64:
        """float64[groups, n] -> float64[results, n]. Good for errors too: a maximum is off by at most the largest."""
        return by_group.max(axis=0, keepdims=True) if self.reduce_max else by_group


def plan_question(view: CollectionView, question: Question, limits: Limits) -> Plan:
    """Checks a question against a collection.

    Raises NotFound for an unknown scorer or checkpoint, InvalidInput for vectors, groups, spaces, kinds or weights that
    do not fit, LimitExceeded for too many vectors.
    """
    _check_space(view, question)
    checkpoints, choices = checkpoints_of(view, question), choices_of(question)
    _check_named_once(checkpoints)
    _check_vectors(view, question, [checkpoint.name for checkpoint in checkpoints], limits)
    scorers = scorers_of(view, question, checkpoints)
    for checkpoint, choice, scorer in zip(checkpoints, choices, scorers, strict=True):
        check_kinds(scorer, checkpoint.kind, question.kind)
        check_weights(f"checkpoint {checkpoint.name!r}", checkpoint.weights_digest, choice.weights_digest)
    groups = _check_groups(question.groups, question.vectors.shape[1])
    weights = scorers[0].checkpoint_weights([checkpoint.eta for checkpoint in checkpoints])
    terms = []
    for checkpoint, scorer, weight, vectors in zip(checkpoints, scorers, weights, question.vectors, strict=True):
        combined = _combine(scorer, vectors, groups, question.reduce)
        terms.append(_term(checkpoint, scorer, weight * sign(checkpoint.kind, question.kind), combined))
    return Plan(tuple(terms), question.reduce == "max", question.missing)


def _check_named_once(checkpoints: Sequence[CheckpointView]) -> None:
    if len({checkpoint.name for checkpoint in checkpoints}) < len(checkpoints):
        raise InvalidInput("a checkpoint is named twice; name each once", field="checkpoints")


def _check_space(view: CollectionView, question: Question) -> None:
    difference = None if question.space is None else view.space.difference(question.space)
    if difference is not None:
        raise InvalidInput(
            f"the query is from another space than collection {view.name!r}: {difference} (here the collection, "
            "there the query)",
            field=difference.split(":")[0],
        )


def _check_vectors(view: CollectionView, question: Question, names: list[str], limits: Limits) -> None:
    count, vector_count, dim = question.vectors.shape
    if dim != view.space.dim:
        raise InvalidInput(f"the query has dim {dim}, collection {view.name!r} has dim {view.space.dim}", field="dim")
    if count != len(names):
        raise InvalidInput(f"vectors for {count} checkpoints, but the query is over {len(names)}: {', '.join(names)}")
    if vector_count == 0:
        raise InvalidInput("the query has no vectors; send at least one")
    limits.check("query_vectors", vector_count, "the query has too many vectors")
    for name, vectors in zip(names, question.vectors, strict=True):
        bad = first_non_finite_row(vectors)
        if bad is not None:
            raise InvalidInput(f"query {bad} at checkpoint {name!r} holds NaN or infinity", query=bad, checkpoint=name)


def _check_groups(groups: Sequence[int] | None, vector_count: int) -> Sequence[int]:
    if groups is None:
        return range(vector_count)
    if len(groups) != vector_count:
        raise InvalidInput(f"{len(groups)} groups for {vector_count} query vectors; give one a vector", field="groups")
    used = set(groups)
    if max(used) >= len(used) or min(used) < 0:
        gap = next(group for group in range(len(used)) if group not in used)
        raise InvalidInput(f"groups are numbered from 0 without a gap, but no vector is in group {gap}", field="groups")
    return groups


def _combine(scorer: Scorer, vectors: npt.NDArray[np.float32], groups: Sequence[int], reduce: Reduce | None) -> Float64:
    """The vectors that rows are multiplied with, float64[groups, dim]. A mean over groups is taken here, since scores
    are linear in them."""
    prepared = scorer.prepare(vectors.astype(np.float64))
    combined = prepared if isinstance(groups, range) else group_means(prepared, groups)
    return combined.mean(axis=0, keepdims=True) if reduce == "mean" else combined


def _term(view: CheckpointView, scorer: Scorer, weight: float, combined: Float64) -> Term:
    unit, scales = split_scale(combined)
    coefficients = weight * scales
    reaches = np.abs(coefficients) * norms(unit) * relative_error()
    narrow = unit.astype(np.float32)
    return Term(view, scorer, unit, narrow, padded(narrow), coefficients, reaches)
