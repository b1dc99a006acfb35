"""Sketches of whole gradients against the definition of the count-sketch, in integers of Python, element by element."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from covector.gradients import flat
from covector.gradients.flat import sketch_rows
from covector.gradients.sketch import CountSketch

WRAP = (1 << 64) - 1


def draw(seed: int, name: str, element: int) -> int:
    """SplitMix64, as the module ``hashing`` describes it."""
    key = int.from_bytes(hashlib.sha256(f"covector/1/{seed}/{name}".encode()).digest()[:8], "little")
    z = (key + (element + 1) * 0x9E3779B97F4A7C15) & WRAP
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WRAP
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WRAP
    return (z ^ (z >> 31)) >> 1


@pytest.mark.parametrize(("dim", "seed", "name"), [(16, 0, "gradient"), (7, 3, "layer.weight")])
def test_each_coordinate_goes_to_its_bucket_with_its_sign(dim: int, seed: int, name: str) -> None:
    gradients = np.random.default_rng(1).standard_normal((4, 50)).astype(np.float32)
    expected = np.zeros((4, dim))
    for element in range(50):
        slot = draw(seed, name, element) % (2 * dim)
        expected[:, slot // 2] += gradients[:, element] * (1 if slot % 2 == 0 else -1)
    found = sketch_rows(gradients, CountSketch(dim=dim, seed=seed), name)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = np.random.default_rng(1).standard_normal((9, 50)).astype(np.float16)
    whole = sketch_rows(gradients, CountSketch(dim=8))
    monkeypatch.setattr(flat, "BATCH_ELEMENTS", 100)
    np.testing.assert_array_equal(sketch_rows(gradients, CountSketch(dim=8)), whole)
    assert whole.dtype == np.float32
