"""Every figure of exact search, each with its target. Ratios within one run, interleaved.

    python benchmarks/search.py                      # on an idle machine
    python benchmarks/search.py --only bandwidth     # one group of figures
    python benchmarks/search.py --quick              # small sizes, under a minute: does the script run?

Needs the project's environment (make bench-search), and for the comparison with other databases one of its own (make
bench-peers). The cold store, and the one that is larger than memory, need --dir on a real disk. Without --quick the
figures go into benchmarks/results/search.json and search.md, where they replace those of the same names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from ingest_processes import HERE, fresh_directory
from ingest_report import Figure, line, write
from search_exact import (
    Run,
    bandwidth_figures,
    client_figures,
    cold_figures,
    filter_figures,
    many_figures,
    peer_figures,
    wire_figures,
)
from search_limited import limited_figures
from search_store import CORES, make_data

GROUPS: dict[str, Callable[[Run], Iterator[Figure]]] = {
    "bandwidth": bandwidth_figures,
    "wire": wire_figures,
    "many": many_figures,
    "clients": client_figures,
    "filters": filter_figures,
    "cold": cold_figures,
    "limited": limited_figures,
    "peers": peer_figures,
}


def main() -> int:
    given = _parser().parse_args()
    if given.results is None and not given.quick:
        given.results = HERE / "results"
    size_mib = 24 if given.quick else given.mib
    with fresh_directory(given.dir) as directory:
        data = make_data(directory, size_mib, given.dim)
        run = Run(directory, data, given.peer_python, rounds=2 if given.quick else given.rounds)
        settings = {"mib": size_mib, "dim": given.dim, "rounds": run.rounds, "scan_threads": CORES}
        for name in given.only or GROUPS:
            figures = []
            for figure in GROUPS[name](run):
                print(line(figure) + (f"  [{figure.detail}]" if figure.detail else ""), flush=True)
                figures.append(figure)
            if given.results is not None:
                write(given.results, figures, settings, "search")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute; writes no results")
    parser.add_argument("--only", action="append", choices=GROUPS, metavar="NAME", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--dir", type=Path, default=Path(), help="stores are made and removed below it (default: here)")
    parser.add_argument("--mib", type=int, default=1024, help="of float16 rows (default 1024)")
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7, help="how often each side is measured (default 7)")
    parser.add_argument("--peer-python", type=Path, default=Path(".venv-bench/bin/python"), metavar="PYTHON")
    parser.add_argument("--results", type=Path, metavar="DIR", help="default: benchmarks/results, with --quick none")
    return parser


if __name__ == "__main__":
    sys.exit(main())
