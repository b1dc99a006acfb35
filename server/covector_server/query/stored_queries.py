"""Stored rows as queries: rows like these, and every row as its own query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from covector.attribution.scoring import Float64, RowFacts, Scorer, dots, norms, to_float32
from covector.blocks import decode_key
from covector.errors import InvalidInput, NotFound
from covector.types import GradientKind
from covector_server.query.cancellation import Cancelled, check_cancelled
from covector_server.query.checkpoints import checkpoints_of
from covector_server.query.fitted import scorers_of
from covector_server.query.question import Missing, Question, ScoreBlock
from covector_server.storage.damage import OnDamage
from covector_server.storage.view import CheckpointView, CollectionView, Tile

RANGE_ROWS = 1 << 18  # row ids whose sums are kept at once
TILE_ELEMENTS = 1 << 20  # of float64 rows at once

Mask = npt.NDArray[np.bool_]


def with_stored_vectors(view: CollectionView, question: Question, keys: Sequence[bytes]) -> Question:
    """The question with the stored gradients of rows, by encoded key, as its vectors, at each of its checkpoints.

    Raises NotFound for an unknown key, InvalidInput for a row without a gradient at one of the checkpoints, and Corrupt
    for a damaged one: a query that cannot be read has no answer.
    """
    row_ids = view.row_ids_of(keys)
    unknown = np.flatnonzero(row_ids < 0)
    if len(unknown):
        key = decode_key(keys[int(unknown[0])])
        raise NotFound(f"no row {key!r} in {view.name!r}: it cannot be a query", key=key)
    checkpoints = checkpoints_of(view, question)
    vectors = [_gradients(checkpoint, row_ids, keys) for checkpoint in checkpoints]
    kinds = {checkpoint.kind for checkpoint in checkpoints}
    kind = kinds.pop() if len(kinds) == 1 else GradientKind()
    return replace(question, vectors=np.stack(vectors), kind=kind)


def _gradients(
    checkpoint: CheckpointView, row_ids: npt.NDArray[np.int64], keys: Sequence[bytes]
) -> npt.NDArray[np.float32]:
    absent = np.flatnonzero(~checkpoint.has(row_ids))
    if len(absent):
        key = decode_key(keys[int(absent[0])])
        raise InvalidInput(f"row {key!r} has no gradient at checkpoint {checkpoint.name!r}: it cannot be a query")
    tile = checkpoint.gather(row_ids)
    wide = tile.rows.astype(np.float64) * tile.scales[:, None]
    return to_float32(wide)


@dataclass(frozen=True, slots=True)
class SelfScan:
    """What is asked of every row: its own score. ``mask``: bool[row_id_count], None for all rows."""

    terms: tuple[tuple[CheckpointView, Scorer, float], ...]  # with its weight in the sum
    missing: Missing
    mask: Mask | None
    dim: int
    row_id_count: int
    cancelled: Cancelled
    on_damage: OnDamage | None


def plan_self_scan(
    view: CollectionView, question: Question, mask: Mask | None, cancelled: Cancelled, on_damage: OnDamage | None
) -> SelfScan:
    """Raises NotFound for an unknown scorer or checkpoint, and as ``FitUse.scorers`` does."""
    checkpoints = checkpoints_of(view, question)
    scorers = scorers_of(view, question, checkpoints)
    weights = scorers[0].checkpoint_weights([checkpoint.eta for checkpoint in checkpoints])
    terms = tuple(zip(checkpoints, scorers, weights, strict=True))
    return SelfScan(terms, question.missing, mask, view.space.dim, view.row_id_count, cancelled, on_damage)


def self_scores(scan: SelfScan) -> Iterator[ScoreBlock]:
    """What each row scores as its own query: float32[1, n] blocks, row ids ascending; summed in float64."""
    rows_max = max(1, TILE_ELEMENTS // scan.dim)
    for low in range(0, scan.row_id_count, RANGE_ROWS):
        high = min(low + RANGE_ROWS, scan.row_id_count)
        total, seen = np.zeros(high - low), np.zeros(high - low, dtype=np.int32)
        for checkpoint, scorer, weight in scan.terms:
            for tile in checkpoint.tiles(rows_max, (low, high), scan.on_damage):
                check_cancelled(scan.cancelled)
                total[tile.row_ids - low] += weight * _own_scores(scorer, tile)
                seen[tile.row_ids - low] += 1
        places = np.flatnonzero(_is_whole(scan, seen, low))
        if len(places):
            yield ScoreBlock(places + low, to_float32(total[places])[None, :])


def _own_scores(scorer: Scorer, tile: Tile) -> Float64:
    rows = tile.rows.astype(np.float64)
    queries = scorer.prepare(rows * tile.scales[:, None])
    return dots(queries, rows) * scorer.row_factor(RowFacts(norms(rows), tile.scales, tile.trak_q, tile.row_ids))


def _is_whole(scan: SelfScan, seen: npt.NDArray[np.int32], low: int) -> Mask:
    """Which rows from ``low`` on are asked about and lack no summand: a damaged one is not a missing one."""
    whole: Mask = seen == len(scan.terms)
    if scan.missing == "zero":
        partial = np.flatnonzero((seen > 0) & ~whole)
        whole = seen > 0
        if scan.on_damage is not None and len(partial):
            has = [checkpoint.has(partial + low, scan.on_damage) for checkpoint, _, _ in scan.terms]
            whole[partial[np.sum(has, axis=0) > seen[partial]]] = False
    if scan.mask is not None:
        whole &= scan.mask[low : low + len(seen)]
    return whole
