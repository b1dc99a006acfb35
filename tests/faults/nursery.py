"""Processes without the cost of starting Python: one process imports everything, and forks a child a life.

A nursery is told the arguments of a life as a line of JSON, forks, and calls ``function(arguments)`` in the child. It
answers on stdout with ``born PID`` and, when the child has ended, ``gone PID STATUS`` (negative: by a signal). What a
child prints comes between. Nursery and children end with the process that made them, however that ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_SET_DEATH_SIGNAL = 1
WAIT_S = 180.0  # what a killed process is in may be a sync of a busy disk


class Life:
    """A child of a nursery."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._gone = threading.Event()
        self._status = 0

    def end(self, status: int) -> None:
        """Notes how it ended."""
        self._status = status
        self._gone.set()
        self.said.put("")

    def is_gone(self) -> bool:
        return self._gone.is_set()

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal, if it lives."""
        if not self.is_gone():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, timeout_s: float = WAIT_S) -> int | None:
        """The exit status; None if it lives still after that time."""
        return self._status if self._gone.wait(timeout_s) else None

    def kill(self) -> None:
        """SIGKILL, and waits until it is gone."""
        self.signal(signal.SIGKILL)
        if self.wait() is None:
            raise TimeoutError(f"process {self.pid} outlived SIGKILL")


class Nursery:
    """The parent of lives of ``function`` (``module:name``, which takes a list of str and returns a status)."""

    def __init__(self, function: str, log: Path, environment: Mapping[str, str] | None = None) -> None:
        root = Path(__file__).resolve().parent.parent.parent
        paths = [str(root / "client"), str(root / "server"), str(root)]
        environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "OPENBLAS_NUM_THREADS": "1",
            **(environment or {}),
        }
        with log.open("a", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.nursery", function],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                bufsize=1,
                env=environ,
                cwd=root,
            )
        self._lives: dict[int, Life] = {}
        self._born: queue.SimpleQueue[Life] = queue.SimpleQueue()
        self._newest: Life | None = None
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def begin(self, arguments: Sequence[str]) -> Life:
        """A new child."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(list(arguments)) + "\n")
        return self._born.get(timeout=WAIT_S)

    def close(self) -> None:
        """Ends the nursery, and with it its children."""
        self._process.kill()
        self._process.wait()
        self._reading.join()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            word, *rest = line.split()
            if word == "born":
                life = self._newest = self._lives[int(rest[0])] = Life(int(rest[0]))
                self._born.put(life)
            elif word == "gone":
                self._lives.pop(int(rest[0])).end(int(rest[1]))
            elif self._newest is not None:
                self._newest.said.put(line.rstrip("\n"))
        for life in self._lives.values():
            life.end(-signal.SIGKILL)


def _reap(*_: object) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        os.write(1, f"gone {pid} {os.waitstatus_to_exitcode(status)}\n".encode())


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)


def main(function: str) -> None:
    """Forks a child for each line of stdin."""
    _die_with_parent()
    module, _, name = function.partition(":")
    call = getattr(importlib.import_module(module), name)
    signal.signal(signal.SIGCHLD, _reap)
    for line in sys.stdin:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # a child is born before it is gone
        pid = os.fork()
        if pid == 0:
            _be(call, json.loads(line))
        os.write(1, f"born {pid}\n".encode())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])


def _be(call: Callable[[list[str]], int], arguments: list[str]) -> None:
    status = 99
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        _die_with_parent()
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        status = call(arguments)
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001 - said on stderr, and by the status
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1])
