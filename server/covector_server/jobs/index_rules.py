"""What an index is built for: a scorer that learns nothing, or one fit, with its A and the weights of the rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from covector.attribution.preconditioner import Identity, Preconditioner
from covector.attribution.scoring import Scorer, scorer_named
from covector_server.fit.cache import FitCache
from covector_server.fit.serving import FitView, fit_for
from covector_server.index.contract import Spec
from covector_server.storage.drafts import Check
from covector_server.storage.view import PositionedCheckpoint


@dataclass(frozen=True, slots=True)
class IndexRule:
    """``spec``: what was asked, with the fit by its id and the scorer by its method."""

    spec: Spec
    scorer: Scorer
    preconditioner: Preconditioner


def rule_of(view: FitView, checkpoint: PositionedCheckpoint, spec: Spec, fits: FitCache, check: Check) -> IndexRule:
    """The rule that a spec names: a method means its newest fit that covers the checkpoint. Raises as ``fit_for``
    does, and for rows whose weights are not known as ``FitUse.scorers``."""
    use = fit_for(view, spec.fit or spec.scorer, [checkpoint.name], fits, check)
    if use is None:
        return IndexRule(spec, scorer_named(spec.scorer), Identity())
    (scorer,) = use.scorers(view, [checkpoint], omits_damaged=False)
    named = replace(spec, scorer=use.record.method, fit=use.record.id)
    return IndexRule(named, scorer, use.parts[checkpoint.name].fit.preconditioner)


def check_fit(view: FitView, name: str, spec: Spec, fits: FitCache, check: Check) -> Spec:
    """The spec as ``rule_of`` names it, before a row is read. Raises as ``fit_for`` does."""
    use = fit_for(view, spec.fit or spec.scorer, [name], fits, check)
    return spec if use is None else replace(spec, scorer=use.record.method, fit=use.record.id)
