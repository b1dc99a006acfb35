"""Filters of keys: a 64-bit word for about four keys, four bits of it for each. Fewer than one absent key in a hundred
passes (a register-blocked Bloom filter; Putze, Sanders and Singler 2009).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from covector_server.kernels import keys as kernels
from covector_server.storage.key_hash import Hashes

Words = npt.NDArray[np.uint64]
KEYS_PER_WORD: Final = 4


def filter_bits(hashes: Hashes) -> Words:
    """The four bits of a filter's word that say that a key may be there."""
    one, low = np.uint64(1), np.uint64(63)
    bits = one << (hashes & low)
    for shift in (6, 12, 18):
        bits |= one << ((hashes >> np.uint64(shift)) & low)
    return bits


def may_hold(filter_: Words, hashes: Hashes) -> npt.NDArray[np.int64]:
    """The places of the keys that the filter lets pass, ascending."""
    if kernels.IS_COMPILED:
        return kernels.filter_passed(filter_, hashes)
    bits = filter_bits(hashes)
    return np.flatnonzero(filter_[word_of(hashes, len(filter_))] & bits == bits)


def add_to(filter_: Words, hashes: Hashes) -> None:
    """Lets keys pass."""
    np.bitwise_or.at(filter_, word_of(hashes, len(filter_)), filter_bits(hashes))


def word_of(hashes: Hashes, word_count: int) -> npt.NDArray[np.int64]:
    """Which word of the filter is a key's: by the upper half of its hash; its bits come from the lower half."""
    return ((hashes >> np.uint64(32)) * np.uint64(word_count) >> np.uint64(32)).astype(np.int64)
