"""64-bit hashes of encoded keys, a batch at a time.

A hash only finds candidates: whoever asks compares the keys themselves. So it need not be cryptographic, only well
mixed and the same for ever, since runs of the key table hold it on disk: version 1 below is frozen, and golden hashes
stand in the tests.

Version 1. A key is cut into little-endian 64-bit words, the last one padded with zeros. From h = GOLDEN * length, each
word in turn makes h = mix(h ^ word) + GOLDEN; mix is the finaliser of splitmix64 (Steele, Lea, Flood 2014).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from covector.blocks import Column
from covector_server.kernels import keys as kernels

Hashes = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E37_79B9_7F4A_7C15)
_MULTIPLY_1, _MULTIPLY_2 = np.uint64(0xBF58_476D_1CE4_E5B9), np.uint64(0x94D0_49BB_1331_11EB)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)
_PADDED_BYTES = 4 << 20  # of keys padded to one length at once


def hash_keys(keys: Column) -> Hashes:
    """uint64[rows]: the hashes of the encoded keys in a column."""
    return kernels.hash_keys(keys.data, keys.ends) if kernels.IS_COMPILED else hash_keys_in_numpy(keys)


def hash_keys_in_numpy(keys: Column) -> Hashes:
    """The same without the compiled library."""
    ends = keys.ends.astype(np.int64)
    starts = np.concatenate([np.zeros(1, dtype=np.int64), ends])[:-1]
    lengths = ends - starts
    data = np.frombuffer(keys.data, np.uint8)
    hashes = np.empty(len(lengths), dtype=np.uint64)
    longest = int(lengths.max(initial=0))
    step = max(1, _PADDED_BYTES // (longest + 8))
    for first in range(0, len(lengths), step):
        rows = slice(first, first + step)
        hashes[rows] = _hash_padded(_padded(data, starts[rows], lengths[rows], longest), lengths[rows])
    return hashes


def _padded(
    data: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], longest: int
) -> npt.NDArray[np.uint64]:
    """uint64[words, rows]: the keys' words, zeros behind their ends."""
    word_count = max(1, -(-longest // 8))
    wide = np.zeros((len(lengths), 8 * word_count), dtype=np.uint8)
    if len(lengths) and longest and int(lengths.min()) == longest:
        wide[:, :longest] = data[starts[0] : starts[0] + longest * len(lengths)].reshape(-1, longest)
    else:
        within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        wide[rows, within] = data[np.repeat(starts, lengths) + within]
    return np.ascontiguousarray(wide.view("<u8").T).astype(np.uint64, copy=False)


def _hash_padded(words: npt.NDArray[np.uint64], lengths: npt.NDArray[np.int64]) -> Hashes:
    hashes = lengths.astype(np.uint64) * _GOLDEN
    shortest = int(lengths.min(initial=0))
    for place, word in enumerate(words):
        mixed = _mixed(hashes ^ word)
        mixed += _GOLDEN
        hashes = mixed if 8 * place < shortest else np.where(lengths > 8 * place, mixed, hashes)
    return hashes


def _mixed(hashes: Hashes) -> Hashes:
    """splitmix64's finaliser, in place."""
    hashes ^= hashes >> _SHIFT_1
    hashes *= _MULTIPLY_1
    hashes ^= hashes >> _SHIFT_2
    hashes *= _MULTIPLY_2
    hashes ^= hashes >> _SHIFT_3
    return hashes
