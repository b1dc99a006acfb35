"""Queries that wait for each other scan together: one pass over the rows answers all of them.

Queries of the same collection, checkpoints and scorer that ask about all rows stand in one line. The one at its head
leads: it takes those behind it along, opens one view, which is newer than any of their calls, scans, and gives each its
own answer. The next that waits leads the next scan. So there is one such scan at a time, a query waits for one scan at
most before its own, and the oldest goes first; lines do not wait for each other.

Each query keeps its own deadline. One that is cancelled leaves the line, or is left out from the next block of rows on;
if it leads, it goes on for the others. A scan ends early when nobody wants it any more.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, TypeAlias

import numpy as np

from covector.errors import CovectorError
from covector.types import Stage
from covector_server.index.cache import IndexCache
from covector_server.kernels.topk import Scored
from covector_server.limits import Limits
from covector_server.query.cancellation import Cancelled, check_cancelled, never
from covector_server.query.engine import plan_top_k, stages_of, top_k, top_k_by_index
from covector_server.query.planner import Plan, Term
from covector_server.query.question import Question, TopKAnswer
from covector_server.query.scan import Scan, scan_each
from covector_server.query.topk import Selection
from covector_server.query.workers import Workers
from covector_server.storage.view import CollectionView

SHARED_VECTORS: Final = 128  # of all queries that scan together; a query of more scans alone
LINGER_SHARE: Final = 0.25  # of the last scan's time that a leader waits for company, at most
LINGER_S_MAX: Final = 0.05
GAP_SHARE: Final = 0.4  # of that time after which it waits no longer if nobody came
LOOK_S: Final = 0.1  # how often one that waits looks whether it is still wanted

OpenView: TypeAlias = Callable[[str], AbstractContextManager[CollectionView]]
Answered = tuple[CollectionView, TopKAnswer]
_Key = tuple[str, tuple[str, ...], str, str]


@dataclass(eq=False, slots=True)
class _Waiting:
    """A query in line. ``woken`` is set when it leads, or when there is an outcome."""

    question: Question
    k: int
    offset: int
    cancelled: Cancelled
    woken: threading.Event = field(default_factory=threading.Event)
    leads: bool = False
    is_gone: bool = False  # nobody waits for its outcome
    lease: _Lease | None = None
    finish: Callable[[], TopKAnswer] | None = None
    error: BaseException | None = None


@dataclass(slots=True)
class _Line:
    """The queries that may scan together. ``expected_count``: those that the last scan answered and those that waited
    when it ended; ``last_s``: how long it took."""

    waiting: deque[_Waiting] = field(default_factory=deque)
    is_led: bool = False
    expected_count: int = 1
    last_s: float = 0.0

    def appoint(self) -> None:
        """Lets the one at the head lead, if there is one."""
        self.is_led = bool(self.waiting)
        if self.waiting:
            self.waiting[0].leads = True
            self.waiting[0].woken.set()


def _is_longer(line: _Line, count: int) -> bool:
    return len(line.waiting) > count


class _Lease:
    """A view that several hold; it is closed after the last has let go."""

    def __init__(self, view: CollectionView, opened: ExitStack) -> None:
        """Held by the caller."""
        self.view = view
        self._opened = opened
        self._left = 1
        self._changing = threading.Lock()

    def hold(self) -> None:
        """By one more, while somebody holds it."""
        with self._changing:
            self._left += 1

    def let_go(self) -> None:
        with self._changing:
            self._left -= 1
            is_last = self._left == 0
        if is_last:
            self._opened.close()


class SharedScans:
    """The lines of one server. Any thread may ask; it is the askers' threads that lead."""

    def __init__(
        self, open_view: OpenView, limits: Limits, workers: Workers | None, indexes: IndexCache | None = None
    ) -> None:
        self._indexes = indexes
        self._open_view = open_view
        self._limits = limits
        self._workers = workers
        self._lines: dict[_Key, _Line] = {}
        self._changing = threading.Condition()

    @contextmanager
    def top_k(
        self, collection: str, question: Question, k: int, *, offset: int = 0, cancelled: Cancelled = never
    ) -> Iterator[Answered]:
        """The answer, and the view that it was found in, which is held until the block ends. Raises as
        ``engine.top_k`` does, and what ``open_view`` raises."""
        if not _can_share(question):
            with self._open_view(collection) as view:
                yield view, self._alone(view, question, k, offset, cancelled)
            return
        reason = ""
        if self._indexes is not None:
            with self._open_view(collection) as view:
                answer, reason = self._by_index(view, question, k, offset, cancelled)
                if answer is not None:
                    yield view, answer
                    return
        names = tuple(choice.name for choice in question.checkpoints)
        key = (collection, names, question.rule, question.missing)
        me = _Waiting(question, k, offset, cancelled)
        try:
            self._stand_in_line(key, me)
            self._wait(key, me)
            if me.error is not None:
                raise me.error.with_traceback(None)  # it may be raised by several
            assert me.lease is not None
            assert me.finish is not None
            yield me.lease.view, replace(me.finish(), reason=reason)
        finally:
            self._leave(me)

    def _alone(self, view: CollectionView, question: Question, k: int, offset: int, cancelled: Cancelled) -> TopKAnswer:
        return top_k(
            view,
            question,
            k,
            offset=offset,
            limits=self._limits,
            cancelled=cancelled,
            workers=self._workers,
            indexes=self._indexes,
        )

    def _by_index(
        self, view: CollectionView, question: Question, k: int, offset: int, cancelled: Cancelled
    ) -> tuple[TopKAnswer | None, str]:
        """An index answers at once, in the asker's thread."""
        assert self._indexes is not None
        return top_k_by_index(
            view,
            question,
            k,
            self._indexes,
            offset=offset,
            limits=self._limits,
            cancelled=cancelled,
            workers=self._workers,
        )

    def _stand_in_line(self, key: _Key, me: _Waiting) -> None:
        with self._changing:
            line = self._lines.setdefault(key, _Line())
            line.waiting.append(me)
            if not line.is_led:
                line.appoint()
            self._changing.notify_all()

    def _wait(self, key: _Key, me: _Waiting) -> None:
        """Until there is an outcome. Leads if it is its turn."""
        while not me.woken.wait(LOOK_S):
            if me.cancelled() and self._gives_up(key, me):
                check_cancelled(me.cancelled)
        if me.leads:
            self._lead(key)

    def _gives_up(self, key: _Key, me: _Waiting) -> bool:
        """Leaves the line, if it stands there still; a scan that it is in sees for itself that it is not wanted. False
        if it is to lead: others wait for that."""
        with self._changing:
            if me.leads:
                return False
            line = self._lines[key]
            if me in line.waiting:
                line.waiting.remove(me)
            return True

    def _lead(self, key: _Key) -> None:
        taken, started = self._take(key), time.perf_counter()
        try:
            self._answer(key[0], taken)
        except BaseException as error:  # noqa: BLE001 - each that waits raises it
            for one in taken:
                one.error = one.error or error
        finally:
            self._hand_over(key, len(taken), time.perf_counter() - started)
            for one in taken:
                one.woken.set()

    def _take(self, key: _Key) -> list[_Waiting]:
        """The leader and as many of those behind it as may come."""
        with self._changing:
            line = self._lines[key]
            self._linger(line)
            taken = [line.waiting.popleft()]
            left = SHARED_VECTORS - _vector_count(taken[0].question)
            while line.waiting and _vector_count(line.waiting[0].question) <= left:
                taken.append(line.waiting.popleft())
                left -= _vector_count(taken[-1].question)
            return taken

    def _linger(self, line: _Line) -> None:
        """Gives half of those who are expected a moment to come, while they keep coming: clients that were answered
        together ask together, and a scan for several takes little longer than one for the first. The other half is
        answered and asks again meanwhile."""
        patience_s = min(LINGER_S_MAX, LINGER_SHARE * line.last_s)
        end_s = time.monotonic() + patience_s
        while 2 * (count := len(line.waiting)) < line.expected_count:
            left_s = min(GAP_SHARE * patience_s, end_s - time.monotonic())
            if left_s <= 0 or not self._changing.wait_for(partial(_is_longer, line, count), left_s):
                return

    def _hand_over(self, key: _Key, taken_count: int, scan_s: float) -> None:
        """To the next in line. Of the lines that nobody stands in, the last one is remembered."""
        with self._changing:
            line = self._lines[key]
            line.expected_count, line.last_s = taken_count + len(line.waiting), scan_s
            line.appoint()
            for idle in [other for other, line in self._lines.items() if other != key and not line.is_led]:
                del self._lines[idle]

    def _answer(self, collection: str, taken: list[_Waiting]) -> None:
        with ExitStack() as opening:
            view = opening.enter_context(self._open_view(collection))
            lease = _Lease(view, opening.pop_all())
        with self._changing:
            for one in taken:
                if not one.is_gone:
                    lease.hold()
                    one.lease = lease
        try:
            self._scan(view, taken)
        finally:
            lease.let_go()

    def _scan(self, view: CollectionView, taken: list[_Waiting]) -> None:
        members = [member for one in taken if (member := self._member(view, one)) is not None]
        if not members:
            return
        everyone = replace(
            members[0].scan,
            plan=_together([member.scan.plan for member in members]),
            cancelled=lambda: not any(member.is_wanted() for member in members),
        )
        stops = np.cumsum([member.scan.plan.group_count for member in members]).tolist()
        parts = [slice(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]

        def offer(block: Scored) -> None:
            for member, part in zip(members, parts, strict=True):
                member.offer(block, part)

        started = time.perf_counter()
        scan_each(everyone, offer)
        scan_s = time.perf_counter() - started
        for member in members:
            member.one.finish = partial(member.answer, view, scan_s)

    def _member(self, view: CollectionView, one: _Waiting) -> _Member | None:
        """A query as part of a scan; None if something is wrong with it, which it is told."""
        try:
            plan = plan_top_k(view, one.question, one.k, self._limits, offset=one.offset)
        except CovectorError as error:
            one.error = error
            return None
        scan = Scan(plan, None, view.row_id_count, one.cancelled, workers=self._workers)
        return _Member(one, scan, Selection(scan, one.k + one.offset, view.keys_of))

    def _leave(self, me: _Waiting) -> None:
        with self._changing:
            me.is_gone = True
            lease, me.lease = me.lease, None
        if lease is not None:
            lease.let_go()


@dataclass(slots=True)
class _Member:
    """A query while it is scanned for."""

    one: _Waiting
    scan: Scan
    selection: Selection

    def is_wanted(self) -> bool:
        return self.one.error is None and not self.one.cancelled()

    def offer(self, block: Scored, part: slice) -> None:
        """Its part of the scores. What goes wrong with it is its own error, and not the others'."""
        if not self.is_wanted():
            return
        try:
            self.selection.offer(block.part(part))
        except CovectorError as error:
            self.one.error = error

    def answer(self, view: CollectionView, scan_s: float) -> TopKAnswer:
        """Re-scores, in the thread of the query itself."""
        check_cancelled(self.one.cancelled)
        started = time.perf_counter()
        results = self.selection.ends()
        everything = Stage("filter", view.row_count, view.row_count, 0.0)
        stages = stages_of(self.selection, results, scan_s, time.perf_counter() - started)
        results = tuple(ends.behind(self.one.offset) for ends in results)
        return TopKAnswer(results, (everything, *stages), self.one.question.scorer)


def _can_share(question: Question) -> bool:
    return question.where is None and question.damaged == "fail" and _vector_count(question) <= SHARED_VECTORS


def _vector_count(question: Question) -> int:
    count: int = question.vectors.shape[1]
    return count


def _together(plans: Sequence[Plan]) -> Plan:
    """One plan with the groups of all, which differ in nothing else."""
    return replace(plans[0], terms=tuple(_joined(terms) for terms in zip(*(plan.terms for plan in plans), strict=True)))


def _joined(terms: tuple[Term, ...]) -> Term:
    if len(terms) == 1:
        return terms[0]
    return replace(
        terms[0],
        vectors=np.concatenate([term.vectors for term in terms]),
        narrow=np.concatenate([term.narrow for term in terms]),
        packed=np.concatenate([term.packed for term in terms]),
        coefficients=np.concatenate([term.coefficients for term in terms]),
        reaches=np.concatenate([term.reaches for term in terms]),
    )
