"""What every checker gets: the data directory, where to put findings, what is claimed, and progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from covector_server.check.claims import Claims
from covector_server.check.findings import Finding, Report
from covector_server.check.reading import CheckedFile, open_checked

OnProgress = Callable[[int, int], None]


class Context:
    """One check of one data directory. ``on_progress`` hears of (bytes checked, bytes expected)."""

    def __init__(self, data: Path, on_progress: OnProgress | None = None) -> None:
        self.data = data
        self.report = Report()
        self.claims = Claims()
        self.expected_bytes = 0
        self.aside = f"lost+found/{time.strftime('%Y-%m-%dT%H-%M-%SZ', time.gmtime())}"  # where a repair moves files
        self._on_progress = on_progress or (lambda done, total: None)

    def add(self, finding: Finding) -> None:
        """Notes a finding."""
        self.report.findings.append(finding)

    def advance(self, byte_count: int) -> None:
        """So many more bytes were checked."""
        self.report.checked_bytes += byte_count
        self._on_progress(self.report.checked_bytes, max(self.expected_bytes, self.report.checked_bytes))

    @contextmanager
    def open(self, path: str) -> Iterator[CheckedFile]:
        """Opens a file below the data directory. Raises OSError."""
        with open_checked(self.data / path, self.advance) as file:
            yield file
