"""The rows of a result by the value of a metadata field: the best of each value, and what its rows score together."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from covector.attribution.scoring import Float64
from covector.types import Stage
from covector_server.kernels.topk import Scored
from covector_server.metadata.fields import Value
from covector_server.query.field_codes import FieldCodes
from covector_server.query.question import Ends
from covector_server.query.scan import Scan, scan_each
from covector_server.query.topk import Selection
from covector_server.storage.damage import Damage
from covector_server.storage.view import CollectionView


@dataclass(frozen=True, slots=True)
class Group:
    """The rows of one result with one value of the field, None for those without. ``score_sum``: of approximate scores,
    each within the bound of ``kernel``, added in float64."""

    value: Value
    row_count: int
    score_sum: float
    ends: Ends


Groups = tuple[tuple[Group, ...], ...]  # of each result, the largest sum first


@dataclass(frozen=True, slots=True)
class GroupedAnswer:
    """The groups of each result that have rows, the stages that found them, and what was left out. No index is used:
    every row counts in its group's sum."""

    results: Groups
    stages: tuple[Stage, ...]
    scorer: str
    damages: tuple[Damage, ...] = ()
    index: str = ""
    reason: str = "every row counts in the sum of its group"


@dataclass(slots=True)
class _Rows:
    """What is known of the rows of one value so far. ``sums``: float64[results]."""

    selection: Selection
    row_count: int
    sums: Float64

    def add(self, block: Scored, scores: Float64) -> None:
        """Takes a block of these rows, and the scores float64[results, n] of those that count."""
        self.selection.offer(block)
        self.row_count += scores.shape[1]
        self.sums += scores.sum(axis=1)


def select_groups(
    view: CollectionView, scan: Scan, k: int, coded: FieldCodes, lost: set[int]
) -> tuple[tuple[Groups, tuple[Stage, Stage]], bool]:
    """Scans once: the groups, the two stages, and whether every key that was needed could be read. ``lost``: as in
    ``Selection``; the sums leave out rows that are in it."""
    unnamed: list[Damage] = []
    note = None if scan.on_damage is None else unnamed.append
    rows: dict[int, _Rows] = {}
    adding = threading.Lock()

    def add(block: Scored) -> None:
        parts = list(_parts(scan, block, coded, lost))
        with adding:
            for code, part, counted in parts:
                if code not in rows:
                    selection = Selection(scan, k, lambda row_ids: view.keys_of(row_ids, note), lost)
                    rows[code] = _Rows(selection, 0, np.zeros(scan.plan.result_count))
                rows[code].add(part, counted)

    started = time.perf_counter()
    scan_each(scan, add)
    scanned = time.perf_counter()
    ends = {code: found.selection.ends() for code, found in rows.items()}
    groups = tuple(_ordered(rows, ends, coded, result) for result in range(scan.plan.result_count))
    scanned_count = sum(found.selection.scanned_count for found in rows.values())
    rescored_count = sum(found.selection.rescored_count for found in rows.values())
    hit_count = sum(
        len(end.keys) for result in groups for group in result for end in (group.ends.proponents, group.ends.opponents)
    )
    stages = (
        Stage("scan", scanned_count, rescored_count, scanned - started),
        Stage("rescore", rescored_count, hit_count, time.perf_counter() - scanned),
    )
    return (groups, stages), not unnamed


def _parts(scan: Scan, block: Scored, coded: FieldCodes, lost: set[int]) -> Iterator[tuple[int, Scored, Float64]]:
    """The rows of a block by their code, and the results' scores of those that are not lost."""
    scores, bounds = block.scores(), block.bounds()
    reduced = scan.plan.reduced(scores)
    codes = coded.codes[block.row_ids]
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        here = order[start:stop]
        sound = here if not lost else here[~np.isin(block.row_ids[here], list(lost))]
        part = Scored.plain(scores[:, here], bounds[:, here], block.row_ids[here])
        yield int(codes[here[0]]), part, reduced[:, sound]


def _ordered(
    rows: dict[int, _Rows], ends: dict[int, tuple[Ends, ...]], coded: FieldCodes, result: int
) -> tuple[Group, ...]:
    made = (
        Group(coded.values[code], found.row_count, float(found.sums[result]), ends[code][result])
        for code, found in sorted(rows.items())
    )
    return tuple(sorted(made, key=lambda group: -group.score_sum))
