"""``covector snapshot restore``: a new store out of a snapshot, without a server.

The work is the server package's, in a process of its own: it says as JSON lines how far it is, and here they become a
bar and an exit status.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from covector.cli.options import Parser, command_parser, require
from covector.errors import Internal, of_kind
from covector.progress import Bar


def main(arguments: list[str]) -> int:
    """Restores, says what to do next, and returns the exit status."""
    given = _parser().parse_args(arguments)
    require(["covector_server", "lmdb", "zarr"], "server", "covector snapshot restore")
    directory = Path(given.snapshot) if given.data is None else given.data / "snapshots" / given.snapshot
    bar = Bar(f"restore {directory.name} (bytes)")
    try:
        restored = _run(directory, given.to, bar)
    finally:
        bar.close()
    if given.json:
        print(json.dumps(restored, indent=2))
    else:
        print(f"{restored['row_count']:,} rows are in {given.to}; serve them: covector serve --data {given.to}")
    return 0


def _parser() -> Parser:
    parser = command_parser(
        "snapshot restore",
        "Make a new store out of a snapshot. No server is needed, and one that runs is not disturbed.\n"
        "The new store and the old never write into each other.",
        "covector snapshot restore backup-1 --data ./store --to ./restored",
    )
    parser.add_argument("snapshot", metavar="NAME", help="a snapshot of --data, or without --data the directory of one")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the store that the snapshot is of")
    parser.add_argument("--to", type=Path, required=True, metavar="NEWDIR", help="a directory that is not there yet")
    parser.add_argument("--json", action="store_true", help="print JSON, for machines")
    return parser


def _run(snapshot: Path, target: Path, bar: Bar) -> dict[str, Any]:
    """What the process says was restored. Raises the error that it ended with."""
    command = [sys.executable, "-m", "covector_server.storage.restore", str(snapshot), str(target)]
    restored: dict[str, Any] | None = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said = json.loads(line)
            if "error" in said:
                raise of_kind(said["error"]["kind"], said["error"]["message"])
            restored = said.get("restored")
            if restored is None:
                bar.show(said["done"], said["total"])
    if restored is None:
        raise Internal(f"restoring ended with status {process.returncode} before it was done; {target} was not made")
    return restored
