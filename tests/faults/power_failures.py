"""Records a server and its clients at work, fails the power at places drawn from seeds, and judges what is left.

    python -m tests.faults.power_failures --seeds 1000              records, and judges a thousand failures
    python -m tests.faults.power_failures --log FILE --seed 7       judges one failure of a record that was kept

A run of the workload is never the same twice, so a record in which something was lost is kept: with it, a seed says
everything. Half of the failures fall anywhere in the record, half right after a sync or an acknowledgement.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tests.faults.nursery import Nursery
from tests.faults.power_loss import SYNC_END, Machine, Record, read_log

CLIENTS = 3
LIVES = ((10, signal.SIGTERM), (8, signal.SIGKILL))  # rounds of each client in a life of the server, and how it ends
JUDGE_S = 120.0  # whoever takes longer to open a store hangs
_SIZES = ("--chunk-kib", "1", "--shard-kib", "8", "--row-file-kib", "16")  # so that all seals and rolls happen
_JOURNALS = "journals"


@dataclass(slots=True)
class Verdict:
    """What was found after the failures that were judged. findings: by seed, for those that lost something."""

    findings: dict[int, list[str]] = field(default_factory=dict)
    judged_count: int = 0
    acknowledgement_count: int = 0  # before the last failure

    def __str__(self) -> str:
        told = [f"\nseed {seed}: " + "\n  ".join(found) for seed, found in self.findings.items()]
        return f"{len(self.findings)} of {self.judged_count} power losses lost rows or the store" + "".join(told)


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """A directory in memory where there is one: the syncs of the stores that are opened cost nothing there."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="power-", dir=memory if memory.is_dir() else None) as made:
        yield Path(made)


def compile_recorder(library: Path) -> None:
    """Makes the library that is preloaded."""
    source = Path(__file__).with_name("record_io.c")
    options = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["gcc", *options, "-o", str(library), str(source), "-ldl", "-lpthread"], check=True)


def record(recorder: Path, directory: Path, disk: str = "") -> Path:
    """Runs the workload below ``directory / "root"`` and returns the log. ``disk``: see ``testing.killable``."""
    root, log = directory / "root", directory / "log"
    (root / _JOURNALS).mkdir(parents=True)
    recording = {"LD_PRELOAD": str(recorder), "RECORD_ROOT": str(root), "RECORD_LOG": str(log)}
    servers = Nursery("covector_server.testing.killable:main", directory / "server.log", recording)
    forks = Nursery("tests.faults.chaos_client:main", directory / "clients.log", recording)
    address = f"unix:{directory}/socket"
    serve = [*(("--disk", disk) if disk else ()), *_SIZES, "--", "--data", str(root / "store"), "--listen", address]
    try:
        for life, (rounds, end) in enumerate(LIVES, 1):
            server = servers.begin(serve)
            assert server.said.get(timeout=60).startswith("listening"), (directory / "server.log").read_text()
            clients = [
                forks.begin(
                    [
                        *("--to", address, "--journal", str(root / _JOURNALS / f"{name}.journal"), "--name", str(name)),
                        *("--life", str(life), "--rounds", str(rounds), "--rows-max", "40"),
                    ]
                )
                for name in range(CLIENTS)
            ]
            assert [client.wait() for client in clients] == [0] * CLIENTS, (directory / "clients.log").read_text()
            server.signal(end)
            assert server.wait() is not None, "the server does not end"
    finally:
        servers.close()
        forks.close()
    return log


def is_lock(name: str) -> bool:
    """Whether a file is LMDB's table of readers: it is written through a mapping, and made anew by the next opener."""
    return name.endswith("-lock")


def unseen_writes(log: Path, root: Path) -> list[Path]:
    """Files that are not what the record makes of them: something was written in a way that the recorder misses."""
    machine = Machine(root, [_JOURNALS])
    for made in read_log(log):
        machine.take(made)
    found = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and not is_lock(path.name)}
    assert len(found) > 100
    return [path for path, data in found.items() if machine.file(path) != data]


def judge_failures(log: Path, scratch: Path, seeds: Sequence[int], *, enough: int | None = None) -> Verdict:
    """Fails the power once for each seed. enough: so many that lost something end it."""
    records = list(read_log(log))
    root = Path(next(made.path for made in records if f"/{_JOURNALS}/" in made.path).partition(f"/{_JOURNALS}/")[0])
    machine, place, verdict = Machine(root, [_JOURNALS]), 0, Verdict()
    journals = scratch / _JOURNALS
    journals.mkdir()
    judges = Nursery("tests.faults.after_failure:main", scratch / "judges.log")
    try:
        for cut, seed in sorted((_place_of_cut(seed, records), seed) for seed in seeds):
            for made in records[place:cut]:
                machine.take(made)
            place = cut
            left = scratch / f"seed-{seed}"
            machine.fail(left, np.random.default_rng([seed, 1]), skip=is_lock)
            verdict.acknowledgement_count = _take_journals(machine, root, journals)
            if found := _judge(judges, left / "store", journals):
                verdict.findings[seed] = found
            shutil.rmtree(left)
            verdict.judged_count += 1
            if len(verdict.findings) == enough:
                break
    finally:
        judges.close()
    return verdict


def _take_journals(machine: Machine, root: Path, journals: Path) -> int:
    """Writes the journals as the clients had written them, and returns how many acknowledgements they hold."""
    count = 0
    for path in (root / _JOURNALS / f"{name}.journal" for name in range(CLIENTS)):
        data = machine.file(path) if machine.has(path) else b""
        (journals / path.name).write_bytes(data)
        count += data.count(b"acknowledged")
    return count


def _judge(judges: Nursery, data: Path, journals: Path) -> list[str]:
    """The findings of a process that opens what is left."""
    findings = data.parent / "findings"
    judging = judges.begin([str(data), str(journals), str(findings)])
    status = judging.wait(JUDGE_S)
    if status is None:
        judging.kill()
        return ["whoever opens the store hangs"]
    if status != 0:
        return [f"whoever opens the store ends with status {status}"]
    return list(json.loads(findings.read_text()))


def _place_of_cut(seed: int, records: list[Record]) -> int:
    rng = np.random.default_rng([seed, 0])
    if rng.random() < 0.5:
        return int(rng.integers(len(records))) + 1
    telling = [
        place
        for place, made in enumerate(records, 1)
        if made.operation == SYNC_END or made.data.startswith(b'{"acknowledged')
    ]
    return telling[int(rng.integers(len(telling)))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if something was lost."""
    parser = argparse.ArgumentParser(prog="power_failures", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=1000, help="how many failures (default 1000)")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--log", type=Path, help="a record that was kept")
    parser.add_argument("--keep", type=Path, default=Path("power-failure.log"), help="where to keep a bad record")
    given = parser.parse_args(arguments)
    with scratch_directory() as scratch:
        if given.log is None:
            compile_recorder(scratch / "record_io.so")
            (scratch / "run").mkdir()
        log = given.log or record(scratch / "record_io.so", scratch / "run")
        verdict = judge_failures(log, scratch, range(given.seeds) if given.seed is None else [given.seed])
        print(f"power: {verdict}")
        if verdict.findings and given.log is None:
            shutil.copy(log, given.keep)
            print(f"the record is kept: --log {given.keep} --seed {min(verdict.findings)}")
    return bool(verdict.findings)


if __name__ == "__main__":
    sys.exit(main())
