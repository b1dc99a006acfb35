"""Runs a question: filter, scan, re-score, both ends; or the scores of every row."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from covector.attribution.scoring import to_float32
from covector.errors import InvalidInput
from covector.types import Stage
from covector_server.limits import Limits
from covector_server.query.cancellation import Cancelled, check_cancelled, never
from covector_server.query.filter import find_rows
from covector_server.query.planner import plan_question
from covector_server.query.question import Question, ScoreBlock, TopKAnswer
from covector_server.query.scan import Mask, blocks_by_arrival, blocks_by_row_id
from covector_server.query.topk import Selection
from covector_server.storage.view import CollectionView


@dataclass(frozen=True, slots=True)
class ScoreStream:
    """The scores of all rows, in blocks with ascending row ids; ``blocks`` can be read once."""

    result_count: int
    scorer: str
    blocks: Iterator[ScoreBlock]


def top_k(
    view: CollectionView, question: Question, k: int, *, limits: Limits | None = None, cancelled: Cancelled = never
) -> TopKAnswer:
    """Both ends, k rows each, of every result; exact.

    The stages count rows over all results: a row that is re-scored for two of them counts twice. Raises as
    ``plan_question`` and ``find_rows`` do, LimitExceeded for too large a k, Unavailable once ``cancelled`` says so,
    and Corrupt if a stored chunk is.
    """
    limits = limits or Limits()
    if k < 1:
        raise InvalidInput(f"k must be at least 1, not {k}", field="k")
    limits.check("hits", k, "too many hits are asked for")
    plan = plan_question(view, question, limits)
    limits.check("result_hits", 2 * k * plan.result_count, "hits of all results together")
    mask, filter_stage = _filter(view, question, limits, cancelled)
    selection = Selection(plan, k, view.keys_of)
    scan_s = rescore_s = 0.0
    scanned_count = 0
    started = time.perf_counter()
    for block in blocks_by_arrival(plan, mask, view.row_id_count, cancelled):
        scanned = time.perf_counter()
        selection.offer(block, cancelled)
        scan_s, rescore_s = scan_s + scanned - started, rescore_s + time.perf_counter() - scanned
        scanned_count += len(block.row_ids)
        started = time.perf_counter()
    results = selection.ends()
    rescore_s += time.perf_counter() - started
    hit_count = sum(len(end.keys) for ends in results for end in (ends.proponents, ends.opponents))
    scan = Stage("scan", scanned_count, selection.rescored_count, scan_s)
    rescore = Stage("rescore", selection.rescored_count, hit_count, rescore_s)
    return TopKAnswer(results, (filter_stage, scan, rescore), question.scorer)


def scores(
    view: CollectionView, question: Question, *, limits: Limits | None = None, cancelled: Cancelled = never
) -> ScoreStream:
    """The scores of every row that has a gradient, within the error of float32 products; see ``kernel``. A score past
    the range of float32 leaves as its largest number.

    Raises as ``top_k`` does: what is wrong with the question here, the rest while the blocks are read.
    """
    limits = limits or Limits()
    plan = plan_question(view, question, limits)
    mask, _ = _filter(view, question, limits, cancelled)
    blocks = (
        ScoreBlock(block.row_ids, to_float32(plan.reduced(block.approximate)))
        for block in blocks_by_row_id(plan, mask, view.row_id_count, cancelled)
    )
    return ScoreStream(plan.result_count, question.scorer, blocks)


def count_rows(
    view: CollectionView, where: Mapping[str, Any] | None, *, limits: Limits, cancelled: Cancelled = never
) -> int:
    """How many rows a filter holds for; all of them without one."""
    if where is None:
        return view.row_count
    return find_rows(view, where, limits, cancelled).count


def _filter(
    view: CollectionView, question: Question, limits: Limits, cancelled: Cancelled
) -> tuple[Mask | None, Stage]:
    check_cancelled(cancelled)
    started = time.perf_counter()
    matches = None if question.where is None else find_rows(view, question.where, limits, cancelled)
    mask, row_count = (None, view.row_count) if matches is None else (matches.mask(), matches.count)
    return mask, Stage("filter", view.row_count, row_count, time.perf_counter() - started)
