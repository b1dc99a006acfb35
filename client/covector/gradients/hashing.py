"""Random numbers by counter: the same on every device, in any chunking, whatever the dtype of the gradients.

Version 1 of the generator, in integers of 64 bits that wrap around:

    key(seed, label) = the first 8 bytes, little-endian, of SHA-256(b"covector/1/" + str(seed) + b"/" + label in UTF-8)
    z = key + (i + 1) * 0x9E3779B97F4A7C15                          for element i = 0, 1, 2, ...
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    draw(i) = (z ^ (z >> 31)) >> 1                                  a number of 63 bits; shifts bring in zeros

(SplitMix64: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".) A number below n is
``draw(i) mod n``; its bias is at most n / 2^63. torch has no unsigned 64-bit arithmetic on every device, so int64 is
used: additions and multiplications have the same bits, and a shift is followed by a mask.
"""

from __future__ import annotations

import hashlib

import torch

GENERATOR_VERSION = 1

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def key_of(seed: int, label: str) -> int:
    """The 64-bit key of a stream of numbers, as a signed integer."""
    digest = hashlib.sha256(b"covector/1/" + str(seed).encode() + b"/" + label.encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def draws(key: int, elements: torch.Tensor) -> torch.Tensor:
    """The 63-bit numbers, int64[...], of ``elements`` (int64[...], element indices) in the stream ``key``."""
    z = elements + 1
    z *= _signed(_GOLDEN)
    z += key
    for shift, multiplier in _MIX:
        z ^= _shifted(z, shift)
        z *= _signed(multiplier)
    z ^= _shifted(z, 31)
    return _shifted(z, 1)


def draws_below(bound: int, key: int, elements: torch.Tensor) -> torch.Tensor:
    """Numbers in [0, bound) of ``elements``, int64[...]."""
    found = draws(key, elements)
    return found.bitwise_and_(bound - 1) if bound & (bound - 1) == 0 else found.remainder_(bound)


def signs(key: int, count: int, device: torch.device) -> torch.Tensor:
    """Rademacher numbers of the elements 0 .. count - 1: float32[count], +1 for an even draw, -1 for an odd one."""
    parity = draws(key, torch.arange(count, device=device)) & 1
    return 1.0 - 2.0 * parity.to(torch.float32)


def _shifted(z: torch.Tensor, bits: int) -> torch.Tensor:
    """``z`` shifted right by ``bits``, zeros coming in from the left."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
