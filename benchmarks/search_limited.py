"""A store larger than the memory that there is for it: queries against reading its files from end to end.

    python benchmarks/search_limited.py TASKS LOCAL DIM ROUNDS      # a process of search.py's

A control group (cgroups, version 1 or 2) bounds the memory of the process, the pages of files that it reads included.
Making one needs root; where there is none the figure is left out.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ingest_processes import HERE
from ingest_report import Figure, ratio
from search_exact import Local, Run
from search_store import Data, drop_from_memory, opened, read_through, shard_files

STORE_TO_MEMORY = 2  # how many times the memory for pages the store is; what is read ahead fits into it several times
PROCESS_BYTES = 200 << 20  # of the process itself
_GROUPS = ((Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max"))
NAME = f"exact, 1 query, {STORE_TO_MEMORY} times more rows than memory: rate / sequential read"


def limited_figures(run: Run) -> Iterator[Figure]:
    """Queries of a store that is never in memory whole, and plain reads of its files, in turn."""
    limit_bytes = PROCESS_BYTES + run.data.size_bytes // STORE_TO_MEMORY
    try:
        with memory_group(limit_bytes) as tasks:
            command = [sys.executable, __file__, str(tasks), str(run.data.local), str(run.data.dim), str(run.rounds)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    except OSError as error:
        yield Figure(NAME, None, at_least=0.9, detail=f"no control group for memory: {error}")
        return
    rates = json.loads(done.stdout)
    detail = ", ".join(f"{side} {statistics.median(values) / 1e9:.2f}" for side, values in rates.items())
    yield ratio(NAME, rates["query"], rates["read"], at_least=0.9, detail=f"GB/s: {detail}")


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """A control group; a process joins it by writing its number to the file. Raises OSError if none can be made."""
    parent, limit = next((group for group in _GROUPS if (group[0] / "cgroup.procs").exists()), _GROUPS[-1])
    group = parent / f"covector-{os.getpid()}"
    group.mkdir()
    try:
        (group / limit).write_text(str(limit_bytes))
        yield group / "cgroup.procs"
    finally:
        with suppress(OSError):  # a process that was killed may not be gone yet
            group.rmdir()


def main(tasks: str, local: str, dim: str, rounds: str) -> None:
    Path(tasks).write_text(str(os.getpid()))
    paths = shard_files(Path(local))
    size_bytes = sum(path.stat().st_size for path in paths)
    data = Data(Path(), Path(local), Path(), 0, int(dim))
    drop_from_memory(paths)
    rates: dict[str, list[float]] = {"query": [], "read": []}
    with opened(data) as (view, workers):
        asking = Local(Run(HERE, data, Path()), view, workers)
        asking.ask()  # every chunk is verified once
        for _ in range(int(rounds)):
            rates["read"].append(size_bytes / read_through(paths))
            rates["query"].append(size_bytes / asking.ask())
    print(json.dumps(rates))


if __name__ == "__main__":
    main(*sys.argv[1:])
