"""A covector server of the demo's own, as a subprocess."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from covector.errors import Unavailable

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
_READY = "listening on "


class DemoServer:
    """A running server: its ``address``, HOST:PORT, and its process."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.address = address
        self._process = process

    def wait(self) -> None:
        """Returns when the server has ended by itself."""
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM, so that the server publishes its partial shards; then waits for its end. Killed if it takes over
        ``STOP_TIMEOUT_S``; nothing acknowledged is lost by that."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def running_server(data: Path, log: Path) -> Iterator[DemoServer]:
    """Serves the store at ``data`` on a free port of this machine until the block ends. Raises Unavailable, with what
    the server said (it goes to ``log``), if it does not come up."""
    command = [sys.executable, "-m", "covector_server", "--data", str(data), "--listen", "127.0.0.1:0"]
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        server = DemoServer(process, _address(process, log))
        yield server
    finally:
        DemoServer(process, "").stop()
        if process.stdout is not None:
            process.stdout.close()


def _address(process: subprocess.Popen[str], log: Path) -> str:
    impatience = threading.Timer(START_TIMEOUT_S, process.kill)
    impatience.start()
    try:
        for line in process.stdout or ():
            if _READY in line:
                return line.split(_READY, 1)[1].split()[0]
    finally:
        impatience.cancel()
    said = "\n".join(log.read_text(encoding="utf-8").splitlines()[-5:])
    raise Unavailable(f"the demo's server did not start; it said: {said or 'nothing'}")
