"""One pass over the rows for several questions, which differ in their vectors, groups and k alone.

Most questions want few rows: these form a batch, whose rows are re-scored, named and read together, since it is the
calls that take time and not the rows. Each of the others is finished by itself, in its own thread.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from covector.errors import CovectorError
from covector.types import Stage
from covector_server.kernels.topk import Scored
from covector_server.query.lines import Waiting
from covector_server.query.planner import Plan, Term
from covector_server.query.question import Ends, Question, TopKAnswer
from covector_server.query.scan import Scan, scan_each
from covector_server.query.topk import Selection
from covector_server.query.workers import Workers
from covector_server.storage.view import CollectionView, RowDetails, RowIds

BATCH_HITS: Final = 1024  # that a question of a batch asks for, at both ends of all its results
BATCH_BYTES: Final = 1 << 20  # of texts and metadata that are read for each question of a batch, on average
ROWS_AT_ONCE: Final = 64  # whose texts and metadata are read before their bytes are counted


@dataclass(frozen=True, slots=True)
class Found:
    """An answer, and what is stored with the rows in it: None if that is too much to be kept together."""

    answer: TopKAnswer
    rows: Mapping[int, RowDetails] | None


@dataclass(frozen=True, slots=True)
class Member:
    """A question that was checked. ``reason``: why no index answers it, for people."""

    waiting: Waiting
    plan: Plan
    reason: str = ""


def fits_in_batch(question: Question, k: int, offset: int) -> bool:
    """Whether a question can be finished with others: its answer is small, and each of its results of one group."""
    return question.reduce != "max" and 2 * (k + offset) * question.vectors.shape[1] <= BATCH_HITS


class JointScan:
    """A pass over a view's rows for ``members``, at least one."""

    def __init__(self, view: CollectionView, members: Sequence[Member], workers: Workers | None) -> None:
        self.scan_s = 0.0
        self._view = view
        batch = [member for member in members if member.waiting.in_batch]
        alone = [[member] for member in members if not member.waiting.in_batch]
        self._shares: list[_Share] = []
        start = 0
        for some in [batch, *alone] if batch else alone:
            self._shares.append(share := _Share(view, some, workers, start))
            start = share.groups.stop
        self.batch = self._shares[0] if batch else None
        self.alone = self._shares[1:] if batch else self._shares
        plan = together([share.scan.plan for share in self._shares])
        shares = self._shares
        self._scan = replace(
            shares[0].scan, plan=plan, cancelled=lambda: not any(share.is_wanted() for share in shares)
        )

    def run(self) -> None:
        """Scans. Raises what goes wrong for all, and Unavailable once nobody waits any more."""
        started = time.perf_counter()
        if len(self._shares) == 1:
            self._shares[0].run()
        else:
            scan_each(self._scan, self._offer)
        self.scan_s = time.perf_counter() - started

    def finish_batch(self) -> None:
        """Finds what becomes of the questions of the batch; ``tell`` them then."""
        assert self.batch is not None
        self.batch.finish_batch(self._view, self.scan_s)

    def _offer(self, block: Scored) -> None:
        for share in self._shares:
            share.offer(block)


