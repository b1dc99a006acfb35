"""``python -m covector_server.check``: what ``covector fsck`` runs. It prints JSON, an object a line.

``{"progress": [bytes checked, bytes expected]}`` while it works, ``{"finding": {...}}`` for each finding, with
``--repair`` ``{"repaired": {...}}`` or ``{"failed": {...}}`` and the findings of a second check, ``{"summary": {...}}``
last; ``{"error": message}`` if it cannot work at all. Exit status: 0 clean, 1 damage found or a repair failed, 2 wrong
use.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from covector.errors import CovectorError
from covector_server.check.findings import Report
from covector_server.check.store import check_store, locked, repair_store
from covector_server.command_line import Parser

_PROGRESS_EVERY_S = 0.1


def main(arguments: list[str] | None = None) -> int:
    """Checks; returns the exit status."""
    parser = Parser(prog="python -m covector_server.check", description="Check a store at rest.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--repair", action="store_true")
    given = parser.parse_args(arguments)
    try:
        with locked(given.data):
            return _run(given.data, given.repair)
    except CovectorError as error:
        _say("error", error.message)
    except OSError as error:
        _say("error", f"{error.filename or given.data}: {error.strerror}")
    return 2


def _run(data: Path, wants_repair: bool) -> int:
    report, has_failed = check_store(data, on_progress=_Progress()), False
    if wants_repair and any(finding.repair for finding in report.findings):
        repaired = repair_store(data, report, on_progress=_Progress())
        for finding in repaired.done:
            _say("repaired", finding.as_json())
        for finding, reason in repaired.failed:
            _say("failed", finding.as_json() | {"reason": reason})
        report, has_failed = repaired.after, bool(repaired.failed)
    _say("progress", [report.checked_bytes, report.checked_bytes])
    for finding in report.findings:
        _say("finding", finding.as_json())
    _say("summary", _summary(report))
    return 1 if report.damage or has_failed else 0


def _summary(report: Report) -> dict[str, Any]:
    return {
        "collections": report.collections,
        "rows": report.rows,
        "checked_bytes": report.checked_bytes,
        "damage": len(report.damage),
        "leftovers": len(report.leftovers),
    }


class _Progress:
    """Prints how far the check is, some times a second."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _PROGRESS_EVERY_S
            _say("progress", [done, total])


def _say(name: str, value: object) -> None:
    print(json.dumps({name: value}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
