"""Real servers for tests: a process of its own on 127.0.0.1, a free port, stopped by process id.

Needs the extra ``server``; nothing of it is imported here.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from covector.errors import Unavailable

__all__ = ["ServerProcess"]

STOP_S = 30.0


class ServerProcess:
    """A server on ``data``, from the ``with`` line to the end of its block.

    ``address`` is where it listens. ``kill`` ends it as a power cut of the process would (SIGKILL), ``stop`` gracefully
    (SIGTERM), ``start`` starts it again on the same data; with ``listen="127.0.0.1:0"`` the port is another one then.
    """

    def __init__(self, data: Path, *, listen: str = "127.0.0.1:0", arguments: Sequence[str] = ()) -> None:
        self.data = data
        self.listen = listen
        self.arguments = tuple(arguments)
        self.address = ""
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        """Starts the server and returns its address. Raises Unavailable with its last words if it ends instead."""
        command = [sys.executable, "-m", "covector_server", "--data", str(self.data), "--listen", self.listen]
        process = subprocess.Popen([*command, *self.arguments], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("listening on "):
            raise Unavailable(f"the server ended with status {process.wait()} before it listened")
        self._process = process
        self.address = line.removeprefix("listening on ").strip()
        return self.address

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL, and waits until it is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        return self._end(signal.SIGTERM)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self.stop()

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            status = process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            if process.stdout is not None:
                process.stdout.close()
        return status
