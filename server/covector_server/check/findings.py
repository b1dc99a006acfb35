"""What a check found: each finding says where, what, which rows, and carries its own repair if there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from covector_server.storage.disk import Disk

Repair = Callable[[Disk], None]
KEYS_NAMED = 5


class Severity(StrEnum):
    """DAMAGE: something committed is not as it was written, or something stands where nothing belongs. LEFTOVER: what a
    process that died may leave behind; nothing committed is touched by it, and the server writes over it or removes
    it."""

    DAMAGE = "damage"
    LEFTOVER = "leftover"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One finding. ``kind`` is a word programs may rely on, ``path`` lies below the data directory, ``first_row`` is
    where rows start, by position in the checkpoint, or by row id where there is none; ``keys``: the first few of the
    rows, as text."""

    kind: str
    message: str
    path: str = ""
    collection: str = ""
    checkpoint: str = ""
    first_row: int | None = None
    row_count: int = 0
    keys: tuple[str, ...] = ()
    severity: Severity = Severity.DAMAGE
    repair: Repair | None = field(default=None, compare=False)
    repair_note: str = ""

    def as_json(self) -> dict[str, Any]:
        """The finding for machines."""
        return {
            "kind": self.kind,
            "severity": self.severity.value,
            "message": self.message,
            "path": self.path,
            "collection": self.collection,
            "checkpoint": self.checkpoint,
            "first_row": self.first_row,
            "row_count": self.row_count,
            "keys": list(self.keys),
            "repairable": self.repair is not None,
            "repair": self.repair_note,
        }


@dataclass(slots=True)
class Report:
    """All findings of one check."""

    findings: list[Finding] = field(default_factory=list)
    collections: int = 0
    rows: int = 0
    checked_bytes: int = 0

    @property
    def damage(self) -> list[Finding]:
        """The findings that are not leftovers."""
        return [finding for finding in self.findings if finding.severity is Severity.DAMAGE]

    @property
    def leftovers(self) -> list[Finding]:
        """What a process that died left behind."""
        return [finding for finding in self.findings if finding.severity is Severity.LEFTOVER]