class _Share:
    """The part of a joint scan that belongs to one question, or to a batch. ``groups``: its place among all groups."""

    def __init__(
        self, view: CollectionView, members: Sequence[Member], workers: Workers | None, first_group: int
    ) -> None:
        self.members = members
        self.error: CovectorError | None = None
        self.found: list[Found] = []
        plan = together([member.plan for member in members])
        nobody_waits = lambda: not any(member.waiting.is_wanted for member in members)  # noqa: E731
        self.scan = Scan(plan, None, view.row_id_count, nobody_waits, workers=workers)
        self.groups = slice(first_group, first_group + plan.group_count)
        ks = [one.waiting.k + one.waiting.offset for one in members for _ in range(one.plan.result_count)]
        self._selection = Selection(self.scan, ks, view.keys_of)

    def is_wanted(self) -> bool:
        return self.error is None and not self.scan.cancelled()

    def run(self) -> None:
        """Scans for itself alone, which may go a shorter way."""
        self._selection.run()

    def offer(self, block: Scored) -> None:
        """Its part of the scores. What goes wrong with it is its own error, and not the others'."""
        if not self.is_wanted():
            return
        try:
            self._selection.offer(block.part(self.groups))
        except CovectorError as error:
            self.error = error

    def answer(self, view: CollectionView, scan_s: float) -> TopKAnswer:
        """The answer to the one question; re-scores."""
        if self.error is not None:
            raise self.error
        started = time.perf_counter()
        (member,) = self.members
        ends = self._selection.ends()
        return self._answer(member, view, ends, slice(None), (scan_s, time.perf_counter() - started))

    def finish_batch(self, view: CollectionView, scan_s: float) -> None:
        """Answers all questions at once, or sets ``error``, which need not be that of each."""
        try:
            self._finish_batch(view, scan_s)
        except CovectorError as error:
            self.error = error

    def tell(self) -> None:
        """Each its answer; None if together they were not answered: it is to be asked alone."""
        for place, member in enumerate(self.members):
            member.waiting.succeed(None if self.error is not None else self.found[place])

    def _finish_batch(self, view: CollectionView, scan_s: float) -> None:
        if self.error is not None:
            return
        started = time.perf_counter()
        row_ids = self._selection.finish()
        rows = _details(view, row_ids, BATCH_BYTES * len(self.members))
        keys = view.keys_of(row_ids) if rows is None else [row.key for row in rows.values()]
        ends = self._selection.named(dict(zip(row_ids.tolist(), keys, strict=True)))
        took_s = scan_s, time.perf_counter() - started
        start = 0
        for member in self.members:
            results = slice(start, start + member.plan.result_count)
            self.found.append(Found(self._answer(member, view, ends[results], results, took_s), rows))
            start = results.stop

    def _answer(
        self,
        member: Member,
        view: CollectionView,
        ends: tuple[Ends, ...],
        results: slice,
        took_s: tuple[float, float],
    ) -> TopKAnswer:
        rescored_count = int(self._selection.rescored_counts[results].sum())
        hit_count = sum(len(end.keys) for both in ends for end in (both.proponents, both.opponents))
        stages = (
            Stage("filter", view.row_count, view.row_count, 0.0),
            Stage("scan", self._selection.scanned_count, rescored_count, took_s[0]),
            Stage("rescore", rescored_count, hit_count, took_s[1]),
        )
        wanted = tuple(both.behind(member.waiting.offset) for both in ends)
        return TopKAnswer(wanted, stages, member.waiting.question.scorer, reason=member.reason)


def _details(view: CollectionView, row_ids: RowIds, bytes_max: int) -> dict[int, RowDetails] | None:
    """What is stored with some rows, by row id in their order; None if it is too much."""
    found: list[RowDetails] = []
    left_bytes = bytes_max
    for start in range(0, len(row_ids), ROWS_AT_ONCE):
        found += view.details_of(row_ids[start : start + ROWS_AT_ONCE])
        left_bytes -= sum(len(row.text or "") + len(row.metadata_json or b"") for row in found[start:])
        if left_bytes < 0:
            return None
    return dict(zip(row_ids.tolist(), found, strict=True))


def together(plans: Sequence[Plan]) -> Plan:
    """One plan with the groups of all, which differ in nothing else."""
    if len(plans) == 1:
        return plans[0]
    return replace(plans[0], terms=tuple(_joined(terms) for terms in zip(*(plan.terms for plan in plans), strict=True)))


def _joined(terms: tuple[Term, ...]) -> Term:
    return replace(
        terms[0],
        vectors=np.concatenate([term.vectors for term in terms]),
        narrow=np.concatenate([term.narrow for term in terms]),
        packed=np.concatenate([term.packed for term in terms]),
        coefficients=np.concatenate([term.coefficients for term in terms]),
        reaches=np.concatenate([term.reaches for term in terms]),
    )
