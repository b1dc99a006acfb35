"""What ``covector evaluate`` found: a table on stdout, all numbers as JSON, a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from covector.attribution.comparing import Evaluation, Judged, ordered
from covector.cli.options import require
from covector.cli.table import print_table
from covector.errors import InvalidInput

_PICTURES = (".png", ".svg", ".pdf")
_INK, _BAR, _CHOSEN, _GRID = "#22252b", "#9db4cf", "#d1491b", "#e9ebef"


@dataclass(frozen=True, slots=True)
class Agreed:
    """The shares of the top and of the bottom ``k`` by unsketched gradients that a sketch of ``dim`` keeps."""

    dim: int
    scorer: str
    k: int
    top: float
    bottom: float


def print_report(judged: Evaluation | None, agreed: Sequence[Agreed]) -> None:
    """Tables for people, the best on top."""
    if judged is not None:
        interval = f"{judged.confidence:.0%} interval"
        rows = [_line(one) for one in ordered(judged)]
        print(f"LDS over {judged.subset_count} subsets and {judged.query_count} queries")
        print_table(["scorer", "LDS", interval], rows)
        if judged.chosen is not None:
            print(_chosen_sentence(judged.chosen))
        for note in judged.notes:
            print(f"note: {note}")
    if judged is not None and agreed:
        print()
    if agreed:
        print("share of the top and the bottom by unsketched gradients that a sketch keeps")
        k = agreed[0].k
        print_table(
            ["dim", "scorer", f"top {k}", f"bottom {k}"],
            [[str(one.dim), one.scorer, f"{one.top:.3f}", f"{one.bottom:.3f}"] for one in agreed],
        )


def _line(one: Judged) -> list[str]:
    return [one.name, f"{one.lds.mean:.3f}", f"{one.lds.low:.3f} to {one.lds.high:.3f}"]


def _chosen_sentence(chosen: Judged) -> str:
    assert chosen.choice is not None
    assert chosen.test is not None
    return (
        f"best by {chosen.choice.subset_count} of the subsets: {chosen.name} ({chosen.choice.mean:.3f} there); on the "
        f"other {chosen.test.subset_count}: {chosen.test.mean:.3f} ({chosen.test.low:.3f} to {chosen.test.high:.3f})"
    )


def write_json(path: Path, judged: Evaluation | None, agreed: Sequence[Agreed]) -> None:
    """Writes everything that was found."""
    found: dict[str, Any] = {"agreement": [asdict(one) for one in agreed]}
    if judged is not None:
        found |= {
            "subsets": judged.subset_count,
            "queries": judged.query_count,
            "confidence": judged.confidence,
            "scorers": [_numbers(one) for one in judged.judged],
            "chosen": None if judged.chosen is None else judged.chosen.name,
            "constant_queries": list(judged.constant_queries),
            "notes": list(judged.notes),
        }
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _numbers(one: Judged) -> dict[str, Any]:
    found = {"name": one.name, "lds": one.lds.mean, "low": one.lds.low, "high": one.lds.high}
    if one.choice is not None and one.test is not None:
        found |= {"choice": one.choice.mean, "test": one.test.mean}
        found |= {"test_low": one.test.low, "test_high": one.test.high}
    return found | {"by_query": one.lds.by_query.tolist()}


def check_plot(path: Path) -> None:
    """Raises InvalidInput, before any work, where a picture could not be drawn."""
    require(["matplotlib"], "plot", "--plot")
    if path.suffix not in _PICTURES:
        raise InvalidInput(f"--plot {path}: pictures are {', '.join(_PICTURES)} files")
    if not path.absolute().parent.is_dir():
        raise InvalidInput(f"--plot {path}: there is no directory {path.parent}")


def draw(path: Path, judged: Evaluation | None, agreed: Sequence[Agreed]) -> None:
    """Writes the tables as one picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [one for one in (judged, agreed) if one]
    line_count = len(judged.judged) if judged is not None else 0
    figure = Figure(figsize=(8.2, (0.3 * line_count + 1.4 if judged else 0) + (3.2 if agreed else 0)), dpi=140)
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    ratios = [0.3 * line_count + 1.4 if one is judged else 3.2 for one in panels]
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=ratios)[:, 0]
    for panel, what in zip(axes, panels, strict=True):
        if what is judged and judged is not None:
            _draw_lds(panel, judged)
        else:
            _draw_agreement(panel, agreed)
    figure.savefig(path)


def _draw_lds(panel: Any, judged: Evaluation) -> None:
    lines = ordered(judged)[::-1]
    colours = [_CHOSEN if one is judged.chosen else _BAR for one in lines]
    panel.barh(range(len(lines)), [one.lds.mean for one in lines], color=colours, height=0.66)
    for place, one in enumerate(lines):
        panel.plot([one.lds.low, one.lds.high], [place, place], color=_INK, linewidth=1.3, solid_capstyle="butt")
    panel.set_yticks(range(len(lines)), [one.name for one in lines], fontsize=8.5)
    panel.axvline(0, color=_INK, linewidth=0.8)
    title = f"Linear datamodelling score, {judged.subset_count} subsets, {judged.query_count} queries"
    panel.set_title(title, loc="left", fontsize=10.5, weight="bold", color=_INK)
    below = f"line: {judged.confidence:.0%} interval"
    if judged.chosen is not None and judged.chosen.test is not None:
        test = judged.chosen.test
        below += (
            f"; chosen on half of the subsets, on the other half {test.mean:.3f} ({test.low:.3f} to {test.high:.3f})"
        )
    _dress(panel, below, "x")
    panel.set_ylim(-0.6, len(lines) - 0.4)


def _draw_agreement(panel: Any, agreed: Sequence[Agreed]) -> None:
    for number, scorer in enumerate(dict.fromkeys(one.scorer for one in agreed)):
        lines = sorted((one for one in agreed if one.scorer == scorer), key=lambda one: one.dim)
        dims = [one.dim for one in lines]
        panel.plot(dims, [one.top for one in lines], "o-", color=f"C{number}", label=f"{scorer}, top")
        panel.plot(dims, [one.bottom for one in lines], "s--", color=f"C{number}", label=f"{scorer}, bottom", alpha=0.7)
    panel.set_xscale("log", base=2)
    dims = sorted({one.dim for one in agreed})
    panel.set_xticks(dims, [f"{dim:,}" for dim in dims])
    panel.set_ylim(0, 1.03)
    panel.set_title(f"Share of the unsketched top and bottom {agreed[0].k} that a sketch keeps", loc="left",
                    fontsize=10.5, weight="bold", color=_INK)  # fmt: skip
    _dress(panel, "dim of the sketch", "both")
    panel.legend(fontsize=8, frameon=False)


def _dress(panel: Any, below: str, grid: str) -> None:
    panel.set_xlabel(below, fontsize=8.5, color=_INK)
    panel.grid(axis=grid, color=_GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(colors=_INK, length=0)
