"""The obvious twin: one forward and one backward a row, no padding, no hooks, plain autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from covector.gradients.examples import TokenRow


def row_value(model: nn.Module, row: TokenRow, function: str, reduction: str) -> torch.Tensor:
    """The function of one row, token after token."""
    logits = model(input_ids=torch.tensor([row.tokens])).logits[0]
    values = []
    for place, label in enumerate(row.labels[1:]):
        if label == -100:
            continue
        logit = logits[place].double()
        if function == "loss":
            values.append(-torch.log_softmax(logit, 0)[label])
        else:
            others = torch.cat([logit[:label], logit[label + 1 :]])
            values.append(logit[label] - torch.logsumexp(others, 0))
    total = torch.stack(values).sum()
    return total / len(values) if reduction == "token_mean" else total


def loop_gradients(
    model: nn.Module,
    rows: Sequence[TokenRow],
    parameters: Sequence[nn.Parameter],
    *,
    function: str = "loss",
    reduction: str = "token_mean",
) -> torch.Tensor:
    """float32[rows, all coordinates]: the gradients of ``parameters``, flattened and joined in their order."""
    was_training = model.training
    model.eval()
    found = []
    for row in rows:
        value = row_value(model, row, function, reduction)
        parts = torch.autograd.grad(value, list(parameters), allow_unused=True)
        pairs = zip(parts, parameters, strict=True)
        found.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs]))
    model.train(was_training)
    return torch.stack(found)


def worst_relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest distance of a row from its twin, relative to the twin's norm."""
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())
