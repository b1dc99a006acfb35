"""Attribution: how gradients become scores, the same code for the server and for two arrays in a notebook.

    from covector.attribution import evaluate, fit, lds, score

    score(queries, rows, scorer="cosine")                     # nothing to learn
    fit("trak", rows, trak_q=q).scores(queries, rows, trak_q=q)
    lds(scores, masks, outputs)                               # how good scores are, judged by retrained models
    evaluate({"dot": a, "trak": b}, masks, outputs).chosen    # which are best, and what that is worth

Over streams, as the server does it: ``plan_fit``, ``FitJob``, ``CheckpointFit``.
"""

from __future__ import annotations

from covector.attribution.checkpoint_fit import CheckpointFit
from covector.attribution.comparing import Evaluation, Judged, evaluate
from covector.attribution.evaluation import LdsResult, agreement, lds
from covector.attribution.fits import Fit, fit
from covector.attribution.learning import FitJob
from covector.attribution.methods import method_names
from covector.attribution.planning import FitPlan, plan_fit
from covector.attribution.rows import RowBlock
from covector.attribution.scoring import score, scorer_names
from covector.attribution.subsets import SubsetRecipe, trained_outputs

__all__ = [
    "CheckpointFit",
    "Evaluation",
    "Fit",
    "FitJob",
    "FitPlan",
    "Judged",
    "LdsResult",
    "RowBlock",
    "SubsetRecipe",
    "agreement",
    "evaluate",
    "fit",
    "lds",
    "method_names",
    "plan_fit",
    "score",
    "scorer_names",
    "trained_outputs",
]
