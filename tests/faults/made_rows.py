"""Rows that follow from their keys: whoever meets a row can tell whether each part of it is the right one.

Text and metadata follow from the key, gradient and scale from (key, checkpoint, version). So a row of which one half
is another's, or an older one's, cannot pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.blocks import scale_rows

DIM = 64
Float32 = npt.NDArray[np.float32]
_COLUMNS = np.arange(DIM, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
Key = str | int


def key_of(stem: str, number: int) -> Key:
    """The key of a row: integers for a stem of digits, strings for others."""
    return int(stem) * 1_000_000 + number if stem.isdigit() else f"{stem}/{number}"


def keys_of(stem: str, numbers: Sequence[int] | range) -> list[Key]:
    return [key_of(stem, number) for number in numbers]


def text_of(key: Key) -> str | None:
    """The text of a row; some have none."""
    seed = _seed(key)
    return None if seed % 11 == 3 else f"the text of {key!r}: " + "word " * int(seed % 20)


def metadata_of(key: Key) -> dict[str, Any] | None:
    """The metadata of a row; some have none."""
    seed = _seed(key)
    return None if seed % 13 == 5 else {"seed": int(seed % 1_000_003), "kind": type(key).__name__, "odd": seed % 2 == 1}


def gradients_of(keys: Sequence[Key], checkpoint: str, version: int = 0) -> Float32:
    """float32[n, DIM]: magnitudes from 1e-4 to 1e4; some are zero."""
    seeds = np.array([_seed(key, checkpoint, str(version)) for key in keys], dtype=np.uint64)
    bits = seeds[:, None] + _COLUMNS[None]
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    values = (bits >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - 1
    magnitudes = np.float32(10.0) ** ((seeds % np.uint64(9)).astype(np.float32) - 4)
    return np.where((seeds % np.uint64(17) == 7)[:, None], np.float32(0), values * magnitudes[:, None])


def stored_gradients_of(keys: Sequence[Key], checkpoint: str, version: int = 0) -> Float32:
    """float32[n, DIM]: the gradients as a reader gets them back."""
    rows, scales = scale_rows(gradients_of(keys, checkpoint, version))
    return np.asarray(rows.astype(np.float32) * scales[:, None], dtype=np.float32)


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b("\0".join(map(repr, parts)).encode(), digest_size=8).digest(), "big")
