"""Where the figures of indexes go: benchmarks/results/indexes.json, and a table of them in indexes.md."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ingest_report import machine

COLUMNS = {
    "recall@10": "recall@10",
    "recall@100": "recall@100",
    "bottom-10": "bottom-10",
    "disk / rows": "disk / rows",
    "time, k = 10, / exact scan": "time / exact",
    "stages, k = 10, / exact scan": "without A q",
    "time, k = 10, / reading the rows": "time / reading",
    "MB of fp16 / CPU-second": "build, MB / CPU-s",
    "anonymous memory of the build, MB": "build memory, MB",
}
_HEADER = """# Approximate indexes

Written by benchmarks/indexes.py and index_peer.py, which say how each figure is measured: one process, one thread,
queries of rows that are not stored. *time / exact*: of a query, beside an exact scan by this version; *without A q*:
the same without the product of the query with what a scorer learnt, on both sides; *time / reading*: beside reading the
bytes of the rows from memory. Settings and machine of each are in indexes.json.

Wanted of `subspace`, `dot`, on real gradients: recall@10 and @100 .99, bottom-10 .98, at 9% of the exact scan's time on
one thread and 10% of disk, built at 150 MB a CPU-second; for a TRAK fit .99 at 10, .98 for the bottom 10, at 15% of the
time; of `scann` and `annoy` recall@10 .95.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to, and what the rows are called."""
    parser.add_argument("--results", type=Path, metavar="DIR", help="add the figures to indexes.json and .md there")
    parser.add_argument("--what", default="made rows", help="what the rows are, for the table (default: made rows)")


def report(figures: Sequence[Mapping[str, Any]], given: argparse.Namespace) -> None:
    """Prints the figures; with --results they take the place of those of the same rows, kind and scorer."""
    print(json.dumps(figures, indent=2))
    if given.results is None:
        return
    path = given.results / "indexes.json"
    known = {_name(one): one for one in json.loads(path.read_text())} if path.exists() else {}
    known |= {_name(one): one for one in ({"what": given.what, **each, "run": machine()} for each in figures)}
    path.write_text(json.dumps(list(known.values()), indent=1) + "\n")
    (given.results / "indexes.md").write_text(_HEADER + "".join(_tables(list(known.values()))))


def _name(figure: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(figure.get(name) for name in ("what", "kind", "scorer", "rows", "checkpoints"))


def _tables(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """One for each kind of rows."""
    found = []
    for what in dict.fromkeys(one["what"] for one in figures):
        here = [one for one in figures if one["what"] == what]
        found.append(f"\n## {here[0]['rows']:,} rows of {here[0]['dim']} dims: {what}\n\n")
        found.append("| kind | scorer | " + " | ".join(COLUMNS.values()) + " |\n|" + "---|" * (len(COLUMNS) + 2) + "\n")
        for one in here:
            values = " | ".join(_shown(one.get(name)) for name in COLUMNS)
            found.append(f"| {one['kind']} | {one['scorer']} | {values} |\n")
    return found


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 10 else f"{value:.3g}"
