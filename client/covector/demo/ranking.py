"""Where the planted rows came out: every row's score for the question, and the two ends of the list."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from covector.types import Key, QueryHits


@dataclass(frozen=True, slots=True)
class Ranking:
    """The answer to the question at one checkpoint, or at several summed.

    ``label`` names the checkpoints, ``scores`` holds every row's score by ``scorer``, ``hits`` the two ends of the
    list.
    """

    label: str
    scorer: str
    scores: dict[Key, float]
    hits: QueryHits

    def ordered(self) -> list[Key]:
        """All keys, largest score first."""
        return sorted(self.scores, key=lambda key: (-self.scores[key], str(key)))

    def ranks(self, keys: Iterable[Key]) -> list[int]:
        """The places of ``keys``, 1 for the top, in ascending order."""
        place = {key: rank for rank, key in enumerate(self.ordered(), start=1)}
        return sorted(place[key] for key in keys)

    def on_top(self, keys: Collection[Key]) -> bool:
        """Whether ``keys`` take the first places, all of them."""
        return self.ranks(keys) == list(range(1, len(keys) + 1))
