"""The table and the plot of a benchmark of the linear datamodelling score, and the choice of the best setting: by the
first half of the subsets, reported on the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from covector.attribution import LdsResult, lds

RESAMPLES = 300
COLOURS = ("#8a8f98", "#3b7dd8", "#d1495b", "#c9a227", "#4c956c", "#7b5ea7")


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: the LDS with its interval and its standard error over queries, the same by ``other``
    outputs, and on the two halves of the subsets: ``choice`` on the one that settings are chosen by, ``test`` with its
    interval on the one they are not."""

    name: str
    group: str
    lds: float
    low: float
    high: float
    query_error: float
    other: float
    choice: float
    test: float
    test_low: float
    test_high: float

    def __str__(self) -> str:
        return f"{self.lds:.3f} [{self.low:.3f}, {self.high:.3f}]  {self.name}"


def judged(
    named: tuple[str, str], scores: npt.ArrayLike, masks: npt.NDArray[Any], outputs: npt.NDArray[Any],
    other_outputs: npt.NDArray[Any],
) -> Row:  # fmt: skip
    """The line of scores, float[queries, rows]. ``named``: name and group."""
    half = len(masks) // 2
    whole = lds(scores, masks, outputs, resamples=RESAMPLES)
    other = lds(scores, masks, other_outputs, resamples=0)
    choice = lds(scores, masks[:half], outputs[:half], resamples=0)
    test: LdsResult = lds(scores, masks[half:], outputs[half:], resamples=RESAMPLES)
    error = float(whole.by_query.std() / len(whole.by_query) ** 0.5)
    interval = (whole.mean, whole.low, whole.high, error)
    return Row(*named, *interval, other.mean, choice.mean, test.mean, test.low, test.high)


def chosen(among: Sequence[Row], what: str, subset_count: int) -> list[str]:
    """Says which of these is best by the first half of the subsets, and what it reaches on the other."""
    half, best = subset_count // 2, max(among, key=lambda row: row.choice)
    return [
        f"Of {what}, the best by the first {half} subsets is **{best.name}** ({best.choice:.3f} there);",
        f"on the other {subset_count - half}: **{best.test:.3f}** ({best.test_low:.3f} to {best.test_high:.3f}).",
        "",
    ]


def lines_of(rows: Sequence[Row], other: str) -> Iterator[str]:
    """The table in Markdown; ``other`` heads the column of the other outputs."""
    yield f"| scorer | LDS | interval | {other} |"
    yield "|---|---|---|---|"
    group = ""
    for row in rows:
        if row.group != group:
            group = row.group
            yield f"| *{group}* | | | |"
        yield f"| {row.name} | {row.lds:.3f} | {row.low:.3f} to {row.high:.3f} | {row.other:.3f} |"


def plot(rows: Sequence[Row], path: Path, title: str, ring: str) -> None:
    """Writes ``path``: a bar a line of the table, its interval, and a ring at the other outputs' figure; ``ring`` says
    what that is."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    groups = dict.fromkeys(row.group for row in rows)
    colours = dict(zip(groups, COLOURS, strict=False))
    figure, axes = plt.subplots(figsize=(8, 0.27 * len(rows) + 1.2), layout="constrained")
    for place, row in enumerate(reversed(rows)):
        axes.barh(place, row.lds, color=colours[row.group], height=0.7)
        axes.plot([row.low, row.high], [place, place], color="black", linewidth=1.2)
        axes.plot(row.other, place, "o", color="white", markeredgecolor="black", markersize=4)
    axes.set_yticks(range(len(rows)), [row.name for row in reversed(rows)], fontsize=8)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(f"line: 95% interval; ring: {ring}", fontsize=8)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.spines[["top", "right"]].set_visible(False)
    for group, colour in colours.items():
        axes.barh(-5, 0, color=colour, label=group)
    axes.legend(loc="upper right", fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
