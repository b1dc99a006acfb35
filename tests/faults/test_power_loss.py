"""The power fails, a hundred times: whatever un-synced pages and names are forgotten, what was acknowledged is there.

A server and three clients run under ``record_io.c``, which records every write, sync and change of a name below a
directory, LMDB's and the clients' journals among them. Then the record is cut at a hundred places, and at each
``power_loss`` writes down what may be left on the disk (its fault model stands there), a store is opened on it, takes
new rows, and is judged against the journals as they were at the cut. Disks that break a promise are the controls: the
same judge must find them out.
"""

import json
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.faults import power_loss
from tests.faults.nursery import Nursery
from tests.faults.power_loss import Machine, Record, read_log

SEEDS = 100
CONTROL_SEEDS = 50
ENOUGH = 5  # findings of a control
CLIENTS = 3
LIVES = ((10, signal.SIGTERM), (8, signal.SIGKILL))  # rounds of each client in a life of the server, and how it ends
CONTROLS = ("UnsyncedDisk", "NamelessDisk", "LateDisk", "UnsyncedCatalogDisk")


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorder, compiled."""
    library = tmp_path_factory.mktemp("shim") / "record_io.so"
    source = Path(__file__).with_name("record_io.c")
    command = [
        "gcc",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-shared",
        "-fPIC",
        "-o",
        library,
        source,
        "-ldl",
        "-lpthread",
    ]
    subprocess.run([str(part) for part in command], check=True)
    return library


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory in memory where there is one: the syncs of the stores that are opened cost nothing there."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="power-", dir=memory if memory.is_dir() else None) as made:
        yield Path(made)


@pytest.mark.timeout(300)
def test_nothing_acknowledged_is_lost_in_a_hundred_power_losses(shim: Path, scratch: Path) -> None:
    recorded = record(shim, scratch, disk="")
    check_record(recorded)
    findings, judged_count, acknowledged = judge_failures(recorded, scratch, range(SEEDS))
    assert judged_count == SEEDS
    assert acknowledged > 100, "the workload is too small to prove anything"
    assert not findings, report(findings)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("disk", CONTROLS)
def test_a_promise_that_is_broken_is_found_out(shim: Path, scratch: Path, disk: str) -> None:
    recorded = record(shim, scratch, disk=f"tests.faults.wrong_disks:{disk}")
    findings, judged_count, _ = judge_failures(recorded, scratch, range(CONTROL_SEEDS), enough=ENOUGH)
    print(f"{disk}: {len(findings)} of {judged_count} power losses were found to lose rows or the store")
    assert findings


def check_record(recorded: Path) -> None:
    """Nothing was written in a way that the recorder does not see: by the record, the files are what they are."""
    machine = Machine(recorded / "root", ["journals"])
    for made in read_log(recorded / "log"):
        machine.take(made)
    found = {path: path.read_bytes() for path in (recorded / "root").rglob("*") if path.is_file()}
    assert len(found) > 100
    assert [path for path, data in found.items() if not is_lock(path.name) and machine.file(path) != data] == []


def is_lock(name: str) -> bool:
    """Whether a file is LMDB's table of readers: it is written through a mapping, and made anew by the next opener."""
    return name.endswith("-lock")


def report(findings: dict[int, list[str]]) -> str:
    told = [f"seed {seed}: " + "\n  ".join(found) for seed, found in findings.items()]
    return f"{len(findings)} power losses lost something; SEEDS holds them all\n" + "\n".join(told)


