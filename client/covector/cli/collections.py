"""``covector collections``: what a server holds."""

from __future__ import annotations

import json
from typing import Any

from covector.cli.options import add_connection, command_parser, connected
from covector.cli.table import print_table
from covector.collection import Collection


def main(arguments: list[str]) -> int:
    """Lists the collections: name, dim, rows, checkpoints."""
    parser = command_parser(
        "collections", "List the collections of a server.", "covector collections --to 127.0.0.1:7337"
    )
    add_connection(parser)
    given = parser.parse_args(arguments)
    with connected(given) as client:
        found = [_described(collection) for collection in client.collections()]
    if given.json:
        print(json.dumps(found, indent=2))
    elif not found:
        print("no collections yet; make one: covector ingest NAME FILE.npy --checkpoint NAME --create")
    else:
        print_table(["name", "dim", "rows", "checkpoints"], [_line(entry) for entry in found])
    return 0


def _described(collection: Collection) -> dict[str, Any]:
    checkpoints = [
        {
            "name": checkpoint.name,
            "eta": checkpoint.eta,
            "rows": checkpoint.row_count,
            "zero_rows": checkpoint.zero_row_count,
            "dead_rows": checkpoint.dead_row_count,
        }
        for checkpoint in collection.checkpoints()
    ]
    return {
        "name": collection.name,
        "dim": collection.space.dim,
        "rows": collection.count(),
        "deleted_rows": collection.deleted_count(),
        "checkpoints": checkpoints,
    }


def _line(entry: dict[str, Any]) -> list[str]:
    checkpoints = ", ".join(f"{c['name']} ({c['rows']:,} rows)" for c in entry["checkpoints"])
    return [entry["name"], f"{entry['dim']:,}", f"{entry['rows']:,}", checkpoints or "none yet"]
