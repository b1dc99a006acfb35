"""The functions of a row that are differentiated: each row's own, never a mean over its batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from covector.gradients.examples import IGNORED
from covector.types import Function, TokenReduction


@dataclass(frozen=True, slots=True)
class RowFunctions:
    """value: float32[rows], in the graph, what is differentiated. nll: float32[rows], detached, the row's mean negative
    log-likelihood a token."""

    value: torch.Tensor
    nll: torch.Tensor

    @property
    def trak_q(self) -> torch.Tensor:
        """float32[rows]: 1 - p, where p is the geometric mean of the probabilities of the row's own tokens."""
        return -torch.expm1(-self.nll)


def row_functions(
    logits: torch.Tensor, targets: torch.Tensor, function: Function, reduction: TokenReduction
) -> RowFunctions:
    """logits: float[rows, places, vocabulary], targets: int64[rows, places], -100 where nothing is predicted.

    "loss": -log p(token). "margin": z_y - logsumexp over the other tokens' logits, which is log p - log(1 - p).
    Each is averaged ("token_mean") or summed ("token_sum") over the row's predicted tokens.
    """
    wide = logits.float()
    counted = targets != IGNORED
    losses = functional.cross_entropy(wide.transpose(1, 2), targets, reduction="none", ignore_index=IGNORED)
    token_count = counted.sum(1)
    nll = losses.detach().sum(1) / token_count
    values = losses if function == "loss" else _margins(wide, targets, counted)
    value = values.sum(1)
    return RowFunctions(value / token_count if reduction == "token_mean" else value, nll)


def _margins(logits: torch.Tensor, targets: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Margins, float32[rows, places], 0 where nothing is predicted. The own token is left out of the sum before
    the logarithm is taken: exact also where p rounds to 1."""
    own = targets.masked_fill(~counted, 0)[:, :, None]
    others = logits.scatter(2, own, float("-inf")).logsumexp(2)
    return (logits.gather(2, own)[:, :, 0] - others).masked_fill(~counted, 0.0)
