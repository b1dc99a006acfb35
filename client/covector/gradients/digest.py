"""A digest of a model's weights, which names a training state."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn


class WeightsDigest:
    """Hashes the weights of one model again and again, its frozen ones only once."""

    def __init__(self) -> None:
        self._frozen: dict[str, tuple[tuple[int, int], bytes]] = {}

    def hex(self, named: Mapping[str, nn.Parameter]) -> str:
        """Lower-case hex SHA-256 over name, dtype, shape and bytes of every parameter.

        A frozen parameter is hashed again when it was replaced or changed in place (torch counts those changes; one
        made through ``.data`` is not seen).
        """
        total = hashlib.sha256()
        for name, parameter in named.items():
            total.update(self._digest(name, parameter))
        return total.hexdigest()

    def _digest(self, name: str, parameter: nn.Parameter) -> bytes:
        state = (parameter.data_ptr(), parameter._version)
        known = self._frozen.get(name)
        if known is not None and not parameter.requires_grad and known[0] == state:
            return known[1]
        found = _digest_of(name, parameter)
        if not parameter.requires_grad:
            self._frozen[name] = (state, found)
        return found


def _digest_of(name: str, parameter: nn.Parameter) -> bytes:
    header = f"{name}\0{parameter.dtype}\0{tuple(parameter.shape)}\0".encode()
    data = parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    digest = hashlib.sha256(header)
    digest.update(data.data)
    return digest.digest()
