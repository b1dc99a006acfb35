"""Attribution: how gradients become scores, the same code for the server and for two arrays in a notebook."""

from __future__ import annotations

from covector.attribution.scoring import score, scorer_names

__all__ = ["score", "scorer_names"]
