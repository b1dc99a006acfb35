"""Scoring, in one place and in pure numpy. Every score has one form.

    score(query, row) = reduce over groups of sum over checkpoints c of eta_c * n_c(q) * w_c[row] * <A_c q_c, g_c[row]>

A scorer is the choice of A (``transform``), n (``query_norm``) and w (in ``row_factor``). A learnt fit is one more
scorer, with its own A and w; nothing that applies scorers has to know. Vectors travel here as a power of two times a
vector of about unit RMS, so that no norm that float32 can hold overflows or vanishes on the way.

Sign: a score above zero names a proponent. A margin grows where a loss shrinks, so where rows and queries differ in the
function differentiated, the score is turned (``sign``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from covector.errors import InvalidInput, NotFound, near_matches
from covector.types import Correction, GradientKind, Gradients

Float64 = npt.NDArray[np.float64]
CorrectionPairs = frozenset[tuple[Correction, Correction]]

# The weights of the checkpoints in the sum over them: eta, always; eta, but 1 where there is only one; equal, summing
# to one (TRAK's mean); eta's share in the sum of etas (LESS).
EtaRule = Literal["always", "several", "equal", "shares"]

_SUM_DIM = 4096  # half of numpy's iterator buffer
_NORM_MIN, _NORM_MAX = 1e-140, 1e140  # between these, no square that counts leaves the range of float64

SAME_CORRECTION: CorrectionPairs = frozenset({("none", "none"), ("adam", "adam")})


@dataclass(frozen=True, slots=True)
class RowFacts:
    """What a row's weight may depend on. The gradient of row i is ``scales[i]`` times its unit row."""

    norms: Float64  # [n], the 2-norms of the unit rows
    scales: npt.NDArray[np.float32] | Float64  # [n], 0 for an all-zero row
    trak_q: npt.NDArray[np.float32]  # [n], NaN where not given
    row_ids: npt.NDArray[np.int64]  # [n], for weights that were learnt row by row


Transform = Callable[[Float64], Float64]
QueryNorm = Callable[[Float64, Float64], Float64]
RowFactor = Callable[[RowFacts], Float64]


@dataclass(frozen=True, slots=True)
class Scorer:
    """One scoring rule.

    ``transform``: queries float64[m, dim] -> A q, the same shape. ``query_norm``: (queries, transformed) -> n(q),
    float64[m]. ``row_factor``: facts of n rows -> w * scale, float64[n], the two in one so that a weight of 1/|g| never
    meets the scale it cancels. ``corrections``: the pairs (rows', queries') of optimiser corrections that it accepts.
    ``etas``: how checkpoints are weighed, see ``EtaRule``.
    """

    name: str
    transform: Transform
    query_norm: QueryNorm
    row_factor: RowFactor
    corrections: CorrectionPairs = SAME_CORRECTION
    etas: EtaRule = "several"

    def prepare(self, queries: Float64) -> Float64:
        """n(q) * A q of float64[m, dim]: what rows are multiplied with."""
        transformed = self.transform(queries)
        return transformed * self.query_norm(queries, transformed)[:, None]

    def checkpoint_weights(self, etas: Sequence[float]) -> list[float]:
        """The weight of each checkpoint in the sum over them."""
        count, total = len(etas), float(sum(etas))
        if self.etas == "always" or (self.etas == "several" and count > 1):
            return list(etas)
        if self.etas == "shares" and total > 0:
            return [eta / total for eta in etas]
        return [1.0] if self.etas == "several" else [1.0 / count] * count


def identity(queries: Float64) -> Float64:
    """A = I."""
    return queries


def one(queries: Float64, _transformed: Float64) -> Float64:
    """n(q) = 1."""
    return np.ones(len(queries))


def inverse_norm(queries: Float64, _transformed: Float64) -> Float64:
    """n(q) = 1 / |q|."""
    return inverse_or_zero(norms(queries))


def own_scale(facts: RowFacts) -> Float64:
    """W = 1."""
    return facts.scales.astype(np.float64)


def scale_over_norm(facts: RowFacts) -> Float64:
    """W = 1 / |g|."""
    return np.where(facts.scales > 0, inverse_or_zero(facts.norms), 0.0)


