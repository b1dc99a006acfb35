"""What can be asked of a collection: plain values, checked by the planner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from covector.attribution.scoring import Float64
from covector.types import GradientKind, Space, Stage
from covector_server.fit.serving import FitUse
from covector_server.storage.damage import Damage
from covector_server.storage.view import RowIds

Reduce = Literal["mean", "max"]
Missing = Literal["omit", "zero"]
Damaged = Literal["fail", "omit"]


@dataclass(frozen=True, slots=True)
class CheckpointChoice:
    """A checkpoint by name, and the digest of the weights that the query's gradients were taken at, if stated."""

    name: str
    weights_digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked.

    ``vectors``: float32[checkpoints, m, dim], in the order of ``checkpoints``; none named means the only one of the
    collection. ``groups``: the group of each of the m vectors, 0, 1, 2 ...; a group's vectors are averaged after n(q)
    and the scorer's transform; None makes each its own group. ``reduce``: how groups become one result; None answers
    each. ``missing``: whether a row without a gradient at one of the checkpoints is left out, or that checkpoint adds
    nothing to it; a row with a gradient at none of them is left out always. ``damaged``: whether rows whose stored
    bytes are damaged fail the question or are left out, as ``query.omission`` says. ``space`` and ``kind`` are the
    query's; without a space only the dim is checked. ``exact``: use no index. ``fit``: what the scorer learnt, None for
    one that learns nothing; ``query.fitted`` finds it.
    """

    vectors: npt.NDArray[np.float32]
    checkpoints: Sequence[CheckpointChoice] = ()
    scorer: str = "dot"
    where: Mapping[str, Any] | None = None
    groups: Sequence[int] | None = None
    reduce: Reduce | None = None
    missing: Missing = "omit"
    damaged: Damaged = "fail"
    space: Space | None = None
    kind: GradientKind = field(default_factory=GradientKind)
    exact: bool = False
    fit: FitUse | None = None

    @property
    def rule(self) -> str:
        """What scores: the fit by its id, else the scorer."""
        return self.scorer if self.fit is None else self.fit.record.id


@dataclass(frozen=True, slots=True)
class End:
    """One end of a result, best first: at most k rows. Scores of equal rows are in order of key."""

    row_ids: RowIds  # [n]
    keys: list[bytes]  # [n], encoded
    scores: Float64  # [n]

    def behind(self, offset: int) -> End:
        """What comes after the best ``offset``."""
        return End(self.row_ids[offset:], self.keys[offset:], self.scores[offset:])


@dataclass(frozen=True, slots=True)
class Ends:
    """Both ends of a result: proponents with the largest score first, opponents with the smallest."""

    proponents: End
    opponents: End

    def behind(self, offset: int) -> Ends:
        """What comes after the best ``offset`` of both."""
        return Ends(self.proponents.behind(offset), self.opponents.behind(offset)) if offset else self


@dataclass(frozen=True, slots=True)
class TopKAnswer:
    """The ends of each result, the stages that found them, and what was left out under ``damaged="omit"``. ``index``:
    the id of the one used, those of several with a + between them, empty for exact search; ``reason``: why that way,
    for people."""

    results: tuple[Ends, ...]
    stages: tuple[Stage, ...]
    scorer: str
    damages: tuple[Damage, ...] = ()
    index: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ScoreBlock:
    """Scores of rows, ids ascending: ``scores`` is float32[results, n]."""

    row_ids: RowIds
    scores: npt.NDArray[np.float32]
