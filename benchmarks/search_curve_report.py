"""The curves of latency against rows: exponents, a table, a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ingest_report import machine

NAME = "search_curve"
ABOVE_FIXED = 4  # times what a query costs where rows hardly count: the latencies that an exponent is fitted to
COLOURS = {"exact": "#3b7dd8", "planned": "#d1495b", "read": "#8a8f98"}


@dataclass(frozen=True, slots=True)
class Size:
    """A size of a store. Seconds: medians over rounds; ``exact_s`` and ``planned_s`` of the p50 over gRPC, ``read_s``
    of reading the rows' bytes from memory. ``by_index``: the planner chose it. ``recall``: of the proponents at k = 10,
    planned against exact; ``index_recall``: as the build measured it. ``index_share``: of the rows' bytes."""

    dim: int
    row_count: int
    read_s: float
    exact_s: float
    planned_s: float
    by_index: bool
    reason: str
    recall: float
    index_recall: float
    index_parameters: dict[str, Any]
    index_share: float
    ingest_s: float
    build_s: float
    server_anonymous_bytes: int


@dataclass(frozen=True, slots=True)
class Exponent:
    """b of log latency = a + b log rows, by least squares over ``row_counts``; None for fewer than two of them."""

    value: float | None
    row_counts: tuple[int, ...]

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        return f"{self.value:.2f} ({said_count(self.row_counts[0])} to {said_count(self.row_counts[-1])})"


@dataclass(frozen=True, slots=True)
class Curve:
    """The sizes of a dim, smallest first. ``fixed_s``: the latency of a query that finds next to no rows."""

    dim: int
    rounds: int
    queries: int
    fixed_s: float
    sizes: tuple[Size, ...]

    def exponents(self) -> dict[str, Exponent]:
        """Of exact search, of the index where it was chosen, and of the index over every such size."""
        by_index = [size for size in self.sizes if size.by_index]
        exact = [(size.row_count, size.exact_s) for size in self.sizes]
        planned = [(size.row_count, size.planned_s) for size in by_index]
        least_s = by_index[0].planned_s if by_index else 0.0
        return {
            "exact": fitted(exact, ABOVE_FIXED * self.fixed_s),
            "index": fitted(planned, ABOVE_FIXED * least_s),
            "index, every size": fitted(planned, 0.0),
        }


def fitted(points: Sequence[tuple[int, float]], least_s: float) -> Exponent:
    """The exponent of (rows, seconds), over those that take ``least_s`` or longer."""
    above = [(row_count, seconds) for row_count, seconds in points if seconds >= least_s]
    counts = tuple(row_count for row_count, _ in above)
    if len(above) < 2:
        return Exponent(None, counts)
    return Exponent(float(np.polyfit(np.log(counts), [math.log(seconds) for _, seconds in above], 1)[0]), counts)


def line(size: Size) -> str:
    """A size for the terminal."""
    how = "index" if size.by_index else "exact"
    return (
        f"{size.dim} dims, {size.row_count:,} rows: exact {1e3 * size.exact_s:.2f} ms, planned ({how}) "
        f"{1e3 * size.planned_s:.2f} ms, reading {1e3 * size.read_s:.2f} ms; recall@10 {size.recall:.3f}; "
        f"stored in {size.ingest_s:.0f} s, indexed in {size.build_s:.1f} s"
    )


def said_count(count: int) -> str:
    """3e6 for 3,000,000."""
    power = len(str(count)) - 1
    return f"{count / 10**power:g}e{power}"


def write(directory: Path, curve: Curve) -> None:
    """Puts the curve into search_curve.{json,md,png}; one of the same dim that stands there is replaced."""
    path = directory / f"{NAME}.json"
    known = {entry["dim"]: entry for entry in json.loads(path.read_text())["curves"]} if path.exists() else {}
    known[curve.dim] = asdict(curve) | {"machine": machine()}
    entries = [known[dim] for dim in sorted(known)]
    curves = [_read(entry) for entry in entries]
    for entry, one in zip(entries, curves, strict=True):
        entry["exponents"] = {name: asdict(exponent) for name, exponent in one.exponents().items()}
    path.write_text(json.dumps({"curves": entries}, indent=1) + "\n")
    (directory / f"{NAME}.md").write_text("\n".join(_text(curves)) + "\n")
    plot(curves, directory / f"{NAME}.png")