def record(shim: Path, scratch: Path, disk: str) -> Path:
    """Runs the workload and returns the directory with ``log`` and, as it stands at the end, ``root``."""
    directory = Path(tempfile.mkdtemp(dir=scratch))
    root = directory / "root"
    (root / "journals").mkdir(parents=True)
    recording = {"LD_PRELOAD": str(shim), "RECORD_ROOT": str(root), "RECORD_LOG": str(directory / "log")}
    servers = Nursery("covector_server.testing.killable:main", directory / "server.log", recording)
    forks = Nursery("tests.faults.chaos_client:main", directory / "clients.log", recording)
    try:
        for life, (rounds, end) in enumerate(LIVES, 1):
            address = f"unix:{directory}/socket"
            options = ["--disk", disk] if disk else []
            serve = ["--", "--data", str(root / "store"), "--listen", address]
            server = servers.begin([*options, "--chunk-kib", "1", "--shard-kib", "8", "--row-file-kib", "16", *serve])
            assert server.said.get(timeout=60).startswith("listening"), (directory / "server.log").read_text()
            clients = [
                forks.begin(
                    [
                        *(
                            "--to",
                            address,
                            "--journal",
                            str(root / "journals" / f"{name}.journal"),
                            "--name",
                            str(name),
                        ),
                        *("--life", str(life), "--rounds", str(rounds), "--rows-max", "40"),
                    ]
                )
                for name in range(CLIENTS)
            ]
            assert [client.wait() for client in clients] == [0] * CLIENTS, (directory / "clients.log").read_text()
            server.signal(end)
            assert server.wait() is not None
    finally:
        servers.close()
        forks.close()
    return directory


def judge_failures(
    recorded: Path, scratch: Path, seeds: range, *, enough: int = SEEDS
) -> tuple[dict[int, list[str]], int, int]:
    """What is found wrong, by seed; how many failures were judged, which ends when ``enough`` lost something; and how
    many operations were acknowledged at the last of them."""
    records = list(read_log(recorded / "log"))
    (recorded / "journals").mkdir()
    machine, place = Machine(recorded / "root", ["journals"]), 0
    findings: dict[int, list[str]] = {}
    judged_count = acknowledged_count = 0
    judges = Nursery("tests.faults.after_failure:main", recorded / "judges.log")
    try:
        for cut, seed in sorted((place_of_cut(seed, records), seed) for seed in seeds):
            for made in records[place:cut]:
                machine.take(made)
            place = cut
            left = scratch / f"seed-{seed}"
            machine.fail(left, np.random.default_rng([seed, 1]), skip=is_lock)
            acknowledged_count = take_journals(machine, recorded)
            if found := judge(judges, left / "store", recorded):
                findings[seed] = found
            shutil.rmtree(left)
            judged_count += 1
            if len(findings) == enough:
                break
    finally:
        judges.close()
    return findings, judged_count, acknowledged_count


def take_journals(machine: Machine, recorded: Path) -> int:
    """Writes the journals as the clients had written them, and returns how many acknowledgements they hold."""
    count = 0
    for path in (recorded / "root" / "journals" / f"{name}.journal" for name in range(CLIENTS)):
        data = machine.file(path) if machine.has(path) else b""
        (recorded / "journals" / path.name).write_bytes(data)
        count += data.count(b"acknowledged")
    return count


def judge(judges: Nursery, data: Path, recorded: Path) -> list[str]:
    """The findings of a process that opens what is left."""
    findings = recorded / "findings"
    judging = judges.begin([str(data), str(recorded / "journals"), str(findings)])
    status = judging.wait(120)
    if status is None:
        judging.kill()
        return ["whoever opens the store hangs"]
    if status != 0:
        return [f"whoever opens the store ends with status {status}"]
    return list(json.loads(findings.read_text()))


def place_of_cut(seed: int, records: list[Record]) -> int:
    """Half of the cuts fall anywhere, half right after a sync or the note of an acknowledgement."""
    rng = np.random.default_rng([seed, 0])
    if rng.random() < 0.5:
        return int(rng.integers(len(records))) + 1
    telling = [
        place
        for place, made in enumerate(records, 1)
        if made.operation == power_loss.SYNC_END or made.data.startswith(b'{"acknowledged')
    ]
    return telling[int(rng.integers(len(telling)))]
