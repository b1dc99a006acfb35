"""Rows for the ingest benchmarks: random gradients, random keys of 16 bytes, short texts. Needs numpy only.

The same seed makes the same rows, so that two databases are given the same. Gradients are cut from a pool of random
numbers at random places: as incompressible as fresh ones, and made faster than any server takes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

KEY_BYTES = 16
_ALPHABET = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", dtype=np.uint8)
_WORDS = [
    "the",
    "of",
    "a",
    "gradient",
    "row",
    "model",
    "learns",
    "that",
    "city",
    "river",
    "is",
    "in",
    "was",
    "by",
    "light",
    "cold",
    "north",
    "seven",
    "paper",
    "answer",
]
_TEXT_POOL = 4096
_GRADIENT_POOL = 1 << 22


@dataclass(frozen=True, slots=True)
class Rows:
    """keys: ASCII; texts: None if the rows have none; gradients: float16[n, dim]."""

    keys: list[bytes]
    texts: list[bytes] | None
    gradients: npt.NDArray[np.float16]

    @property
    def size_bytes(self) -> int:
        """What counts as ingested: keys, texts, gradients, and a float32 scale a row."""
        texts = 0 if self.texts is None else sum(map(len, self.texts))
        return len(self.keys) * (KEY_BYTES + 4) + texts + self.gradients.nbytes


class RowMaker:
    """Makes rows, other ones with each call."""

    def __init__(self, seed: int, dim: int, *, with_text: bool = True) -> None:
        self._random = np.random.default_rng(seed)
        self._dim = dim
        self._pool = self._random.standard_normal(_GRADIENT_POOL, dtype=np.float32).astype(np.float16)
        self._texts = [self._sentence() for _ in range(_TEXT_POOL)] if with_text else None

    def make(self, row_count: int) -> Rows:
        """``row_count`` rows; at most the pool's worth of gradients at once."""
        keys = _ALPHABET[self._random.integers(0, 64, KEY_BYTES * row_count, dtype=np.uint8)].tobytes()
        return Rows(
            keys=[keys[start : start + KEY_BYTES] for start in range(0, len(keys), KEY_BYTES)],
            texts=None if self._texts is None else self._some(self._texts, row_count),
            gradients=self._gradients(row_count),
        )

    def _gradients(self, row_count: int) -> npt.NDArray[np.float16]:
        size = row_count * self._dim
        start = int(self._random.integers(0, len(self._pool) - size + 1))
        return self._pool[start : start + size].reshape(row_count, self._dim)

    def _some(self, texts: list[bytes], row_count: int) -> list[bytes]:
        return [texts[i] for i in self._random.integers(0, len(texts), row_count).tolist()]

    def _sentence(self) -> bytes:
        words: Any = self._random.choice(_WORDS, size=int(self._random.integers(4, 10)))
        return " ".join(words.tolist()).encode()


def rows_per_batch(dim: int, batch_bytes: int = 1 << 20) -> int:
    """About as many rows as make a batch of this size; the rest of a row is put at 80 bytes."""
    return max(1, batch_bytes // (2 * dim + 80))