def _read(entry: dict[str, Any]) -> Curve:
    fields = {name: entry[name] for name in Curve.__slots__}
    return Curve(**fields | {"sizes": tuple(Size(**size) for size in entry["sizes"])})


def _text(curves: Sequence[Curve]) -> Iterator[str]:
    yield _HEADER
    yield "| dims | no rows, ms | exponent, exact | index | index, every size |"
    yield "|---|---|---|---|---|"
    for curve in curves:
        cells = [str(curve.dim), f"{1e3 * curve.fixed_s:.2f}", *map(str, curve.exponents().values())]
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield "| dims | rows | reading, ms | exact, ms | / reading | planned, ms | by | / exact | recall@10 | rank | disk |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for size in (size for curve in curves for size in curve.sizes):
        yield _row(size)


def _row(size: Size) -> str:
    cells = [
        str(size.dim),
        said_count(size.row_count),
        f"{1e3 * size.read_s:.2f}",
        f"{1e3 * size.exact_s:.2f}",
        f"{size.exact_s / size.read_s:.2f}",
        f"{1e3 * size.planned_s:.2f}",
        "index" if size.by_index else "exact",
        f"{size.planned_s / size.exact_s:.2f}",
        f"{size.recall:.3f}",
        str(size.index_parameters["rank"]),
        f"{size.index_share:.1%}",
    ]
    return f"| {' | '.join(cells)} |"


def plot(curves: Sequence[Curve], path: Path) -> None:
    """A panel a dim."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, len(curves), figsize=(3.6 * len(curves) + 0.6, 3.8), sharey=True, squeeze=False, layout="constrained"
    )
    for curve, axes in zip(curves, panels[0], strict=True):
        _panel(curve, axes)
    panels[0][0].set_ylabel("p50 over gRPC, ms")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(curve: Curve, axes: Any) -> None:
    counts, exponents = [size.row_count for size in curve.sizes], curve.exponents()
    for name, label in (
        ("read", "reading the rows from memory"),
        ("exact", _labelled("exact", exponents["exact"])),
        ("planned", _labelled("as planned, with an index", exponents["index"])),
    ):
        values = [1e3 * getattr(size, f"{name}_s") for size in curve.sizes]
        style = {"color": COLOURS[name], "linewidth": 1 if name == "read" else 1.6, "label": label}
        axes.loglog(counts, values, ":" if name == "read" else "-", **style)
    for name in ("exact", "planned"):
        chosen = [size for size in curve.sizes if name == "exact" or size.by_index]
        values = [1e3 * getattr(size, f"{name}_s") for size in chosen]
        axes.plot([size.row_count for size in chosen], values, "o", color=COLOURS[name], markersize=4)
    axes.axhline(1e3 * curve.fixed_s, color="black", linewidth=0.6, linestyle="--", label="a query without rows")
    axes.set_title(f"{curve.dim} dims", fontsize=10)
    axes.set_xlabel("rows", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", fontsize=7, frameon=False)


def _labelled(name: str, exponent: Exponent) -> str:
    return name if exponent.value is None else f"{name}: rows^{exponent.value:.2f}"


_HEADER = f"""# Latency of a query against rows

Written by benchmarks/search_curve.py, which says how each number is measured. *Planned*: what a user sees who has a
`subspace` index (recall 0.99 was asked for) and forces nothing; *by*: what the planner chose. *Recall@10*: that of the
planned answers, to queries that are not stored. *Exponent*: b of log latency = a + b log rows, over the sizes in
brackets: those where what a query costs without rows is a quarter of the latency or less. For the index, the smallest
size where it was chosen says what it costs without rows; where fewer than two take four times that, there is no
exponent yet, and the last column has that of every size where it was chosen. The machine of each curve is in
search_curve.json.

![latency against rows]({NAME}.png)
"""
