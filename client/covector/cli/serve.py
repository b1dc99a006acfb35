"""``covector serve``: hands over to the server, which is a package of its own."""

from __future__ import annotations

import os
import sys

from covector.cli.options import require


def main(arguments: list[str]) -> int:
    """Replaces this process by the server; the arguments, ``--help`` included, are the server's."""
    require(["covector_server", "lmdb", "zarr"], "server", "covector serve")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "covector_server", *arguments])
