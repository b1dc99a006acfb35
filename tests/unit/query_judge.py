"""The slow twin of a query: decoded rows in float64, one score at a time, and Python's sort."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from covector_server.query.question import End, Question
from covector_server.testing.memory import MemoryCheckpoint, MemoryCollection

LOSS_AGAINST_MARGIN = {"loss", "margin"}


def decoded(checkpoint: MemoryCheckpoint) -> dict[int, np.ndarray]:
    """float64 gradients by row id, as they are stored."""
    tile = checkpoint.stored
    wide = tile.rows.astype(np.float64) * tile.scales.astype(np.float64)[:, None]
    return dict(zip(tile.row_ids.tolist(), wide, strict=True))


def all_scores(view: MemoryCollection, question: Question, kept: set[int] | None = None) -> list[dict[int, float]]:
    """Each result's scores by row id."""
    names = [choice.name for choice in question.checkpoints] or list(view.checkpoints)
    checkpoints = [view.checkpoints[name] for name in names]
    stored = [decoded(checkpoint) for checkpoint in checkpoints]
    present = [set(rows) for rows in stored]
    row_ids = set.union(*present) if question.missing == "zero" else set.intersection(*present)
    groups = list(range(question.vectors.shape[1])) if question.groups is None else list(question.groups)
    by_group = [
        {
            row_id: sum(
                _checkpoint_score(question, place, checkpoint, rows[row_id], groups, group, len(checkpoints))
                for place, (checkpoint, rows) in enumerate(zip(checkpoints, stored, strict=True))
                if row_id in rows
            )
            for row_id in row_ids
            if kept is None or row_id in kept
        }
        for group in range(max(groups) + 1)
    ]
    if question.reduce is None:
        return by_group
    combine = np.mean if question.reduce == "mean" else np.max
    return [{row_id: float(combine([scores[row_id] for scores in by_group])) for row_id in by_group[0]}]


def _checkpoint_score(
    question: Question,
    place: int,
    checkpoint: MemoryCheckpoint,
    row: np.ndarray,
    groups: Sequence[int],
    group: int,
    checkpoint_count: int,
) -> float:
    queries = [question.vectors[place, i].astype(np.float64) for i, g in enumerate(groups) if g == group]
    single = float(np.mean([_pair_score(question.scorer, query, row) for query in queries]))
    weighted = checkpoint_count > 1 or question.scorer == "tracin"
    turned = {checkpoint.kind.function, question.kind.function} == LOSS_AGAINST_MARGIN
    return (checkpoint.eta if weighted else 1.0) * (-1.0 if turned else 1.0) * single


def _pair_score(scorer: str, query: np.ndarray, row: np.ndarray) -> float:
    product = float(np.dot(query, row))
    if scorer != "cosine":
        return product
    size = float(np.linalg.norm(query)) * float(np.linalg.norm(row))
    return product / size if size else 0.0


def tolerance(view: MemoryCollection, question: Question, relative: float) -> float:
    """``relative`` times the largest |q||g|, summed over checkpoints with their eta."""
    if question.scorer == "cosine":
        return relative * sum(abs(checkpoint.eta) for checkpoint in view.checkpoints.values())
    names = [choice.name for choice in question.checkpoints] or list(view.checkpoints)
    return relative * sum(
        max(abs(view.checkpoints[name].eta), 1.0)
        * max(float(np.linalg.norm(row)) for row in decoded(view.checkpoints[name]).values())
        * max(float(np.linalg.norm(query.astype(np.float64))) for query in queries)
        for name, queries in zip(names, question.vectors, strict=True)
    )


def check_end(view: MemoryCollection, end: End, expected: dict[int, float], k: int, turn: float, slack: float) -> None:
    """Asserts that an end is the judge's: in order, by key among equal ones, and with nothing better left out, where
    ``slack`` is what float64 sums in another order may differ by."""
    order = sorted(expected, key=lambda row_id: (-turn * expected[row_id], view.rows[row_id].key))
    assert len(end.row_ids) == min(k, len(order))
    assert len(set(end.row_ids.tolist())) == len(end.row_ids)
    assert end.keys == [view.rows[row_id].key for row_id in end.row_ids]
    wanted = np.array([expected[row_id] for row_id in order[: len(end.row_ids)]])
    np.testing.assert_allclose(end.scores, [expected[row_id] for row_id in end.row_ids], rtol=0, atol=slack)
    np.testing.assert_allclose(end.scores, wanted, rtol=0, atol=slack)
    in_order = [(-turn * score, key) for score, key in zip(end.scores.tolist(), end.keys, strict=True)]
    assert in_order == sorted(in_order)
