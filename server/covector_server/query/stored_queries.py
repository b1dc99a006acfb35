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
from covector_server.query.cancellation import Cancelled
from covector_server.query.checkpoints import checkpoints_of, whole_sums
from covector_server.query.fitted import scorers_of
from covector_server.query.question import Missing, Question, ScoreBlock
from covector_server.query.reading import each_strip
from covector_server.query.workers import Workers
from covector_server.storage.damage import OnDamage
from covector_server.storage.view import CheckpointView, CollectionView, RowIds, Strip

RANGE_ROWS = 1 << 18  # row ids whose sums are kept at once
STRIP_ROWS = 1 << 12
WIDE_ELEMENTS = 1 << 20  # of float64 rows at once, a thread

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
class SelfTerm:
    """One checkpoint's share of the rows' own scores. ``weight``: of the checkpoint in the sum."""

    view: CheckpointView
    scorer: Scorer
    weight: float

    def scores(self, strip: Strip) -> Float64:
        """What each row scores as its own query, float64[n]: in float64, some rows at a time."""
        step = max(1, WIDE_ELEMENTS // strip.rows.dim)
        starts = range(0, len(strip.row_ids), step)
        return self.weight * np.concatenate([self._some(strip, slice(start, start + step)) for start in starts])

    def _some(self, strip: Strip, span: slice) -> Float64:
        rows = strip.rows.copied_span(span.start, span.stop).astype(np.float64)
        scales, trak_q, row_ids = strip.scales[span], strip.trak_q[span], strip.row_ids[span]
        queries = self.scorer.prepare(rows * scales[:, None])
        return dots(queries, rows) * self.scorer.row_factor(RowFacts(norms(rows), scales, trak_q, row_ids))


@dataclass(frozen=True, slots=True)
class SelfScan:
    """What is asked of every row: its own score. ``mask``: bool[row_id_count], None for all rows. The rest is as in
    ``scan.Scan``."""

    terms: tuple[SelfTerm, ...]
    missing: Missing
    mask: Mask | None
    row_id_count: int
    cancelled: Cancelled
    on_damage: OnDamage | None
    workers: Workers | None


def self_terms(view: CollectionView, question: Question) -> tuple[SelfTerm, ...]:
    """Raises NotFound for an unknown scorer or checkpoint, and as ``FitUse.scorers`` does."""
    checkpoints = checkpoints_of(view, question)
    scorers = scorers_of(view, question, checkpoints)
    weights = scorers[0].checkpoint_weights([checkpoint.eta for checkpoint in checkpoints])
    return tuple(SelfTerm(*each) for each in zip(checkpoints, scorers, weights, strict=True))


def self_scores(scan: SelfScan) -> Iterator[ScoreBlock]:
    """What each row scores as its own query: float32[1, n] blocks, row ids ascending; summed in float64."""
    for low in range(0, scan.row_id_count, RANGE_ROWS):
        row_ids = np.arange(low, min(low + RANGE_ROWS, scan.row_id_count))
        total, seen = _sums(scan, row_ids)
        places = whole_sums([term.view for term in scan.terms], scan.missing, seen, row_ids, scan.on_damage)
        if scan.mask is not None:
            places = places[scan.mask[row_ids[places]]]
        if len(places):
            yield ScoreBlock(row_ids[places], to_float32(total[places])[None, :])


def _sums(scan: SelfScan, row_ids: RowIds) -> tuple[Float64, npt.NDArray[np.int32]]:
    """The sums over checkpoints of consecutive rows, and at how many each was seen."""
    low, high = int(row_ids[0]), int(row_ids[-1]) + 1
    total, seen = np.zeros(len(row_ids)), np.zeros(len(row_ids), dtype=np.int32)
    for term in scan.terms:

        def add(strip: Strip, term: SelfTerm = term) -> None:
            """No two strips of a checkpoint have a row in common, so threads never meet."""
            total[strip.row_ids - low] += term.scores(strip)
            seen[strip.row_ids - low] += 1

        each_strip(scan, term.view.strips(STRIP_ROWS, (low, high)), add)
    return total, seen
