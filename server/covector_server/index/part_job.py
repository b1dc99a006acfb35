"""Builds the structure of a part in a process of its own: ``python -m covector_server.index.part_job`` is that process.

The libraries allocate several times the rows, cannot be stopped, and end the process where something is wrong: Annoy
writes to a mapped file, which on a full disk is SIGBUS, and ScaNN aborts where it meets what it does not expect. In a
process of its own, a build gives its memory back, is ended at once, and takes nobody along.

The rows are read from the codes in the draft's directory. The job comes as a line of JSON on standard input, which
stays open: where it ends, so did whoever asked, and the process follows.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from covector.errors import Unavailable
from covector_server.index.annoy_parts import AnnoyLibrary
from covector_server.index.coded import members, vectors_of
from covector_server.index.contract import Check
from covector_server.index.parts import Library
from covector_server.index.scann_parts import ScannLibrary

PIECE_ROWS = 1 << 14
LOOK_S = 0.05  # between two questions whether to go on
FACTS, TOLD = "facts.json", "told"
TOLD_LETTERS = 400  # of what the process said last, in an error
OWN_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PartJob:
    """A structure of the members among positions [start, stop) of the codes in ``directory``, along the first ``width``
    of ``rank`` coordinates."""

    kind: str
    directory: str
    rank: int
    width: int
    start: int
    stop: int
    trees: int


def library_of(kind: str) -> Library:
    """The library of a kind."""
    libraries: dict[str, Library] = {library.kind: library for library in (ScannLibrary(), AnnoyLibrary())}
    return libraries[kind]


@contextmanager
def built(job: PartJob, check: Check) -> Iterator[tuple[dict[str, Path], dict[str, Any]]]:
    """The files of a structure by name, to be read while the block runs, and its facts. Raises Unavailable if the
    process fails, and what ``check`` raises."""
    with tempfile.TemporaryDirectory(prefix="building-", dir=job.directory) as place:
        target = Path(place)
        _run(job, target, check)
        facts = json.loads((target / FACTS).read_text(encoding="utf-8"))
        files = {path.name: path for path in sorted(target.iterdir()) if path.name not in {FACTS, TOLD}}
        yield files, facts


def _run(job: PartJob, target: Path, check: Check) -> None:
    command = [sys.executable, "-P", "-m", "covector_server.index.part_job", str(target)]
    environment = {**os.environ, **OWN_THREADS, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with (
        (target / TOLD).open("wb") as told,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=told, stderr=told, env=environment) as process,
    ):
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
            process.stdin.flush()
            while _is_running(process):
                check()
        except BrokenPipeError:
            process.wait()  # it ended before it read what to do
        finally:
            process.kill()
    if process.returncode:
        raise Unavailable(f"the {job.kind} index could not be built: its process {_ending(process.returncode, target)}")


def _is_running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(LOOK_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _ending(status: int, target: Path) -> str:
    said = (target / TOLD).read_text(encoding="utf-8", errors="replace").strip()[-TOLD_LETTERS:]
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"failed with status {status}"
    return f"{how}: {said}" if said else how


# In the process


def main(target: Path) -> None:
    """Reads the job, writes its files."""
    job = PartJob(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_input, daemon=True).start()
    directory = Path(job.directory)
    deviations = np.fromfile(directory / "deviations", "<f4")[: job.width]
    factors = np.memmap(directory / "factors", "<f4", mode="r")[job.start : job.stop]
    codes = np.memmap(directory / "codes", np.int8, mode="r").reshape(-1, job.rank)[job.start : job.stop]
    placed = members(factors)
    pieces = (
        vectors_of(codes, factors, deviations, placed[first : first + PIECE_ROWS])
        for first in range(0, len(placed), PIECE_ROWS)
    )
    facts = library_of(job.kind).build(pieces, (len(placed), job.width), job.trees, target)
    (target / FACTS).write_text(json.dumps(facts), encoding="utf-8")


def _end_with_input() -> None:
    while os.read(0, 1):  # past Python's own buffer, whose lock would be held when the process ends by itself
        pass
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
