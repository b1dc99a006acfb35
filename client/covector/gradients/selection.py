"""Which parameters are differentiated, and the names under which their gradients are known."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from typing import Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

from covector.errors import InvalidInput, near_matches
from covector.gradients.contributions import Target

Parameters = Literal["trainable", "all"] | Sequence[str] | Callable[[str, nn.Parameter], bool]


def plain_model(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of torch.compile and of data parallelism."""
    while True:
        inner = getattr(model, "_orig_mod", None) or (
            model.module if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel) else None
        )
        if inner is None:
            return model
        model = inner


def base_model(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT model, or the model itself."""
    unwrap = getattr(model, "get_base_model", None)
    base = unwrap() if callable(unwrap) else model
    assert isinstance(base, nn.Module)
    return base


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter once, in the model's order, by its stable name: without the name of a PEFT adapter, so that
    an adapter loaded under another name is the same space."""
    raw = dict(model.named_parameters())
    adapters = set(getattr(model, "peft_config", None) or ())
    short = [_without_adapter(name, adapters) for name in raw]
    names = short if len(set(short)) == len(short) else list(raw)
    return dict(zip(names, raw.values(), strict=True))


def select(model: nn.Module, parameters: Parameters) -> tuple[Target, ...]:
    """The targets that ``parameters`` chooses, in the model's order.

    "trainable": those with ``requires_grad``; "all"; names or shell patterns (each must match something); or a callable
    of (name, parameter). Raises InvalidInput if nothing is chosen.
    """
    named = named_parameters(model)
    wanted = _chosen(named, parameters)
    if not wanted:
        raise InvalidInput(
            f"parameters={parameters!r} chooses none of the model's {len(named)} parameters; "
            'unfreeze some, attach adapters, or give "all" or names'
        )
    for name in wanted:
        if not named[name].is_floating_point():
            raise InvalidInput(f"parameter {name} is {named[name].dtype}: quantised weights have no gradient")
    stored_transposed = {id(m.weight) for m in model.modules() if isinstance(m, Conv1D)}
    return tuple(Target(n, p, id(p) in stored_transposed) for n, p in named.items() if n in wanted)


def _chosen(named: dict[str, nn.Parameter], parameters: Parameters) -> set[str]:
    if callable(parameters):
        return {name for name, parameter in named.items() if parameters(name, parameter)}
    if parameters == "all":
        return set(named)
    if parameters == "trainable":
        return {name for name, parameter in named.items() if parameter.requires_grad}
    if isinstance(parameters, str):
        raise InvalidInput(f'parameters must be "trainable", "all", a list of names or a callable, not {parameters!r}')
    return set().union(*(_matching(named, pattern) for pattern in parameters))


def _matching(named: dict[str, nn.Parameter], pattern: str) -> set[str]:
    found = {name for name in named if fnmatch.fnmatchcase(name, pattern)}
    if not found:
        raise InvalidInput(f"no parameter matches {pattern!r}; {near_matches(pattern, named)}", parameter=pattern)
    return found


def _without_adapter(name: str, adapters: set[str]) -> str:
    parts = name.split(".")
    behind = ["", *parts]
    kept = [
        part for part, before in zip(parts, behind, strict=False) if not (part in adapters and _holds_adapters(before))
    ]
    return ".".join(kept)


def _holds_adapters(part: str) -> bool:
    return part.startswith("lora_") or part == "modules_to_save"
