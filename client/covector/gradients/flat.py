"""Sketches of gradients that lie whole in an array: what a smaller dim would have kept of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from covector.gradients.contributions import Target, Vector
from covector.gradients.sketch import CountSketch

BATCH_ELEMENTS = 1 << 24  # of gradients that are sketched at once


def sketch_rows(gradients: npt.ArrayLike, projection: CountSketch, name: str = "gradient") -> npt.NDArray[np.float32]:
    """float[n, p] -> float32[n, dim]: the count-sketch of rows whose p coordinates are one parameter called ``name``,
    as ``GradientModel`` would take it of a model with this parameter alone."""
    wide = np.asarray(gradients)
    target = Target(name, nn.Parameter(torch.empty(wide.shape[1], device="meta")))
    plan = projection.plan([target])
    found = np.empty((len(wide), projection.dim), dtype=np.float32)
    step = max(1, BATCH_ELEMENTS // max(wide.shape[1], 2 * projection.dim))
    for start in range(0, len(wide), step):
        rows = torch.from_numpy(np.array(wide[start : start + step], dtype=np.float32))
        total = plan.start(len(rows), rows.device)
        plan.add(total, target, Vector(rows))
        found[start : start + step] = plan.finish(total).numpy()
    return found
