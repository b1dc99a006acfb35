"""What was learnt at one checkpoint: A, and w of its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.attribution.planning import FitPlan, plan_of
from covector.attribution.preconditioner import Preconditioner, preconditioner_of
from covector.attribution.rows import RowBlock, check_trak_q, row_norms
from covector.attribution.scoring import (
    Float64,
    QueryNorm,
    RowFacts,
    Scorer,
    dots,
    inverse_norm,
    inverse_or_zero,
    one,
)
from covector.attribution.sums import Arrays
from covector.errors import InvalidInput

Column = Callable[[npt.NDArray[np.int64]], Float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CheckpointFit:
    """A and w of one checkpoint. ``damping``: what was taken, in the method's unit; ``lambdas``: what that is in each
    layer; ``row_count``: rows that were learnt from; ``damping_scores``: what rows held out said of each candidate
    (larger is better), empty if they did not choose."""

    plan: FitPlan
    preconditioner: Preconditioner
    row_count: int
    damping: float
    lambdas: tuple[float, ...]
    damping_scores: tuple[tuple[float, float], ...] = ()

    def scorer(self, column: Column | None = None) -> Scorer:
        """The scoring rule. ``column``: row ids -> float64[n], for weights that a row's facts alone do not give:
        ``row_factors`` for trackstar, the mean Q over several checkpoints for trak."""
        method = self.plan.method
        return Scorer(
            name=method.name,
            transform=self.preconditioner.apply,
            query_norm=self._query_norm(),
            row_factor=lambda facts: self._factor(facts, column),
            corrections=method.corrections,
            etas=method.etas,
        )

    def row_factors(self, block: RowBlock) -> Float64:
        """W * scale of rows, float64[n]: a pass of this over all rows makes the column that ``scorer`` takes. Raises
        InvalidInput where trak's Q is missing."""
        facts = RowFacts(row_norms(block.rows), block.scales, block.trak_q, np.arange(len(block.rows)))
        if self.plan.method.weight != "inverse_whitened_norm":
            return self._factor(facts, None)
        found = np.empty(len(block.rows))
        step = max(1, (16 << 20) // (4 * self.plan.dim))
        for start in range(0, len(found), step):
            unit = block.rows[start : start + step]
            wide = unit if unit.dtype == np.float64 else unit.astype(np.float32)
            found[start : start + step] = row_norms(self.preconditioner.whiten(wide))
        return np.where(block.scales > 0, inverse_or_zero(found), 0.0)

    @property
    def facts(self) -> dict[str, Any]:
        """What is to be stored beside ``arrays``: plain values, ready for JSON."""
        return {
            "plan": self.plan.facts,
            "row_count": self.row_count,
            "damping": self.damping,
            "lambdas": list(self.lambdas),
            "damping_scores": [list(one) for one in self.damping_scores],
        }

    def arrays(self) -> Arrays:
        """A, as arrays."""
        return self.preconditioner.arrays()

    @staticmethod
    def of(facts: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> CheckpointFit:
        """The fit that ``facts`` and ``arrays`` describe."""
        return CheckpointFit(
            plan=plan_of(facts["plan"]),
            preconditioner=preconditioner_of(arrays),
            row_count=int(facts["row_count"]),
            damping=float(facts["damping"]),
            lambdas=tuple(facts["lambdas"]),
            damping_scores=tuple((float(d), float(score)) for d, score in facts.get("damping_scores", ())),
        )

    def _query_norm(self) -> QueryNorm:
        weight = self.plan.method.weight
        if weight == "inverse_whitened_norm":
            return _inverse_whitened_norm
        return inverse_norm if weight == "inverse_norm" or self.plan.unit_rows else one

    def _factor(self, facts: RowFacts, column: Column | None) -> Float64:
        weight = self.plan.method.weight
        if weight == "inverse_whitened_norm":
            if column is None:
                raise InvalidInput(f"{self.plan.method.name} needs the weights of its rows; make them by row_factors()")
            return column(facts.row_ids)
        own = facts.scales.astype(np.float64)
        if self.plan.unit_rows or weight == "inverse_norm":
            own = np.where(own > 0, inverse_or_zero(facts.norms), 0.0)
        if weight == "trak_q":
            if column is None:
                check_trak_q(facts.trak_q)
            own = own * (facts.trak_q.astype(np.float64) if column is None else column(facts.row_ids))
        return own


def _inverse_whitened_norm(queries: Float64, transformed: Float64) -> Float64:
    return np.sqrt(inverse_or_zero(np.maximum(dots(queries, transformed), 0.0)))