_SCORERS = {
    scorer.name: scorer
    for scorer in (
        Scorer("dot", identity, one, own_scale),
        Scorer("cosine", identity, inverse_norm, scale_over_norm),
        Scorer("tracin", identity, one, own_scale, etas="always"),
        # Rows are Adam's updates, queries plain gradients (Xia et al. 2024); subtasks are groups under reduce="max".
        Scorer("less", identity, inverse_norm, scale_over_norm, frozenset({("adam", "none")}), "shares"),
    )
}


def scorer_names() -> list[str]:
    """The names of the scorers that need no fit."""
    return list(_SCORERS)


def scorer_named(name: str) -> Scorer:
    """The scorer of this name. Raises NotFound with the near matches."""
    try:
        return _SCORERS[name]
    except KeyError:
        raise NotFound(f"no scorer {name!r}; {near_matches(name, _SCORERS)}", scorer=name) from None


def sign(row_kind: GradientKind, query_kind: GradientKind) -> float:
    """-1 where rows and queries are gradients of functions of opposite sense (a loss and a margin), else 1."""
    stated = {row_kind.function, query_kind.function}
    return -1.0 if stated == {"loss", "margin"} else 1.0


def check_kinds(scorer: Scorer, row_kind: GradientKind, query_kind: GradientKind) -> None:
    """Raises InvalidInput, with the field and both values, unless the scorer accepts this pair of gradient kinds. What
    is not stated is compatible with anything."""
    rows, query = row_kind.reduction, query_kind.reduction
    if rows and query and rows != query:
        raise _unequal("reduction", rows, query, "take the query's gradients with the reduction of the rows")
    pair = (row_kind.correction, query_kind.correction)
    if None not in pair and pair not in scorer.corrections:
        accepted = " or ".join(f"{left} with {right}" for left, right in sorted(scorer.corrections))
        remedy = f"{scorer.name} accepts, of rows and query: {accepted}"
        raise _unequal("correction", row_kind.correction, query_kind.correction, remedy)


def _unequal(field: str, rows: object, query: object, remedy: str) -> InvalidInput:
    return InvalidInput(
        f"gradient kinds do not fit: {field} is {rows} of the rows, {query} of the query; {remedy}", field=field
    )


def dots(rows: Float64, others: Float64) -> Float64:
    """<row, other> in float64[n], of float64[n, dim] and float64[n, dim] or float64[dim]. The order of each sum depends
    on dim alone, never on n or the row's place, so equal rows have equal products. Neither BLAS nor one einsum over all
    of dim has that: they cut long sums by the layout of the whole."""
    others = np.broadcast_to(others, rows.shape)
    total = np.zeros(len(rows))
    for start in range(0, rows.shape[1], _SUM_DIM):
        span = slice(start, start + _SUM_DIM)
        total += np.einsum("nk,nk->n", rows[:, span], others[:, span])
    return total


def norms(vectors: Float64) -> Float64:
    """The 2-norms of float64[n, dim], by ``dots``."""
    found: Float64 = np.sqrt(dots(vectors, vectors))
    return found


def inverse_or_zero(values: Float64) -> Float64:
    """1 / values, and 0 where a value is 0."""
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)


def split_scale(vectors: Float64) -> tuple[Float64, Float64]:
    """Vectors as a power of two times a vector with an RMS between 0.5 and 1, which rounds nothing.

    vectors: finite float64[n, dim]. Returns (float64[n, dim], scales float64[n]); an all-zero vector has scale 0.
    """
    lengths = norms(vectors)
    if np.all((lengths > _NORM_MIN) & (lengths < _NORM_MAX)):
        exponents = np.frexp(lengths / np.sqrt(vectors.shape[1]))[1]
        return vectors * np.ldexp(1.0, -exponents)[:, None], np.ldexp(1.0, exponents)
    peak_exponents = np.frexp(np.abs(vectors).max(axis=1, initial=0.0))[1]
    shrunk = np.ldexp(vectors, -peak_exponents[:, None])
    rms = norms(shrunk) / np.sqrt(max(vectors.shape[1], 1))
    exponents = np.frexp(rms)[1]
    scales = np.where(rms > 0, np.ldexp(1.0, exponents + peak_exponents), 0.0)
    return np.ldexp(shrunk, -exponents[:, None]), scales


