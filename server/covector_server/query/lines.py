"""The lines in which queries wait for a scan that they can share, and who goes together.

In a line stand queries that one pass over the rows answers. While somebody stands in it, it is led: a thread takes
those at its head along, scans for them, and hands the line over. So there is one such scan at a time, a query waits for
one scan at most before its own, and the oldest goes first; lines do not wait for each other.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from covector.errors import Unavailable
from covector_server.query.cancellation import Cancelled, never
from covector_server.query.question import Question

SHARED_VECTORS: Final = 128  # of all queries that scan together; a query of more scans alone
LINGER_SHARE: Final = 0.25  # of the last scan's time that a leader waits for company, at most
LINGER_S_MAX: Final = 0.05
GAP_SHARE: Final = 0.4  # of that time after which it waits no longer if nobody came

LineKey = tuple[str, tuple[str, ...], str, str]  # collection, checkpoints, what scores, what becomes of missing rows
Lead = Callable[[LineKey], object]


@dataclass(eq=False, slots=True, weakref_slot=True)
class Waiting:
    """A query in line, and the future of what becomes of it, which who asks may cancel. ``in_batch``: whether it is
    finished together with others. ``cancelled``: of one whose thread waits, and then finishes it."""

    question: Question
    k: int
    offset: int
    in_batch: bool = False
    cancelled: Cancelled = never
    future: Future[Any] = field(default_factory=Future)

    @property
    def vector_count(self) -> int:
        """Vectors at each checkpoint."""
        count: int = self.question.vectors.shape[1]
        return count

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for the answer."""
        return not self.future.cancelled() and not self.cancelled()

    def succeed(self, outcome: object) -> bool:
        """Returns False if nobody waits, or something became of it before. Belongs to the thread that leads."""
        if self.future.done() or not self.future.set_running_or_notify_cancel():
            return False
        self.future.set_result(outcome)
        return True

    def fail(self, error: BaseException) -> None:
        """Unless something became of it before. Belongs to the thread that leads."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


@dataclass(slots=True)
class _Line:
    """``expected_count``: those that the last scan answered and those that waited when it ended; ``last_s``: how long
    it took."""

    waiting: deque[Waiting] = field(default_factory=deque)
    is_led: bool = False
    expected_count: int = 1
    last_s: float = 0.0

    def is_full(self) -> bool:
        """Whether all who are expected are there, or as many as may go together."""
        return (
            len(self.waiting) >= self.expected_count or sum(one.vector_count for one in self.waiting) >= SHARED_VECTORS
        )

    def is_longer(self, count: int) -> bool:
        return len(self.waiting) > count

    def pop(self) -> list[Waiting]:
        """Those at the head, as many as may go together."""
        taken: list[Waiting] = []
        left = SHARED_VECTORS
        while self.waiting and (not taken or self.waiting[0].vector_count <= left):
            taken.append(self.waiting.popleft())
            left -= taken[-1].vector_count
        return taken


class Lines:
    """All lines of one server. ``lead`` is called with a line's key when somebody has to lead it, and returns at once;
    whoever leads calls ``take``, then ``hand_over``. Any thread may call."""

    def __init__(self, lead: Lead) -> None:
        self._lead = lead
        self._lines: dict[LineKey, _Line] = {}
        self._changed = threading.Condition()

    def join(self, key: LineKey, one: Waiting) -> None:
        """Stands at the end of a line, until it is taken or cancelled."""
        with self._changed:
            line = self._lines.setdefault(key, _Line())
            line.waiting.append(one)
            if line.is_led:
                self._changed.notify_all()
            else:
                self._appoint(key, line)
        one.future.add_done_callback(partial(self._leave_if_cancelled, key, weakref.ref(one)))

    def take(self, key: LineKey) -> list[Waiting]:
        """Those who go next, none if all have left; gives others a moment to come."""
        with self._changed:
            line = self._lines[key]
            self._linger(line)
            return line.pop()

    def hand_over(self, key: LineKey, taken_count: int, scan_s: float) -> None:
        """To the next leader, if somebody waits. Of the lines that nobody stands in, the last one is remembered."""
        with self._changed:
            line = self._lines[key]
            line.expected_count, line.last_s = taken_count + len(line.waiting), scan_s
            line.is_led = False
            if line.waiting:
                self._appoint(key, line)
            for idle in [other for other, line in self._lines.items() if other != key and not line.is_led]:
                del self._lines[idle]

    def waiting_count(self) -> int:
        """How many stand in all lines."""
        with self._changed:
            return sum(len(line.waiting) for line in self._lines.values())

    def __len__(self) -> int:
        return len(self._lines)

    def _appoint(self, key: LineKey, line: _Line) -> None:
        line.is_led = True
        try:
            self._lead(key)
        except RuntimeError:  # no threads any more
            line.is_led = False
            for one in line.pop():
                one.fail(Unavailable("the server stops; ask again later"))

    def _linger(self, line: _Line) -> None:
        """Gives those who are expected a moment to come, while they keep coming: clients that were answered together
        ask together, and a scan for several takes little longer than one for the first."""
        patience_s = min(LINGER_S_MAX, LINGER_SHARE * line.last_s)
        end_s = time.monotonic() + patience_s
        while not line.is_full():
            left_s = min(GAP_SHARE * patience_s, end_s - time.monotonic())
            if left_s <= 0 or not self._changed.wait_for(partial(line.is_longer, len(line.waiting)), left_s):
                return

    def _leave_if_cancelled(self, key: LineKey, waiting: weakref.ref[Waiting], future: Future[Any]) -> None:
        """A future keeps its callbacks: one that held the query, and with it the answer, would leave a cycle."""
        one = waiting()
        if one is None or not future.cancelled():
            return
        with self._changed:
            line = self._lines.get(key)
            if line is not None and one in line.waiting:
                line.waiting.remove(one)
