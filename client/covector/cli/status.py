"""``covector status``: how a store is."""

from __future__ import annotations

import json
from dataclasses import asdict

from covector.cli.options import add_connection, command_parser, connected
from covector.cli.table import said_bytes, said_damage
from covector.types import StoreStatus


def main(arguments: list[str]) -> int:
    """Prints the status; status 1 if something needs a hand."""
    parser = command_parser(
        "status",
        "Say how a store is: space, collections that take no rows, damage found since the server started.\n"
        "Exit status 1 if any of them needs a hand.",
        "covector status --to 127.0.0.1:7337",
    )
    add_connection(parser)
    given = parser.parse_args(arguments)
    with connected(given) as client:
        status = client.status()
    if given.json:
        print(json.dumps({**asdict(status), "healthy": status.healthy}, indent=2))
    else:
        print("\n".join(_lines(status)))
    return 0 if status.healthy else 1


def _lines(status: StoreStatus) -> list[str]:
    free, low = said_bytes(status.disk_free_bytes), said_bytes(status.disk_low_water_bytes)
    full = ": below it, no rows are taken" if status.disk_free_bytes < status.disk_low_water_bytes else ""
    lines = [
        f"covector {status.version}, store format {status.format_version}",
        f"disk: {free} free, low-water mark {low}{full}",
        f"scrubber: {_scrubbed(status)}",
    ]
    lines += [f"{name} takes no rows: {why}" for name, why in status.read_only_collections.items()]
    lines += [f"{name} is damaged: {said_damage(one)}" for name, found in status.damages.items() for one in found]
    return [*lines, "all is well"] if status.healthy else lines


def _scrubbed(status: StoreStatus) -> str:
    total = "" if status.scrub_total_bytes is None else f" of {said_bytes(status.scrub_total_bytes)}"
    return f"{said_bytes(status.scrubbed_bytes)}{total} checked in this round, {status.scrub_round_count} rounds done"
