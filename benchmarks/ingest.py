"""Every figure of ingest, each with its target. Ratios within one run, interleaved; servers and clients are processes.

    python benchmarks/ingest.py                      # on an idle machine
    python benchmarks/ingest.py --only stream        # one group of figures
    python benchmarks/ingest.py --quick              # small sizes, under a minute: does the script run?

Needs the project's environment (make bench-ingest), and for the comparison with LanceDB one of its own (make
bench-peers). --dir must be on a real disk: tmpfs syncs nothing. Without --quick the figures go into
benchmarks/results/ingest.json and ingest.md, where they replace those of the same names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from acknowledging_server import STYLES
from ingest_processes import HERE, fresh_directory
from ingest_report import Figure, line, write
from ingest_size import bytes_figures, growth_figures, memory_figures, open_figures
from ingest_speed import Run, acknowledgement_figures, batching_figures, peer_figures, stream_figures

GROUPS: dict[str, Callable[[Run], Iterator[Figure]]] = {
    "stream": stream_figures,
    "lancedb": peer_figures,
    "bytes": bytes_figures,
    "batching": batching_figures,
    "acknowledgement": acknowledgement_figures,
    "memory": memory_figures,
    "open": open_figures,
    "growth": growth_figures,
}
_QUICK: dict[str, Any] = {
    "rounds": 1,
    "stream_mib": 24,
    "peer_mib": 16,
    "message_rows": 128,
    "latency_batches": 8,
    "written_mib": 16,
    "memory_mib": 48,
    "open_rows": 5_000,
    "curve_rows": (2_000, 6_000),
    "window_rows": 2_000,
    "quick": True,
}


def main() -> int:
    given = _parser().parse_args()
    if given.results is None and not given.quick:
        given.results = HERE / "results"
    with fresh_directory(given.dir) as directory:
        run = _run(given, directory)
        settings = {name: value for name, value in asdict(run).items() if name not in {"directory", "peer_python"}}
        for name in given.only or GROUPS:
            figures = []
            for figure in GROUPS[name](run):
                print(line(figure) + (f"  [{figure.detail}]" if figure.detail else ""), flush=True)
                figures.append(figure)
            if given.results is not None:
                write(given.results, figures, settings)
    return 0


def _run(given: argparse.Namespace, directory: Path) -> Run:
    run = Run(
        directory=directory,
        peer_python=given.lancedb_python,
        malloc=given.malloc,
        acknowledging_style=given.acknowledging_style,
    )
    if given.quick:
        return replace(run, **_QUICK)
    marks = tuple(rows for rows in run.curve_rows if rows < given.stored_rows)
    return replace(
        run,
        rounds=given.rounds,
        stream_mib=given.stream_mib,
        memory_mib=given.memory_mib,
        curve_rows=(*marks, given.stored_rows),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute; writes no results")
    parser.add_argument("--only", action="append", choices=GROUPS, metavar="NAME", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--dir", type=Path, default=Path(), help="stores are made and removed below it (default: here)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each side is measured (default 5)")
    parser.add_argument("--malloc", choices=("kept", "default"), default="kept", help="see ingest_processes.py")
    parser.add_argument("--acknowledging-style", choices=STYLES, default="beside")
    parser.add_argument("--stream-mib", type=int, default=768, help="sent in each round of `stream` (default 768)")
    parser.add_argument("--memory-mib", type=int, default=4096, help="sent in `memory` (default 4096)")
    parser.add_argument("--stored-rows", type=int, default=10_000_000, help="the last mark of `growth` (default 10M)")
    parser.add_argument("--lancedb-python", type=Path, default=Path(".venv-bench/bin/python"), metavar="PYTHON")
    parser.add_argument("--results", type=Path, metavar="DIR", help="default: benchmarks/results, with --quick none")
    return parser


if __name__ == "__main__":
    sys.exit(main())
