"""``covector compact COLLECTION --data DIR``: hands over to the server's package, which works on the files."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from covector.cli.options import require


def compact_files(collection: str, data: Path, *, as_json: bool = False) -> int:
    """Replaces this process by one that compacts a collection of a store that no server has open."""
    require(["covector_server", "lmdb", "zarr"], "server", "covector compact --data")
    arguments = [collection, "--data", str(data), *(["--json"] if as_json else [])]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "covector_server.jobs.compact_offline", *arguments])
