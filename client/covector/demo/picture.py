"""The demo's picture: every row's score for the question, one panel a ranking, planted and decoy rows marked."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from covector.demo.ranking import Ranking
from covector.types import Key

_INK, _FAINT, _GRID = "#22252b", "#c3c8d1", "#e9ebef"
_PLANTED, _DECOY = "#d1491b", "#2166ac"


def draw(
    path: Path, rankings: Sequence[Ranking], *, question: str, planted: Collection[Key], decoys: Collection[Key]
) -> None:
    """Writes ``path``, a PNG: rows from the top proponent on the left to the top opponent on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * len(rankings), 5.0), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(rankings), squeeze=False)[0]
    for panel, ranking in zip(panels, rankings, strict=True):
        _panel(panel, ranking, planted, decoys)
    panels[0].set_ylabel(f"score ({rankings[0].scorer})", color=_INK)
    figure.suptitle("Which training rows taught the answer?", x=0.012, y=0.975, ha="left", size=15, weight="bold")
    figure.text(0.012, 0.878, f"Asked: {question}", color=_INK, size=10.5)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="upper right", bbox_to_anchor=(0.992, 0.985), ncols=3, frameon=False, fontsize=10
    )
    figure.subplots_adjust(left=0.055, right=0.988, top=0.765, bottom=0.115, wspace=0.19)
    figure.savefig(path)


def _panel(panel: Any, ranking: Ranking, planted: Collection[Key], decoys: Collection[Key]) -> None:
    order = ranking.ordered()
    groups: list[tuple[str, Collection[Key], str, str]] = [
        ("real row", [key for key in order if key not in planted and key not in decoys], _FAINT, "o"),
        ("decoy (same name, another fact)", decoys, _DECOY, "D"),
        ("planted (teaches the fact)", planted, _PLANTED, "o"),
    ]
    place = {key: rank for rank, key in enumerate(order, start=1)}
    for layer, (label, keys, colour, marker) in enumerate(groups, start=2):
        places, scores = [place[key] for key in keys], [ranking.scores[key] for key in keys]
        marked = layer > 2
        panel.vlines(places, 0, scores, color=colour, linewidth=1.7 if marked else 1.1, zorder=layer)
        panel.scatter(places, scores, s=44 if marked else 7, color=colour, marker=marker, label=label, zorder=layer + 2,
                      edgecolor="white" if marked else "none", linewidth=0.8)  # fmt: skip
    _dress(panel, ranking, len(order), planted, decoys)


def _dress(panel: Any, ranking: Ranking, count: int, planted: Collection[Key], decoys: Collection[Key]) -> None:
    panel.axhline(0, color=_INK, linewidth=0.8, zorder=1)
    panel.grid(axis="y", color=_GRID, linewidth=0.8, zorder=0)
    panel.set_axisbelow(True)
    panel.set_title(ranking.label, loc="left", size=11.5, weight="bold", color=_INK, pad=9)
    panel.set_xlabel(f"{count} rows, by rank", color=_INK)
    panel.set_xlim(-count * 0.03, count * 1.03)
    panel.set_xticks([1, *range(25, count + 1, 25)])
    low, high = min(ranking.scores.values()), max(ranking.scores.values())
    panel.set_ylim(min(low, 0) - (high - low) * 0.08, max(high, 0) + (high - low) * 0.12)
    for name in ("top", "right", "bottom"):
        panel.spines[name].set_visible(False)
    panel.spines["left"].set_color(_FAINT)
    panel.tick_params(colors=_INK, length=0, labelsize=9)
    for line, (keys, colour, name) in enumerate(((planted, _PLANTED, "planted"), (decoys, _DECOY, "decoys"))):
        ranks = ", ".join(map(str, ranking.ranks(keys)))
        panel.text(0.98, 0.96 - 0.065 * line, f"{name} at {ranks}", transform=panel.transAxes, ha="right", va="top",
                   color=colour, size=9.5, weight="bold")  # fmt: skip
