"""Rows as fits and scorers take them: in blocks, each row a unit-RMS vector and its scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from covector.attribution.scoring import Float64, finite_rows, split_scale
from covector.errors import InvalidInput
from covector.types import Gradients

BLOCK_BYTES = 32 << 20  # of float64 rows in a block of an array
PIECE_ROWS = 64  # that are widened to float64 at once


class RowBlock(Protocol):
    """Some rows of a checkpoint: gradient[i] = scales[i] * rows[i]. The server's tiles are such blocks."""

    @property
    def rows(self) -> npt.NDArray[Any]:
        """float16, float32 or float64 [n, dim], at about unit RMS; finite."""
        ...

    @property
    def scales(self) -> npt.NDArray[Any]:
        """float[n], 0 for an all-zero row."""
        ...

    @property
    def trak_q(self) -> npt.NDArray[Any]:
        """float[n], NaN where not given."""
        ...


@dataclass(frozen=True, slots=True)
class ArrayBlock:
    """A block of an array: ``RowBlock``."""

    rows: npt.NDArray[Any]
    scales: npt.NDArray[Any]
    trak_q: npt.NDArray[Any]


def blocks_of(rows: npt.ArrayLike | Gradients, trak_q: npt.ArrayLike | None = None) -> Iterator[ArrayBlock]:
    """The rows of an array, float[n, dim], in blocks of bounded size, in float64. ``trak_q``: float[n]; by default that
    of ``Gradients``. Raises InvalidInput for arrays that are not finite or do not fit."""
    given = rows.values if isinstance(rows, Gradients) else np.asarray(rows)
    weights = trak_q_of(rows, trak_q, len(given))
    step = max(1, BLOCK_BYTES // (8 * max(given.shape[-1], 1)))
    for start in range(0, len(given), step):
        unit, scales = split_scale(finite_rows("rows", given[start : start + step], start))
        yield ArrayBlock(unit, scales, weights[start : start + step])


def trak_q_of(rows: npt.ArrayLike | Gradients, trak_q: npt.ArrayLike | None, row_count: int) -> Float64:
    """Q of each row, float64[row_count], NaN where it is not given."""
    own = rows.trak_q if isinstance(rows, Gradients) and trak_q is None else trak_q
    if own is None:
        return np.full(row_count, np.nan)
    weights = np.asarray(own, dtype=np.float64)
    if weights.shape != (row_count,):
        raise InvalidInput(
            f"trak_q must be float[{row_count}], one a row, not of shape {weights.shape}", field="trak_q"
        )
    return weights


def layer_squares(rows: npt.NDArray[Any], spans: Sequence[tuple[int, int]]) -> Float64:
    """float64[n, layers]: the squared norms of each row's layers, of rows at about unit RMS."""
    found = np.empty((len(rows), len(spans)))
    for start in range(0, len(rows), PIECE_ROWS):
        piece = rows[start : start + PIECE_ROWS]
        for number, (left, right) in enumerate(spans):
            part = piece[:, left:right].astype(np.float64)
            found[start : start + PIECE_ROWS, number] = np.vecdot(part, part)
    return found


def row_norms(rows: npt.NDArray[Any]) -> Float64:
    """The 2-norms of rows at about unit RMS, float64[n]."""
    return np.sqrt(layer_squares(rows, [(0, rows.shape[1])])[:, 0])


def check_trak_q(trak_q: npt.NDArray[Any]) -> None:
    """Raises InvalidInput unless every row has its Q."""
    absent = np.flatnonzero(~np.isfinite(trak_q))
    if len(absent):
        raise InvalidInput(
            f"trak needs trak_q (1 - p of the right answer) of every row; {len(absent)} of {len(trak_q)} have none, "
            f"the first at position {absent[0]}. Write it with the rows: writer.add(..., trak_q=...), or collect with "
            'GradientModel(output="margin")',
            field="trak_q",
        )
