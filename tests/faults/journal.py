"""What a client of a test did, in a file that survives it: an operation before it is sent, its acknowledgement after.

A line is written by one ``write``, so a client killed at any moment leaves whole lines. ``Expected`` reads the journals
of all clients and says for each row what the store may hold: what the last acknowledgement left, or what any operation
sent since would make of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.faults.made_rows import Key, keys_of

ABSENT = -1
Action = Literal["put", "details", "delete", "snapshot", "other"]


@dataclass(frozen=True, slots=True)
class Operation:
    """Rows ``stem``/[start, stop) of a collection. ``details``: rows without gradients. ``snapshot``: one
    called ``stem``; it and ``other`` change no row."""

    action: Action
    collection: str
    checkpoint: str = ""
    stem: str = ""
    start: int = 0
    stop: int = 0
    version: int = 0

    @property
    def keys(self) -> list[Key]:
        return keys_of(self.stem, range(self.start, self.stop))

    @property
    def is_lasting(self) -> bool:
        """Whether it puts rows that are never replaced or deleted."""
        return self.action == "put" and not self.stem.startswith("replaced")

    @property
    def row_count(self) -> int:
        return self.stop - self.start


class Journal:
    """The file of one client, and what stood in it before."""

    def __init__(self, path: Path) -> None:
        self._lines = list(read_lines(path, 0)[0]) if path.exists() else []
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._next = 1 + sum("sent" in line for line in self._lines)

    def sent(self, operation: Operation) -> int:
        """Notes an operation that is about to be sent, and returns its number."""
        number, self._next = self._next, self._next + 1
        self._write({"sent": number, **asdict(operation)})
        return number

    def acknowledged(self, number: int) -> None:
        """Notes that an operation was acknowledged."""
        self._write({"acknowledged": number})

    def earlier(self) -> tuple[list[Operation], list[Operation]]:
        """What an earlier life of this client had acknowledged, and what it sent besides."""
        done = {line["acknowledged"] for line in self._lines if "acknowledged" in line}
        sent = {line.pop("sent"): line for line in [dict(line) for line in self._lines] if "sent" in line}
        acknowledged = [Operation(**line) for number, line in sent.items() if number in done]
        return acknowledged, [Operation(**line) for number, line in sent.items() if number not in done]

    def _write(self, line: dict[str, object]) -> None:
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        assert os.write(self._descriptor, data) == len(data)


def read_lines(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The whole lines from an offset, and where they end."""
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    end = data.rfind(b"\n") + 1
    return [json.loads(line) for line in data[:end].splitlines()], offset + end


@dataclass(slots=True)
class History:
    """The states that a row was sent to, in order, and the place of the last one that was acknowledged."""

    states: list[int] = field(default_factory=lambda: [ABSENT])
    acknowledged: int = 0

    @property
    def possible(self) -> set[int]:
        return set(self.states[self.acknowledged :])


@dataclass(slots=True)
class CollectionRows:
    """What one collection may hold: gradients by (checkpoint, key), and the keys of rows without one."""

    gradients: dict[tuple[str, Key], History] = field(default_factory=dict)
    details: dict[Key, History] = field(default_factory=dict)


class Expected:
    """What the store may hold, from all journals in a directory, followed as they grow."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._offsets: dict[Path, int] = {}
        self._sent: dict[tuple[Path, int], tuple[Operation, list[tuple[History, int]]]] = {}
        self.collections: dict[str, CollectionRows] = {}
        self._lasting: dict[Path, list[Operation]] = {}  # acknowledged puts of rows that are never changed
        self.snapshots: dict[str, list[Operation]] = {}  # by name: puts that its client knew of before
        self.acknowledged_snapshots: set[str] = set()
        self.acknowledged_row_count = 0
        self.newly_acknowledged: list[Operation] = []  # emptied by whoever checks them

    def update(self) -> None:
        """Reads what was added to the journals."""
        for path in sorted(self._directory.glob("*.journal")):
            lines, self._offsets[path] = read_lines(path, self._offsets.get(path, 0))
            for line in lines:
                self._take(path, dict(line))

    def _take(self, path: Path, line: dict[str, Any]) -> None:
        number = line.pop("acknowledged", None)
        if number is None:
            number = line.pop("sent")
            operation = Operation(**line)
            if operation.action == "snapshot":
                self.snapshots[operation.stem] = list(self._lasting.get(path, ()))
            self._sent[path, number] = operation, [self._add(h, operation) for h in self._rows(operation)]
            return
        operation, places = self._sent.pop((path, number))
        for history, place in places:
            history.acknowledged = max(history.acknowledged, place)
        self.acknowledged_row_count += operation.row_count
        self.newly_acknowledged.append(operation)
        if operation.is_lasting:
            self._lasting.setdefault(path, []).append(operation)
        elif operation.action == "snapshot":
            self.acknowledged_snapshots.add(operation.stem)

    def _rows(self, operation: Operation) -> Iterator[History]:
        rows = self.collections.setdefault(operation.collection, CollectionRows())
        for key in operation.keys:
            if operation.action == "details":
                yield rows.details.setdefault(key, History())
            else:
                yield rows.gradients.setdefault((operation.checkpoint, key), History())

    @staticmethod
    def _add(history: History, operation: Operation) -> tuple[History, int]:
        state = ABSENT if operation.action == "delete" else operation.version
        if history.states[-1] != state or operation.action == "delete":
            history.states.append(state)
        return history, len(history.states) - 1
