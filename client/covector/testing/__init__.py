"""Real servers for tests and trials: a process of its own on 127.0.0.1, a free port, stopped by process id.

Needs the extra ``server``; nothing of it is imported here.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from covector.errors import Unavailable

__all__ = ["ServerProcess"]

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
_READY = "listening on "


class ServerProcess:
    """A server on ``data``, from the ``with`` line to the end of its block.

    ``address`` is where it listens. ``kill`` ends it as a crash would (SIGKILL), ``stop`` gracefully (SIGTERM),
    ``start`` starts it again on the same data; with ``listen="127.0.0.1:0"`` the port is another one then.
    log: a file for what it says on stderr; None leaves it on this process's own.
    """

    def __init__(
        self,
        data: Path,
        *,
        listen: str = "127.0.0.1:0",
        arguments: Sequence[str] = (),
        log: Path | None = None,
    ) -> None:
        self.data = data
        self.listen = listen
        self.arguments = tuple(arguments)
        self.log = log
        self.address = ""
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        """Starts the server and returns its address. Raises Unavailable, with its last words, if it does not listen."""
        command = [sys.executable, "-m", "covector_server", "--data", str(self.data), "--listen", self.listen]
        with ExitStack() as opened:
            errors = None if self.log is None else opened.enter_context(self.log.open("a", encoding="utf-8"))
            process = subprocess.Popen([*command, *self.arguments], stdout=subprocess.PIPE, stderr=errors, text=True)
        self._process = process
        self.address = _address_of(process)
        if not self.address:
            status = self._end(signal.SIGKILL)
            raise Unavailable(f"the server ended with status {status} before it listened{self._last_words()}")
        return self.address

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    def wait(self) -> None:
        """Returns when the server has ended by itself."""
        if self._process is not None:
            self._process.wait()

    def kill(self) -> None:
        """SIGKILL, and waits until it is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, so that partial shards are published; returns the exit status. Killed if it takes too long, by
        which nothing acknowledged is lost."""
        return self._end(signal.SIGTERM)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            return process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
        finally:
            if process.stdout is not None:
                process.stdout.close()

    def _last_words(self) -> str:
        if self.log is None:
            return ""
        said = self.log.read_text(encoding="utf-8").splitlines()[-5:]
        return "; it said: " + "\n".join(said or ["nothing"])


def _address_of(process: subprocess.Popen[str]) -> str:
    """Where the server says it listens; empty if it ends, or takes too long, before it does."""
    impatience = threading.Timer(START_TIMEOUT_S, process.kill)
    impatience.start()
    try:
        for line in process.stdout or ():
            if line.startswith(_READY):
                return line.removeprefix(_READY).strip()
    finally:
        impatience.cancel()
    return ""
