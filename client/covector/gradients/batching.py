"""Which rows go through the model together, and what happens when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from covector.errors import LimitExceeded
from covector.gradients.examples import TokenRow

_log = logging.getLogger("covector.gradients")
Result = TypeVar("Result")


class Batcher:
    """Batches of at most ``rows_max`` rows and ``tokens_max`` padded tokens (one row at least).

    A batch that does not fit in memory is computed in halves, and later ones are made no larger than what failed less
    half.
    """

    def __init__(self, *, rows_max: int, tokens_max: int) -> None:
        self._rows_max = rows_max
        self._tokens_max = tokens_max

    def batches(self, rows: Sequence[TokenRow]) -> Iterator[list[int]]:
        """Positions of the rows of each batch; rows of like length go together, the longest first, so that memory
        runs out at the start if it does."""
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index].tokens))
        while order:
            fitting = max(1, self._tokens_max // len(rows[order[0]].tokens))
            count = min(self._rows_max, fitting)
            yield order[:count]
            order = order[count:]

    def run(self, rows: Sequence[TokenRow], compute: Callable[[Sequence[TokenRow]], Result]) -> list[Result]:
        """``compute`` of the rows: one result, or several for consecutive parts of them if memory ran out.

        Raises LimitExceeded if memory does not suffice for one row.
        """
        try:
            return [compute(rows)]
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            failure = str(error).splitlines()[0] if str(error) else type(error).__name__
        tokens = max(len(row.tokens) for row in rows)
        if len(rows) == 1:
            raise LimitExceeded(f"memory does not suffice for one row of {tokens} tokens ({failure}); lower max_length")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = len(rows) // 2
        self._rows_max = min(self._rows_max, max(half, 1))
        self._tokens_max = min(self._tokens_max, half * tokens)
        _log.warning("memory ran out with %d rows of up to %d tokens; going on with %d rows", len(rows), tokens, half)
        return self.run(rows[:half], compute) + self.run(rows[half:], compute)


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
    )
