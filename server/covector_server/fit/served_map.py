"""A map A as a server applies it: what a question of one vector reads of a dense A is half of it."""

from __future__ import annotations

import numpy as np

from covector.attribution.preconditioner import ByLayer, Dense, Preconditioner
from covector.attribution.scoring import Float64
from covector_server.kernels.symmetric import symmetric_product


class SymmetricDense(Dense):
    """A dense A, contiguous: symmetric, as every A is."""

    def apply(self, vectors: Float64) -> Float64:
        """A v of each row v, float64. Sums are as exact as those of ``Dense``, in another order."""
        if len(vectors) != 1:
            return super().apply(vectors)
        return symmetric_product(self.unit, vectors[0])[None] * self.scale


def served(preconditioner: Preconditioner) -> Preconditioner:
    """The same map, with the products of a server."""
    if isinstance(preconditioner, ByLayer):
        return ByLayer([(start, stop, served(part)) for start, stop, part in preconditioner.parts])
    if isinstance(preconditioner, Dense) and preconditioner.unit.flags.c_contiguous:
        return SymmetricDense(preconditioner.unit.astype(np.float64, copy=False), preconditioner.scale)
    return preconditioner
