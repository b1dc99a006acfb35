"""One batched forward and backward that hands over each layer's contributions as they arise.

Only layers that own a target are hooked. All parameters are frozen meanwhile, so torch computes no gradient of a weight
and touches no ``.grad``; the graph starts at the first hooked layer, and what lies below costs a forward pass only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from covector.errors import InvalidInput
from covector.gradients.contributions import Contribution, Target
from covector.gradients.layers import Call, Layer, Rule, rule_for

Sink = Callable[[Target, Contribution], None]


class Capture:
    """Knows the layers of a model that own targets. Raises InvalidInput if a target has no layer with a rule."""

    def __init__(self, model: nn.Module, targets: Sequence[Target]) -> None:
        by_id = {id(target.parameter): target for target in targets}
        self._watched: list[tuple[nn.Module, str, dict[str, Target], Rule]] = []
        for name, module in model.named_modules():
            own = module.named_parameters(recurse=False, remove_duplicate=False)
            owned = {attribute: by_id[id(value)] for attribute, value in own if id(value) in by_id}
            if owned:
                self._watched.append((module, name, owned, rule_for(module, name, owned)))
        self._listening = False
        self._calls = 0

    @contextmanager
    def forward(self, shape: tuple[int, int], sink: Sink) -> Iterator[None]:
        """Within the block a forward pass is recorded; its backward pass, inside or after, feeds ``sink``.

        shape: rows and places of the batch.
        Raises InvalidInput at the end if the pass went through none of the layers (merged or disabled adapters).
        """
        self._calls = 0
        with ExitStack() as stack:
            for module, name, owned, rule in self._watched:
                hook = self._hook(name, owned, rule, shape, sink)
                handle = module.register_forward_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            self._listening = True
            try:
                yield
            finally:
                self._listening = False
        if not self._calls:
            raise InvalidInput(
                "the forward pass went through none of the layers whose parameters were chosen: "
                "adapters may be merged or disabled; unmerge them, or choose other parameters"
            )

    def _hook(
        self, name: str, owned: Mapping[str, Target], rule: Rule, shape: tuple[int, int], sink: Sink
    ) -> Callable[..., torch.Tensor | None]:
        def on_forward(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor
        ) -> torch.Tensor | None:
            if not self._listening:
                return None
            self._listening = False
            try:
                backward = rule(Layer(name, owned, *shape), Call(module, args, kwargs, output))
            finally:
                self._listening = True
            self._calls += 1
            output = _in_graph(output)
            output.register_hook(lambda delta: _feed(sink, backward(delta)))  # type: ignore[no-untyped-call]
            return output

        return on_forward


def _feed(sink: Sink, contributions: Iterator[tuple[Target, Contribution]]) -> None:
    with torch.no_grad():
        for target, contribution in contributions:
            sink(target, contribution)


def _in_graph(output: torch.Tensor) -> torch.Tensor:
    """``output`` as part of a graph that backward passes through; not a leaf, which must not be changed in place."""
    if output.requires_grad:
        return output
    return output + torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """The model in eval mode with every parameter frozen and gradients on; all as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


def refuse_reentrant_checkpointing(model: nn.Module) -> None:
    """Raises InvalidInput if the model recomputes activations by torch's reentrant checkpointing, which hides the
    layers' outputs from hooks. The non-reentrant kind is exact."""
    for name, module in model.named_modules():
        function = getattr(module, "_gradient_checkpointing_func", None)
        if function is None or not getattr(module, "gradient_checkpointing", False):
            continue
        if getattr(function, "keywords", {}).get("use_reentrant", True):
            raise InvalidInput(
                f"{name or 'the model'} uses reentrant gradient checkpointing, which hides per-row gradients; turn it "
                "off, or enable it with use_reentrant=False"
            )
