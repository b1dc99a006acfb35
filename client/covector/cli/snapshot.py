"""``covector snapshot``: copies of a whole store at one moment. Each word after it is a command of its own."""

from __future__ import annotations

import argparse
import datetime as dt
import json
from collections.abc import Callable
from dataclasses import asdict

from covector.cli import restore
from covector.cli.options import Parser, add_connection, command_parser, connected
from covector.cli.table import print_table, said_bytes
from covector.types import SnapshotInfo


def main(arguments: list[str]) -> int:
    """Runs one of the commands, and returns its exit status."""
    parser = command_parser(
        "snapshot",
        "Make, list and delete snapshots of a whole store.\n\n"
        + "\n".join(f"  {name:8} {what}" for name, (what, _) in _COMMANDS.items()),
        "covector snapshot create monday --to 127.0.0.1:7337",
    )
    parser.add_argument("command", choices=_COMMANDS, metavar="COMMAND", help="one of those above")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments")
    given = parser.parse_args(arguments)
    _, command = _COMMANDS[given.command]
    return command(given.arguments)


def _create(arguments: list[str]) -> int:
    parser = _parser("create", "Make a snapshot of the whole store, while ingest goes on.", "monday")
    parser.add_argument("name", metavar="NAME", help="letters, digits, `.`, `_`, `-`")
    given = parser.parse_args(arguments)
    with connected(given) as client:
        client.snapshot(given.name).wait(progress=True)
        made = next((found for found in client.snapshots() if found.name == given.name), None)
    if given.json:
        print(json.dumps(None if made is None else asdict(made), indent=2))
    else:
        where = "" if made is None else f" at {made.path}: {made.row_count:,} rows, {said_bytes(made.size_bytes)}"
        print(f"snapshot {given.name} is made{where}")
    return 0


def _list(arguments: list[str]) -> int:
    given = _parser("list", "List the snapshots of a store.").parse_args(arguments)
    with connected(given) as client:
        found = client.snapshots()
    if given.json:
        print(json.dumps([asdict(snapshot) for snapshot in found], indent=2))
    elif not found:
        print("no snapshots yet; make one: covector snapshot create NAME")
    else:
        print_table(["name", "made at", "rows", "size", "path"], [_line(snapshot) for snapshot in found])
    return 0


def _delete(arguments: list[str]) -> int:
    parser = _parser("delete", "Delete a snapshot; the store is not touched.", "monday")
    parser.add_argument("name", metavar="NAME")
    given = parser.parse_args(arguments)
    with connected(given) as client:
        client.delete_snapshot(given.name)
    print(json.dumps({"deleted": given.name}) if given.json else f"snapshot {given.name} is deleted")
    return 0


_COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "create": ("make one, while ingest goes on", _create),
    "list": ("list them", _list),
    "delete": ("delete one", _delete),
    "restore": ("make a new store out of one", restore.main),
}


def _parser(command: str, description: str, example: str = "") -> Parser:
    parser = command_parser(
        f"snapshot {command}", description, f"covector snapshot {command} {example}".rstrip() + " --to 127.0.0.1:7337"
    )
    add_connection(parser)
    return parser


def _line(snapshot: SnapshotInfo) -> list[str]:
    made_at = dt.datetime.fromtimestamp(snapshot.created_at_s, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return [snapshot.name, made_at, f"{snapshot.row_count:,}", said_bytes(snapshot.size_bytes), snapshot.path]
