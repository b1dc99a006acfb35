"""One line of progress on standard error: redrawn on a terminal, a plain line every so often elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

_TERMINAL_INTERVAL_S = 0.2
_PLAIN_INTERVAL_S = 10.0


class Progress:
    """Counts ``unit`` up to ``total`` (None: not known). ``shown=False`` says nothing."""

    def __init__(self, title: str, total: int | None, unit: str, *, shown: bool) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._shown = shown
        self._terminal = shown and sys.stderr.isatty()
        self._done = self._skipped = 0
        self._began_s = self._said_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown and self._done:
            self._say(end="\n")

    def skip(self, rows: int) -> None:
        """Counts rows that were there already; they do not count for the rate."""
        self._skipped += rows

    def advance(self, rows: int) -> None:
        """Counts finished rows."""
        self._done += rows
        interval_s = _TERMINAL_INTERVAL_S if self._terminal else _PLAIN_INTERVAL_S
        if self._shown and time.monotonic() - self._said_s >= interval_s:
            self._say(end="" if self._terminal else "\n")

    def line(self) -> str:
        """What there is to say now."""
        rate = self._done / max(time.monotonic() - self._began_s, 1e-9)
        reached = self._done + self._skipped
        of = "" if self._total is None else f"/{self._total}"
        left = "" if not self._total or not rate else f", {(self._total - reached) / rate:.0f} s left"
        there = f" ({self._skipped} there already)" if self._skipped else ""
        return f"{self._title}: {reached}{of} {self._unit}{there}, {rate:.1f}/s{left}"

    def _say(self, end: str) -> None:
        self._said_s = time.monotonic()
        start = "\r\x1b[K" if self._terminal else ""
        print(start + self.line(), end=end, file=sys.stderr, flush=True)
