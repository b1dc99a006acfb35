"""``covector compact COLLECTION --data DIR``: hands over to the server's package, which works on the files."""

from __future__ import annotations

from pathlib import Path

from covector.cli.options import become, require


def compact_files(collection: str, data: Path, *, as_json: bool = False) -> int:
    """Replaces this process by one that compacts a collection of a store that no server has open."""
    require(["covector_server", "lmdb", "zarr"], "server", "covector compact --data")
    arguments = [collection, "--data", str(data), *(["--json"] if as_json else [])]
    become("covector_server.jobs.compact_offline", arguments)
