"""``covector fsck``: has the server's package check a store at rest, and shows what it finds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from covector.cli.options import command_parser, require
from covector.cli.table import print_table
from covector.errors import InvalidInput, Unavailable
from covector.progress import Bar

_MIB = 1 << 20
Event = tuple[str, Any]


def main(arguments: list[str]) -> int:
    """Checks a data directory. Exit status 0 if it is clean, 1 if something is damaged."""
    parser = command_parser(
        "fsck",
        "Check every checksum and every file of a store that no server has open. Nothing is written without --repair.\n"
        "What a process that died left behind is told and is no damage; only damage makes the exit status 1.",
        "covector fsck --data ./store",
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the store, or a snapshot of it")
    parser.add_argument(
        "--repair",
        action="store_true",
        help="repair what can be without losing a row, then check again; what belongs nowhere goes below lost+found",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for machines")
    given = parser.parse_args(arguments)
    require(["covector_server", "lmdb", "zarr"], "server", "covector fsck")
    command = [sys.executable, "-m", "covector_server.check", "--data", str(given.data)]
    events = list(_without_progress(_events([*command, "--repair"] if given.repair else command)))
    found: dict[str, list[Any]] = {name: [] for name in ("finding", "repaired", "failed", "summary")}
    for name, value in events:
        found[name].append(value)
    if given.json:
        print(json.dumps(_document(found), indent=2))
    else:
        _show(found, given.data)
    return 1 if found["summary"][0]["damage"] or found["failed"] else 0


def _events(command: list[str]) -> Iterator[Event]:
    """What the check says, line by line. Raises InvalidInput in its words if it cannot work, Unavailable if it died."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            ((last, value),) = json.loads(line).items()
            if last == "error":
                raise InvalidInput(value)
            yield last, value
    if last != "summary":
        raise Unavailable(f"the check ended with status {process.returncode} before it was through; see above")


def _without_progress(events: Iterator[Event]) -> Iterator[Event]:
    """The other events; progress becomes a bar."""
    bar = Bar("checking, MiB")
    try:
        for name, value in events:
            if name == "progress":
                done, total = value
                if total >= _MIB:  # smaller ones are checked in no time
                    bar.show(done // _MIB, total // _MIB)
            else:
                yield name, value
    finally:
        bar.close()


def _document(found: dict[str, list[Any]]) -> dict[str, Any]:
    return {
        "summary": found["summary"][0],
        "findings": found["finding"],
        "repaired": found["repaired"],
        "failed_repairs": found["failed"],
    }


def _show(found: dict[str, list[Any]], data: Path) -> None:
    findings, summary = found["finding"], found["summary"][0]
    for finding in found["repaired"]:
        print(f"repaired: {finding['path']}: {finding['repair']}")
    for finding in found["failed"]:
        print(f"not repaired: {finding['path']}: {finding['reason']}")
    if findings:
        head = ["severity", "collection", "checkpoint", "rows", "file"]
        print_table(["#", *head], [[f"{place}", *_line(finding)] for place, finding in enumerate(findings, 1)])
        for place, finding in enumerate(findings, 1):
            print(f"#{place} {_text(finding)}")
    counts = Counter(finding["severity"] for finding in findings)
    checked = f"{summary['collections']:,} collections, {summary['rows']:,} rows, {summary['checked_bytes']:,} bytes"
    if not counts["damage"]:
        print(f"{data}: no damage ({checked} checked)")
    else:
        print(f"{data}: {counts['damage']:,} damaged ({checked} checked); restore what is named from a snapshot")
    repairable = sum(finding["repairable"] for finding in findings)
    if repairable:
        print(f"{repairable:,} of these can be repaired: covector fsck --data {data} --repair")


def _line(finding: dict[str, Any]) -> list[str]:
    return [
        finding["severity"],
        finding["collection"] or "-",
        finding["checkpoint"] or "-",
        f"{finding['row_count']:,}" if finding["row_count"] else "-",
        finding["path"],
    ]


def _text(finding: dict[str, Any]) -> str:
    """The finding in a line, keys of its rows included."""
    more = ", ..." if finding["row_count"] > len(finding["keys"]) else ""
    keys = f" (keys {', '.join(finding['keys'])}{more})" if finding["keys"] else ""
    return f"{finding['path']}: {finding['message']}{keys}".removeprefix(": ")
