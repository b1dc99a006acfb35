"""``covector compact``: the bytes of deleted and replaced rows out of the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from covector.cli.compact_offline import compact_files
from covector.cli.options import add_connection, command_parser, connected
from covector.cli.table import said


def main(arguments: list[str]) -> int:
    """Compacts a collection at a server, or in files that no server has open, and waits until it has ended."""
    parser = command_parser(
        "compact",
        "Take the bytes of deleted and replaced rows out of a collection's files, while ingest and queries go on.\n"
        "Snapshots that still hold deleted rows are named.",
        "covector compact my-model --to 127.0.0.1:7337",
    )
    parser.add_argument("collection", metavar="COLLECTION")
    parser.add_argument("--data", type=Path, metavar="DIR", help="work on this directory, which no server has open")
    add_connection(parser)
    given = parser.parse_args(arguments)
    if given.data is not None:
        return compact_files(given.collection, given.data, as_json=given.json)
    with connected(given) as client:
        result = client.collection(given.collection).compact().wait(progress=True)
    print(json.dumps(result) if given.json else _sentence(given.collection, result))
    return 0


def _sentence(collection: str, result: dict[str, Any]) -> str:
    facts = ", ".join(f"{name.replace('_', ' ')} {said(value)}" for name, value in result.items())
    return f"{collection} is compacted" + (f": {facts}" if facts else "")
