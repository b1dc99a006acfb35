"""Questions whose scorer is a fit, and the rules of scoring at each of their checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from covector.attribution.scoring import Scorer, scorer_named, scorer_names
from covector_server.fit.cache import FitCache
from covector_server.fit.serving import fit_for
from covector_server.query.cancellation import Cancelled, check_cancelled
from covector_server.query.checkpoints import checkpoints_of
from covector_server.query.question import Question
from covector_server.storage.view import CheckpointView, CollectionView


def needs_fit(question: Question) -> bool:
    """Whether the scorer is none of those that learn nothing."""
    return question.scorer not in scorer_names()


def with_fit(view: CollectionView, question: Question, fits: FitCache, cancelled: Cancelled) -> Question:
    """The question with the fit that its scorer needs, loaded: from here on it is this one that answers, whatever is
    fitted meanwhile. Raises as ``fit_for`` does, and NotFound for an unknown checkpoint."""
    names = [checkpoint.name for checkpoint in checkpoints_of(view, question)]
    return replace(question, fit=fit_for(view, question.scorer, names, fits, lambda: check_cancelled(cancelled)))


def scorers_of(view: CollectionView, question: Question, checkpoints: Sequence[CheckpointView]) -> list[Scorer]:
    """The rule at each checkpoint. Raises NotFound for an unknown scorer, and as ``FitUse.scorers`` does."""
    if question.fit is None:
        return [scorer_named(question.scorer)] * len(checkpoints)
    return question.fit.scorers(view, checkpoints, omits_damaged=question.damaged == "omit")
