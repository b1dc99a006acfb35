"""Queries that wait for each other scan together: one pass over the rows answers all of them.

Queries of the same collection, checkpoints and scorer that ask about all rows stand in one line (``query.lines``). A
thread of its own leads it: it opens one view, which is newer than any of the calls, scans for all that it took along,
hands the line over, and answers the small questions in one go while the next leader scans already. The others are
answered in the threads that asked.

Each query keeps its own deadline. One that is cancelled leaves the line, or its part of the scores is dropped. A scan
ends early when nobody wants it any more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeAlias

from covector.errors import Corrupt, CovectorError
from covector_server.index.cache import IndexCache
from covector_server.limits import Limits
from covector_server.query.cancellation import Cancelled, check_cancelled, never
from covector_server.query.choosing import choose
from covector_server.query.engine import plan_top_k, top_k, top_k_by_index
from covector_server.query.joint import Found, JointScan, Member, fits_in_batch
from covector_server.query.lines import SHARED_VECTORS, LineKey, Lines, Waiting
from covector_server.query.planner import Plan
from covector_server.query.question import Question, TopKAnswer
from covector_server.query.workers import Workers
from covector_server.storage.view import CollectionView

LOOK_S: Final = 0.1  # how often a thread that waits looks whether it is still wanted
LEADERS_MAX: Final = 32  # lines that are scanned for at a time, those included whose answers are being made

OpenView: TypeAlias = Callable[[str], AbstractContextManager[CollectionView]]
Answered = tuple[CollectionView, TopKAnswer]


class _Lease:
    """A view that several hold; it is closed after the last has let go."""

    def __init__(self, opened: ExitStack, count: int) -> None:
        """Held by ``count``."""
        self._opened = opened
        self._left = count
        self._changing = threading.Lock()

    def let_go(self) -> None:
        with self._changing:
            self._left -= 1
            is_last = self._left == 0
        if is_last:
            self._opened.close()


@dataclass(frozen=True, slots=True)
class _Scanned:
    """What a thread that asked finishes for itself."""

    view: CollectionView
    lease: _Lease
    answer: Callable[[], TopKAnswer]


class SharedScans:
    """The lines of one server, and the threads that lead them. Any thread may ask."""

    def __init__(
        self, open_view: OpenView, limits: Limits, workers: Workers | None, indexes: IndexCache | None = None
    ) -> None:
        self.lines = Lines(lambda key: self._leading.submit(self._lead, key))
        self._indexes = indexes
        self._indexed: set[str] = set()  # collections that had an index when this was last seen
        self._open_view = open_view
        self._limits = limits
        self._workers = workers
        self._leading = ThreadPoolExecutor(LEADERS_MAX, thread_name_prefix="lead")

    def close(self) -> None:
        """Waits for the scans under way; nothing can be shared afterwards."""
        self._leading.shutdown(wait=True)

    def ask(self, collection: str, question: Question, k: int, *, offset: int = 0) -> Future[Found | None] | None:
        """What a batch will find, without a thread that waits for it; None, now or then, for a question that
        ``top_k`` is to be asked. Cancelling the future takes the question back. It fails as ``top_k`` does."""
        if not _can_share(question) or not fits_in_batch(question, k, offset):
            return None
        if collection in self._indexed and not question.exact:
            return None
        one = Waiting(question, k, offset, in_batch=True)
        self.lines.join(_line_key(collection, question), one)
        return one.future

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
                self._lists_indexes(collection, view)
                answer, reason = self._by_index(view, question, k, offset, cancelled)
                if answer is not None:
                    yield view, answer
                    return
        one = Waiting(question, k, offset, cancelled=cancelled)
        self.lines.join(_line_key(collection, question), one)
        scanned = _outcome(one)
        try:
            check_cancelled(cancelled)
            yield scanned.view, replace(scanned.answer(), reason=reason)
        finally:
            scanned.lease.let_go()

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

    def _lists_indexes(self, collection: str, view: CollectionView) -> bool:
        """Whether a question may be answered by an index, which is remembered: it then waits for no scan."""
        try:
            lists = self._indexes is not None and bool(view.listed_indexes())
        except Corrupt:  # exact search says so
            lists = False
        (self._indexed.add if lists else self._indexed.discard)(collection)
        return lists

    def _lead(self, key: LineKey) -> None:
        """Scans for those who go next, and sees to it that something becomes of each."""
        taken, started = self.lines.take(key), time.perf_counter()
        try:
            scanned = self._scanned(key[0], taken)
        except BaseException as error:  # noqa: BLE001 - each that waits raises it
            self.lines.hand_over(key, len(taken), time.perf_counter() - started)
            for one in taken:
                one.fail(error)
            return
        self.lines.hand_over(key, len(taken), time.perf_counter() - started)
        if scanned is not None:
            try:
                _tell(*scanned)
            except BaseException as error:  # noqa: BLE001 - as above
                for one in taken:
                    one.fail(error)

    def _scanned(self, collection: str, taken: list[Waiting]) -> tuple[CollectionView, ExitStack, JointScan] | None:
        """The view, which is held, and the scan of it; None if there was nothing to scan for."""
        with ExitStack() as opening:
            view = opening.enter_context(self._open_view(collection))
            members = self._members(collection, view, taken)
            if not members:
                return None
            joint = JointScan(view, members, self._workers)
            joint.run()
            return view, opening.pop_all(), joint

    def _members(self, collection: str, view: CollectionView, taken: list[Waiting]) -> list[Member]:
        """The questions that can be scanned for. The others are told what is wrong with them, or that an index may
        answer them."""
        may_use_index = any(not one.question.exact for one in taken if one.in_batch) and self._lists_indexes(
            collection, view
        )
        reason_of: dict[bool, str] = {}
        members = []
        for one in taken:
            try:
                plan = plan_top_k(view, one.question, one.k, self._limits, offset=one.offset)
            except CovectorError as error:
                one.fail(error)
                continue
            if one.in_batch and may_use_index and not one.question.exact:
                one.succeed(None)
                continue
            if one.question.exact not in reason_of:
                reason_of[one.question.exact] = self._reason(view, plan, one)
            members.append(Member(one, plan, reason_of[one.question.exact]))
        return members

    def _reason(self, view: CollectionView, plan: Plan, one: Waiting) -> str:
        """Why no index answers; the same for all questions of a batch, for which there is none or which want none."""
        if self._indexes is None:
            return ""
        return choose(view, plan, one.question, one.k + one.offset, None, self._indexes).reason


def _tell(view: CollectionView, opened: ExitStack, joint: JointScan) -> None:
    """Gives each its outcome. The view is closed before the last of those is told that need it."""
    alone = [share.members[0].waiting for share in joint.alone]
    lease = _Lease(opened, len(alone) + (joint.batch is not None))
    for one, share in zip(alone, joint.alone, strict=True):
        if not one.succeed(_Scanned(view, lease, partial(share.answer, view, joint.scan_s))):
            lease.let_go()
    if joint.batch is not None:
        try:
            joint.finish_batch()
        finally:
            lease.let_go()
        joint.batch.tell()


def _outcome(one: Waiting) -> _Scanned:
    """Waits for it. Raises what is wrong with the question, and Unavailable if it is cancelled before."""
    while True:
        try:
            scanned: _Scanned = one.future.result(LOOK_S)
            one.future = Future()  # what it holds leads back to the query: a cycle, which would keep the rows mapped
            return scanned
        except TimeoutError:
            if one.cancelled() and one.future.cancel():
                check_cancelled(one.cancelled)
        except CovectorError as error:
            raise error.with_traceback(None) from None  # it may be raised by several


def _line_key(collection: str, question: Question) -> LineKey:
    names = tuple(choice.name for choice in question.checkpoints)
    return collection, names, question.rule, question.missing


def _can_share(question: Question) -> bool:
    return question.where is None and question.damaged == "fail" and question.vectors.shape[1] <= SHARED_VECTORS
