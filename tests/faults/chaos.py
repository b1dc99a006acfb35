"""kill -9, over and over: ``python -m tests.faults.chaos --kills 1000 --seed 0``, or ``make chaos``.

Three clients write to one store (new rows, rows that others send too, replacements, rows without gradients, publishing,
and deletes, compaction and snapshots where the client has them) while their server is killed and started again. Fault
model: only processes end, at any instruction; what the kernel has, it keeps. A kill comes

- at a random moment, from outside;
- at a named step of a protocol (``Disk.step``), from inside: the steps are those that earlier lives have reached;
- while the server starts, so that recovery itself is cut off;
- for a client, whose next life sends again what was not acknowledged.

After each start a sample of the acknowledged rows is read back; every ``epoch_kills`` kills the clients are stopped and
every row of every collection is judged, through the server and, at the end, from the files too (by this store and by
zarr). The draws follow from the seed; the moments are the machine's, so a run again is another run of the same kind.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from tests.faults.journal import Expected, History
from tests.faults.judging import ServerReader, judge_collection, judge_puts, judge_rows, judge_store
from tests.faults.nursery import Life, Nursery

import covector
from covector.errors import CovectorError
from covector_server.storage.store import Store

CLIENTS = 3
START_S = 60.0  # a server that does not listen after this has not opened its store
STEP_S = 3.0  # how long a named step is waited for
STOP_S = 90.0  # a client that does not end after this hangs
SAMPLE_ROWS = 300
SNAPSHOTS = 3  # that are restored after an epoch


class Failed(AssertionError):
    """What was promised did not hold. The message says what, and how to run it again."""


@dataclass(slots=True)
class Tally:
    """What a run did."""

    kills: Counter[str] = field(default_factory=Counter)
    client_kills: int = 0
    judged_rows: int = 0
    acknowledged_rows: int = 0
    snapshots: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.kills.items()))
        return (
            f"{self.kills.total()} kills of the server ({kinds}) and {self.client_kills} of clients in "
            f"{self.seconds:.0f} s; {self.acknowledged_rows} rows acknowledged, {self.judged_rows} read back, "
            f"{self.snapshots} snapshots restored: 0 lost, "
            "0 duplicated, 0 half, 0 stores that did not open, 0 hangs"
        )


class Chaos:
    """One run below ``directory``, which is left as it was when something fails. ``disk``: another disk (see
    ``testing.killable``), for the control; no named steps then."""

    def __init__(self, directory: Path, seed: int, *, epoch_kills: int = 50, disk: str = "") -> None:
        self.tally = Tally()
        self._seed, self._epoch_kills = seed, epoch_kills
        self._rng = np.random.default_rng(seed)
        self._directory, self._disk = directory, disk
        self._sockets = tempfile.TemporaryDirectory(prefix="chaos-")  # a short path: those of sockets end at 107 bytes
        self._address = f"unix:{self._sockets.name}/socket"
        self._steps = directory / "steps"
        self._servers = Nursery("covector_server.testing.killable:main", directory / "server.log")
        self._forks = Nursery("tests.faults.chaos_client:main", directory / "clients.log")
        self._epoch = 0
        self._server: Life | None = None

    def run(self, kills: int) -> Tally:
        """So many kills. Raises Failed."""
        began_s = time.monotonic()
        try:
            while self.tally.kills.total() < kills:
                self._run_epoch(min(kills - self.tally.kills.total(), self._epoch_kills))
            self._judge_files()
        except (CovectorError, TimeoutError, OSError) as error:
            raise self._failed(f"{type(error).__name__}: {error}") from error
        finally:
            self._servers.close()
            self._forks.close()
            self._sockets.cleanup()
            self.tally.seconds = time.monotonic() - began_s
        return self.tally

    def _run_epoch(self, kills: int) -> None:
        """Some kills on collections of their own, which are judged whole at the end, and deleted but for the last."""
        self._epoch += 1
        self._journals = self._directory / f"journals-{self._epoch}"
        self._journals.mkdir()
        self._expected = Expected(self._journals)
        self._lives = [0] * CLIENTS
        self._clients = [self._begin_client(number) for number in range(CLIENTS)]
        target = self.tally.kills.total() + kills
        while self.tally.kills.total() < target:
            self._one_life()
        self._settle()

    def _begin_client(self, number: int) -> Life:
        self._lives[number] += 1
        return self._forks.begin(
            [
                *("--to", self._address, "--journal", str(self._journals / f"{number}.journal")),
                *("--name", str(number), "--life", str(self._lives[number])),
                *("--wishes", str(self._directory / "wish")),
                *("--seed", str(self._seed * 1000 + self._epoch), "--collection", f"epoch{self._epoch}-"),
            ]
        )

    def _begin_server(self, kill_at: str = "") -> Life:
        self._server = self._servers.begin(
            [
                *(("--disk", self._disk) if self._disk else ("--kill-at", kill_at, "--steps-seen", str(self._steps))),
                *("--row-file-kib", "256"),
                *("--", "--data", str(self._directory / "store"), "--listen", self._address),
            ]
        )
        return self._server

    def _one_life(self) -> None:
        draw = self._rng.random()
        steps = sorted(set(self._steps.read_text().split())) if self._steps.exists() else []
        if draw < 0.1:
            server = self._begin_server()
            server.wait(float(self._rng.uniform(0.0, 0.25)))
            self._end(server, "while starting")
        elif draw < 0.55 or not steps:
            server = self._begin_server()
            self._await_listening(server)
            self._judge_sample()
            self._maybe_kill_a_client()
            server.wait(float(self._rng.uniform(0.0, 0.4)))
            self._end(server, "at random")
        else:
            self._kill_at(steps[int(self._rng.integers(len(steps)))])

    def _kill_at(self, step: str) -> None:
        count = int(self._rng.integers(1, 25 if step.startswith("commit.") else 3))
        (self._directory / "wish").write_text(step)
        server = self._begin_server(f"{step}:{count}")
        listens = self._await_listening(server, step)
        came = not listens or server.wait(STEP_S) is not None
        self._end(server, step if came else "at random")
        (self._directory / "wish").write_text("")

    def _await_listening(self, server: Life, kill_at: str = "") -> bool:
        """Whether the server listens, rather than dies at its step. Raises Failed if it does neither."""
        try:
            said = server.said.get(timeout=START_S)
        except Exception as error:
            raise self._failed(f"the store did not open in {START_S:g} s") from error
        if said.startswith("listening on"):
            return True
        status = server.wait()
        if status == -signal.SIGKILL and kill_at:
            return False
        raise self._failed(f"the store did not open: status {status}")

    def _end(self, server: Life, kind: str) -> None:
        server.kill()
        if server.wait() != -signal.SIGKILL:
            raise self._failed(f"the server ended by itself, with status {server.wait()}")
        self.tally.kills[kind] += 1

    def _maybe_kill_a_client(self) -> None:
        if self._rng.random() < 0.3:
            number = int(self._rng.integers(CLIENTS))
            self._clients[number].kill()
            self.tally.client_kills += 1
            self._clients[number] = self._begin_client(number)
        for number, client in enumerate(self._clients):
            if client.is_gone():
                raise self._failed(f"client {number} gave up with status {client.wait()}")

    def _judge_sample(self) -> None:
        """Reads back some of what was acknowledged since the last time, while the clients go on."""
        self._expected.update()
        chosen: dict[tuple[str, str], dict[covector.types.Key, History]] = {}
        fresh, self._expected.newly_acknowledged = self._expected.newly_acknowledged, []
        for operation in fresh[-20:]:
            rows = self._expected.collections[operation.collection].gradients
            if operation.is_lasting:
                for key in operation.keys:
                    chosen.setdefault((operation.collection, operation.checkpoint), {})[key] = rows[
                        operation.checkpoint, key
                    ]
        if not chosen:
            return
        with covector.connect(self._address) as client:
            for (name, checkpoint), rows_of in chosen.items():
                sample = dict(list(rows_of.items())[:SAMPLE_ROWS])
                self._check(judge_rows(f"{name}/{checkpoint}", sample, ServerReader(client.collection(name))))
                self.tally.judged_rows += len(sample)

    def _settle(self) -> None:
        """Lets the clients end, and judges every row."""
        server = self._begin_server()
        self._await_listening(server)
        for life in self._clients:
            life.signal(signal.SIGTERM)
        for number, life in enumerate(self._clients):
            if (status := life.wait(STOP_S)) != 0:
                raise self._failed(f"client {number} " + ("hangs" if status is None else f"ended with status {status}"))
        self._expected.update()
        self.tally.acknowledged_rows += self._expected.acknowledged_row_count
        with covector.connect(self._address) as client:
            for name, rows in self._expected.collections.items():
                self._check(judge_collection(name, rows, ServerReader(client.collection(name))))
                self.tally.judged_rows += len(rows.gradients)
            self._check(self._strangers(client))
            self._judge_snapshots(client)
            if self._epoch > 1:
                for number in range(2):
                    client.delete_collection(f"epoch{self._epoch - 1}-{number}")
        server.signal(signal.SIGTERM)
        if (status := server.wait()) != 0:
            raise self._failed(f"the server {'hangs at its end' if status is None else f'ended with status {status}'}")

    def _strangers(self, client: covector.Client) -> list[str]:
        expected = {f"epoch{epoch}-{number}" for epoch in (self._epoch - 1, self._epoch) if epoch for number in (0, 1)}
        found = {collection.name for collection in client.collections()}
        return [] if found == expected else [f"collections {sorted(found)}, not {sorted(expected)}"]

    def _judge_snapshots(self, client: Any) -> None:
        """Restores some of the epoch's snapshots, and deletes them all. What a client had seen acknowledged before it
        asked for one is in it."""
        if not self._expected.snapshots or importlib.util.find_spec("covector_server.storage.restore") is None:
            return
        restore: Any = importlib.import_module("covector_server.storage.restore").restore
        made = {snapshot.name for snapshot in client.snapshots()}
        if lost := self._expected.acknowledged_snapshots - made:
            raise self._failed(f"LOST snapshots {sorted(lost)}")
        for name in sorted(made & set(self._expected.snapshots))[:SNAPSHOTS]:
            target = self._directory / "restored"
            restore(self._directory / "store" / "snapshots" / name, target, lambda *_: None)
            store = Store(target)
            self._check([f"snapshot {name}: {found}" for found in judge_puts(self._expected.snapshots[name], store)])
            store.close()
            shutil.rmtree(target)
            self.tally.snapshots += 1
        for name in made:
            client.delete_snapshot(name)

    def _judge_files(self) -> None:
        """The files of the last epoch, after a graceful end: by the store, and by zarr."""
        store = Store(self._directory / "store")
        try:
            self._check(judge_store(self._expected, store))
            directories = {
                checkpoint.directory: checkpoint.counters.row_count
                for name in self._expected.collections
                for checkpoint in store.collection(name).checkpoints.values()
            }
        finally:
            store.close()
        for directory, position_count in directories.items():
            for name in ("gradients", "scales", "row_ids", "trak_q"):
                rows = np.asarray(zarr.open_array(directory / name, mode="r")[...])  # checks every chunk's checksum
                if len(rows) != position_count:
                    self._check([f"zarr reads {len(rows)} of {position_count} rows of {directory / name}"])

    def _check(self, findings: Sequence[str]) -> None:
        if findings:
            raise self._failed("\n  ".join(findings))

    def _failed(self, what: str) -> Failed:
        said = [
            line for name in ("server.log", "clients.log") for line in (self._directory / name).read_text().splitlines()
        ]
        return Failed(
            f"seed {self._seed}, kill {self.tally.kills.total()}: {what}\n"
            f"the store and the journals are in {self._directory}; the logs end with:\n  "
            + "\n  ".join(said[-15:])
            + "\n"
            f"run it again: python -m tests.faults.chaos --seed {self._seed} --kills {self.tally.kills.total() + 10}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="chaos", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=1000, help="of the server (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epoch-kills", type=int, default=50, help="kills before every row is judged (default 50)")
    parser.add_argument(
        "--directory", type=Path, help="where to work (default: a temporary one, removed if all is well)"
    )
    given = parser.parse_args(arguments)
    directory = given.directory or Path(tempfile.mkdtemp(prefix="covector-chaos-"))
    directory.mkdir(parents=True, exist_ok=True)
    try:
        tally = Chaos(directory, given.seed, epoch_kills=given.epoch_kills).run(given.kills)
    except Failed as error:
        print(f"chaos: FAILED: {error}", file=sys.stderr)
        return 1
    print(f"chaos: seed {given.seed}: {tally}")
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