def group_means(vectors: Float64, groups: Sequence[int]) -> Float64:
    """The mean of each group of vectors. vectors: float64[m, dim]; groups: m numbers from 0 without a gap. Returns
    float64[groups, dim]."""
    members = np.asarray(groups)
    return np.stack([vectors[members == group].mean(axis=0) for group in range(int(members.max()) + 1)])


def to_float32(scores: Float64) -> npt.NDArray[np.float32]:
    """Scores as they leave: float32, those past its range as its largest number of that sign."""
    largest = float(np.finfo(np.float32).max)
    return np.clip(scores, -largest, largest).astype(np.float32)


def score(queries: npt.ArrayLike | Gradients, gradients: npt.ArrayLike | Gradients, *, scorer: str = "dot") -> Float64:
    """The scores of two arrays, without a server: float64[m, n], by the scorer's rule at one checkpoint.

    queries: float[m, dim] or float[dim]; gradients: float[n, dim]. Where both are ``Gradients``, their spaces, kinds
    and weights must fit, and the sign follows their kinds. Raises NotFound for an unknown scorer, InvalidInput for
    arrays that do not fit or are not finite.
    """
    rule = scorer_named(scorer)
    turn = 1.0
    if isinstance(queries, Gradients) and isinstance(gradients, Gradients):
        _check_origin(rule, queries, gradients)
        turn = sign(gradients.kind, queries.kind)
    wide_queries, wide_rows = finite_rows("queries", queries), finite_rows("gradients", gradients)
    if wide_queries.shape[1] != wide_rows.shape[1]:
        raise InvalidInput(f"queries have dim {wide_queries.shape[1]}, gradients {wide_rows.shape[1]}")
    unit_queries, query_scales = split_scale(rule.prepare(wide_queries))
    unit_rows, row_scales = split_scale(wide_rows)
    factors = rule.row_factor(_facts_of(unit_rows, row_scales, gradients))
    return (unit_queries @ unit_rows.T) * (turn * query_scales)[:, None] * factors


def _facts_of(unit_rows: Float64, scales: Float64, source: npt.ArrayLike | Gradients) -> RowFacts:
    trak_q = source.trak_q if isinstance(source, Gradients) else None
    if trak_q is None:
        trak_q = np.full(len(unit_rows), np.nan, dtype=np.float32)
    return RowFacts(norms(unit_rows), scales, trak_q, np.arange(len(unit_rows)))


def _check_origin(rule: Scorer, queries: Gradients, gradients: Gradients) -> None:
    difference = gradients.space.difference(queries.space)
    if difference is not None:
        raise InvalidInput(
            f"gradients and queries are of different spaces: {difference}", field=difference.split(":")[0]
        )
    check_kinds(rule, gradients.kind, queries.kind)
    check_weights("the gradients", gradients.checkpoint, queries.checkpoint)


def check_weights(rows: str, row_digest: str | None, query_digest: str | None) -> None:
    """Raises InvalidInput, showing both, if both weight digests are stated and differ. ``rows`` says whose weights the
    first is of."""
    if row_digest and query_digest and row_digest != query_digest:
        raise InvalidInput(
            f"these query gradients were taken at other weights ({query_digest[:12]}...) than {rows} "
            f"({row_digest[:12]}...); take them again with the model as it was there",
            field="weights_digest",
        )


def finite_rows(name: str, values: npt.ArrayLike | Gradients, first: int = 0) -> Float64:
    """float64[n, dim] of an array, or of one vector. Raises InvalidInput, naming the row, unless all is finite;
    ``first`` is the number of the first row."""
    wide = np.asarray(values, dtype=np.float64)
    wide = wide[None, :] if wide.ndim == 1 else wide
    if wide.ndim != 2:
        raise InvalidInput(f"{name} must be float[n, dim], not of shape {wide.shape}")
    bad = first_non_finite_row(wide)
    if bad is not None:
        raise InvalidInput(f"{name}: row {first + bad} holds NaN or infinity", row=first + bad)
    return wide


def first_non_finite_row(vectors: npt.NDArray[np.float32] | Float64) -> int | None:
    """The position of the first row of float[n, dim] that holds NaN or infinity, or None."""
    return next((row for row, vector in enumerate(vectors) if not np.isfinite(vector).all()), None)
