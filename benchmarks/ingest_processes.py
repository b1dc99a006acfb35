"""Servers and clients of the ingest benchmarks as processes, and what the system says about them.

Every process can be given malloc's thresholds (``kept_memory``): without them glibc gives the memory of each message
back to the system and faults it in again, which at 1 MiB a message costs as much as the copy.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from ingest_client import COLLECTION, Plan, Sent, Task, run

import covector

HERE = Path(__file__).resolve().parent
_KEPT = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
_READY = "listening on "


@contextmanager
def malloc(setting: str) -> Iterator[None]:
    """Processes that are started inside keep the memory they free (``kept``), or do as glibc does (``default``)."""
    before = {name: os.environ.get(name) for name in _KEPT}
    if setting == "kept":
        os.environ.update(_KEPT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def touch_memory(size_mib: int) -> None:
    """Writes to so much memory and gives it back. In a virtual machine whose host takes free memory, a page that is
    used for the first time costs ten times what writing it does; before each measurement, for every side, this makes
    the pages that it will need the guest's own."""
    pages = np.empty(size_mib << 20, dtype=np.uint8)
    pages[:: mmap.PAGESIZE] = 1


def other_malloc(setting: str) -> str:
    return "default" if setting == "kept" else "kept"


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process used from its start to its end. ``written_bytes``: given to the disk, as the kernel counts."""

    written_bytes: int
    cpu_s: float


class ServerProcess:
    """A process that says "listening on ADDRESS". ``stop`` ends it with SIGTERM and returns its ``Usage``."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith(_READY):
            self._process.kill()
            self._process.wait()
            raise RuntimeError(f"{' '.join(command)} did not start")
        self.address = line.removeprefix(_READY).strip()
        self.pid = self._process.pid
        self._usage: Usage | None = None

    def cpu_s(self) -> float:
        """CPU seconds so far, of all threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> Usage:
        """Gracefully; a second time does nothing."""
        if self._usage is None:
            self._process.send_signal(signal.SIGTERM)
            _, status, used = os.wait4(self.pid, 0)
            self._process.returncode = os.waitstatus_to_exitcode(status)
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._usage = Usage(used.ru_oublock * 512, used.ru_utime + used.ru_stime)
        return self._usage

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def bare_server(style: str) -> ServerProcess:
    return ServerProcess([str(HERE / "bare_streams.py"), "--style", style])


def acknowledging_server(style: str) -> ServerProcess:
    return ServerProcess([str(HERE / "acknowledging_server.py"), "--style", style])


def covector_server(data: Path, *, dim: int) -> ServerProcess:
    """A covector server; the benchmark's collection is there."""
    server = ServerProcess(["-m", "covector_server", "--data", str(data), "--listen", "127.0.0.1:0"])
    with covector.connect(server.address) as client:
        client.create_collection(COLLECTION, covector.Space(dim=dim), exist_ok=True)
    return server


@contextmanager
def fresh_directory(parent: Path) -> Iterator[Path]:
    """A directory for one store, removed with all that is in it."""
    directory = Path(tempfile.mkdtemp(prefix="covector-ingest-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def allocated_bytes(directory: Path) -> int:
    """What the files of a directory occupy on the disk; holes do not count."""
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


class Client:
    """A client process. ``order`` starts a task and returns when it is ready, ``go`` lets it run, ``result`` waits."""

    def __init__(self, plan: Plan | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=run, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._preparing = plan is not None
        if plan is not None:
            self._pipe.send(plan)

    def prepared(self) -> None:
        """Waits until the batches of the plan are made."""
        if self._preparing:
            self._pipe.recv()
            self._preparing = False

    def order(self, task: Task) -> None:
        self.prepared()
        self._pipe.send(task)
        self._pipe.recv()

    def go(self) -> None:
        self._pipe.send("go")

    def result(self) -> Sent:
        sent: Any = self._pipe.recv()
        assert isinstance(sent, Sent)
        return sent

    def close(self) -> None:
        """Ends the process; one that is in the middle of something gets ten seconds."""
        with suppress(BrokenPipeError):
            self._pipe.send(None)
        self._process.join(timeout=10.0)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


@contextmanager
def clients(plans: Sequence[Plan | None]) -> Iterator[list[Client]]:
    """Client processes, one a plan; they prepare at the same time."""
    with ExitStack() as opened:
        made = [Client(plan) for plan in plans]
        for client in made:
            opened.callback(client.close)
        yield made


def together(senders: Sequence[Client], tasks: Sequence[Task]) -> Sent:
    """All at once: from the first that begins to the last that ends."""
    for client, task in zip(senders, tasks, strict=True):
        client.order(task)
    for client in senders:
        client.go()
    results = [client.result() for client in senders]
    return Sent(
        begin_s=min(sent.begin_s for sent in results),
        end_s=max(sent.end_s for sent in results),
        row_count=sum(sent.row_count for sent in results),
        size_bytes=sum(sent.size_bytes for sent in results),
        latencies_s=[latency for sent in results for latency in sent.latencies_s],
    )


@dataclass(slots=True)
class MemoryWatch:
    """The peak of a process's anonymous memory, looked at every 50 ms inside the ``with`` block."""

    pid: int
    peak_bytes: int = 0
    _done: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        assert self._thread is not None
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, anonymous_bytes(self.pid))
            if self._done.wait(0.05):
                return


def anonymous_bytes(pid: int) -> int:
    """Resident anonymous memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("no RssAnon in /proc/PID/status; Linux 4.5 or newer is needed")
