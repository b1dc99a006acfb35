"""A bar of one line on stderr for long work; off a terminal, its last state only."""

from __future__ import annotations

import sys
import time

_REDRAW_S = 0.1
_WIDTH = 30


class Bar:
    """Shows how far some work is. Not thread-safe; ``show`` may be called as often as one likes."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._line = ""
        self._drawn_at_s = 0.0
        self._is_terminal = sys.stderr.isatty()

    def show(self, done: int, total: int | None = None, note: str = "") -> None:
        """``done`` of ``total`` steps (None while unknown), and a note such as a rate."""
        self._line = f"{self._label} {_counts(done, total)} {note}".rstrip()
        if self._is_terminal and time.monotonic() - self._drawn_at_s >= _REDRAW_S:
            self._draw()

    def close(self) -> None:
        """Leaves the last state standing on a line of its own."""
        if self._line:
            self._draw()
            print(file=sys.stderr, flush=True)
        self._line = ""

    def _draw(self) -> None:
        start, end = ("\r", "\x1b[K") if self._is_terminal else ("", "")
        print(f"{start}{self._line}{end}", end="", file=sys.stderr, flush=True)
        self._drawn_at_s = time.monotonic()


def _counts(done: int, total: int | None) -> str:
    if not total:
        return f"{done:,}"
    filled = _WIDTH * min(done, total) // total
    return f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {done:,}/{total:,}"
