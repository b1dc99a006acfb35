"""The demo's tables, as plain text."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from covector.demo.ranking import Ranking
from covector.types import Hit, Key

PROPONENTS, OPPONENTS = 7, 3


@dataclass(frozen=True, slots=True)
class Marks:
    """The keys of the rows that are marked."""

    planted: Collection[Key]
    decoys: Collection[Key]

    def of(self, key: Key) -> str:
        """``*`` for a planted row, ``~`` for a decoy, a blank for any other."""
        return "*" if key in self.planted else "~" if key in self.decoys else " "


def table(ranking: Ranking, other: Ranking, marks: Marks) -> Iterator[str]:
    """The lines of a ranking: its ends with texts and scores, then the ranks by its scorer and by that of ``other``."""
    width = max(shutil.get_terminal_size((110, 24)).columns, 60)
    count = len(ranking.scores)
    yield f"   rank    {ranking.scorer:>6}  key           row"
    for rank, hit in enumerate(ranking.hits.proponents[:PROPONENTS], start=1):
        yield _line(rank, hit, marks, width)
    yield "    ..."
    for above, hit in reversed(list(enumerate(ranking.hits.opponents[:OPPONENTS]))):
        yield _line(count - above, hit, marks, width)
    yield f"  Planted rows rank {_ranks(ranking, marks.planted)}, decoys {_ranks(ranking, marks.decoys)}, of {count}."
    yield f"  By {other.scorer}, planted rows rank {_ranks(other, marks.planted)}."


def _line(rank: int, hit: Hit, marks: Marks, width: int) -> str:
    start = f"{marks.of(hit.key)} {rank:>5}  {hit.score:>+8.3f}  {hit.key!s:<12}  "
    return start + shortened(hit.text or "", width - len(start))


def _ranks(ranking: Ranking, keys: Collection[Key]) -> str:
    return " ".join(map(str, ranking.ranks(keys)))


def shortened(text: str, width: int) -> str:
    """``text`` in at most ``width`` characters."""
    return text if len(text) <= width else text[: max(width - 3, 0)].rstrip() + "..."
