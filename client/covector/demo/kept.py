"""Frozen lower layers whose outputs are kept.

Adapters sit on a model's top layers only, so what the layers below put out for a row never changes: it is computed
once a row, and from then on training and gradients run the upper layers alone. The surgery is on the list of decoder
layers: ``KeptLayers`` takes the place of the first one and runs or remembers all the frozen ones, and the others of
them become ``PassedLayer``. The upper layers keep their numbers, hence every adapter its parameters' names, so that
saved adapters fit the untouched model.

A row is known by its tokens, padding left out. This is sound for a causal model in which a token's position is its
count from the row's start; calls that fill or read a key-value cache (generation) pass through and keep nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class PassedLayer(nn.Module):
    """Stands where a frozen layer was that ``KeptLayers`` runs: hands its input on."""

    def forward(self, hidden: torch.Tensor, **_: object) -> torch.Tensor:
        """``hidden`` itself."""
        return hidden


class KeptLayers(nn.Module):
    """The frozen lower layers of a decoder, in eval mode always; ``bytes_max`` bounds what is kept."""

    def __init__(self, layers: list[nn.Module], *, bytes_max: int = 1 << 30) -> None:
        super().__init__()
        self.frozen = nn.ModuleList(layers).requires_grad_(False).eval()
        self._bytes_max = bytes_max
        self._bytes = 0
        self._kept: dict[bytes, torch.Tensor] = {}
        self._ids: torch.Tensor | None = None
        self._mask: torch.Tensor | None = None

    @property
    def row_count(self) -> int:
        """How many rows' outputs are kept."""
        return len(self._kept)

    def train(self, mode: bool = True) -> KeptLayers:
        """Stays in eval mode: what is kept must be what a frozen model puts out."""
        return super().train(False)

    def see(self, ids: torch.Tensor | None, mask: torch.Tensor | None) -> None:
        """Takes note of the call under way: token ids int64[rows, tokens] and the mask of the same shape, or None."""
        self._ids = ids
        self._mask = mask if mask is None or mask.ndim == 2 else None

    def forward(self, hidden: torch.Tensor, *args: object, **kwargs: Any) -> torch.Tensor:
        """float[rows, tokens, width]: the output of the last frozen layer; zeros at padded tokens of kept rows."""
        ids, self._ids = self._ids, None
        if ids is None or ids.shape != hidden.shape[:2] or kwargs.get("past_key_values") is not None:
            return self._run(hidden, *args, **kwargs)
        real = torch.ones_like(ids, dtype=torch.bool) if self._mask is None else self._mask.bool()
        names = [ids[row, real[row]].cpu().numpy().tobytes() for row in range(len(ids))]
        if any(name not in self._kept for name in names):
            output = self._run(hidden, *args, **kwargs)
            self._keep(names, output, real)
            return output
        return self._recall(names, hidden, real)

    @torch.no_grad()
    def _run(self, hidden: torch.Tensor, *args: object, **kwargs: Any) -> torch.Tensor:
        for layer in self.frozen:
            output = layer(hidden, *args, **kwargs)
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden

    def _keep(self, names: list[bytes], output: torch.Tensor, real: torch.Tensor) -> None:
        for row, name in enumerate(names):
            if name not in self._kept and self._bytes < self._bytes_max:
                self._kept[name] = output[row, real[row]].clone()
                self._bytes += self._kept[name].nbytes

    def _recall(self, names: list[bytes], hidden: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        output = torch.zeros_like(hidden)
        for row, name in enumerate(names):
            output[row, real[row]] = self._kept[name].to(hidden.dtype)
        return output


def keep_lower_layers(model: nn.Module, count: int) -> KeptLayers | None:
    """Puts ``KeptLayers`` in the place of the first ``count`` decoder layers of ``model``, which is changed.

    None, and the model left as it is, if it is not built as Llama and its kin are (``model.model.layers``).
    """
    decoder = getattr(model, "model", None)
    layers = getattr(decoder, "layers", None)
    if not isinstance(decoder, nn.Module) or not isinstance(layers, nn.ModuleList) or not 0 < count < len(layers):
        return None
    kept = KeptLayers(list(layers[:count]))
    decoder.register_forward_pre_hook(
        lambda _module, args, kwargs: kept.see(kwargs.get("input_ids", args[0] if args else None),
                                               kwargs.get("attention_mask")),
        with_kwargs=True,
    )  # fmt: skip
    layers[0] = kept
    for position in range(1, count):
        layers[position] = PassedLayer()
    return kept
