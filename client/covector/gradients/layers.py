"""What each kind of layer contributes to the gradients of its own parameters, for each row of a batch.

A rule looks at one call of a layer (inputs and output) and returns a function that turns the gradient of the output
into contributions. That function hangs on the output as a hook, so it must not hold the output itself: the circle
would pass through the autograd graph, where no collector finds it, and the whole pass would stay in memory.
A layer that no rule knows is refused by ``rule_for``, never approximated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from covector.errors import InvalidInput
from covector.gradients.contributions import Contribution, Lookup, Outer, Target, Vector

Contributions = Iterator[tuple[Target, Contribution]]
Backward = Callable[[torch.Tensor], Contributions]


@dataclass(frozen=True, slots=True)
class Call:
    """The inputs and the output of one call of a layer. Not to be kept after the forward pass."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: torch.Tensor

    @property
    def input(self) -> torch.Tensor:
        """The layer's first input, detached."""
        value = self.args[0] if self.args else next(iter(self.kwargs.values()))
        return torch.as_tensor(value).detach()


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer in the pass of a batch of ``row_count`` rows of ``place_count`` places each.

    ``owned``: the targets among the layer's own parameters, by attribute.
    """

    name: str
    owned: Mapping[str, Target]
    row_count: int
    place_count: int

    def by_row(self, values: torch.Tensor) -> torch.Tensor:
        """``values``, [rows, ..., n] or [rows * places, n], as [rows, places, n].

        Raises InvalidInput where the rows cannot be told apart, as in a layer that sees a selection of tokens.
        """
        if self.row_count == 1 or (values.dim() > 2 and len(values) == self.row_count):
            return values.reshape(self.row_count, -1, values.shape[-1])
        if values.dim() == 2 and len(values) == self.row_count * self.place_count:
            return values.reshape(self.row_count, self.place_count, values.shape[-1])
        raise InvalidInput(
            f"layer {self.name} was given a tensor of shape {tuple(values.shape)}, in which {self.row_count} rows of "
            f"{self.place_count} tokens cannot be told apart; use batch_size=1, or leave its parameters out",
            layer=self.name,
        )


Rule = Callable[[Layer, Call], Backward]


def rule_for(module: nn.Module, name: str, owned: Mapping[str, Target]) -> Rule:
    """The rule of a layer. Raises InvalidInput naming the parameters that no rule covers."""
    if type(module).forward is nn.Linear.forward:
        return linear_rule
    if type(module).forward is Conv1D.forward:
        return conv1d_rule
    if _is_plain_embedding(module):
        return embedding_rule
    if _is_affine(module):
        return affine_rule
    raise InvalidInput(
        f"no rule for the per-row gradients of {', '.join(target.name for target in owned.values())} in "
        f"{type(module).__name__} ({name or 'the model itself'}); leave them out with parameters=[...] or a callable",
        parameter=next(iter(owned.values())).name,
    )


def linear_rule(layer: Layer, call: Call) -> Backward:
    """A linear layer, y = x W^T + b."""
    inputs = layer.by_row(call.input).float() if "weight" in layer.owned else None

    def backward(delta: torch.Tensor) -> Contributions:
        outputs = layer.by_row(delta).float()
        if inputs is not None:
            yield layer.owned["weight"], Outer(outputs, inputs)
        yield from _bias(layer, outputs)

    return backward


def conv1d_rule(layer: Layer, call: Call) -> Backward:
    """GPT-2's linear layer, y = x W + b: its weight is stored as [inputs, outputs]."""
    inputs = layer.by_row(call.input).float() if "weight" in layer.owned else None

    def backward(delta: torch.Tensor) -> Contributions:
        outputs = layer.by_row(delta).float()
        if inputs is not None:
            yield layer.owned["weight"], Outer(inputs, outputs)
        yield from _bias(layer, outputs)

    return backward


def embedding_rule(layer: Layer, call: Call) -> Backward:
    """An embedding, y = W[token]. The gradient of ``padding_idx`` is zero, as torch defines it."""
    tokens = call.input
    if tokens.shape[0] != layer.row_count:
        raise InvalidInput(
            f"layer {layer.name} was given one set of indices for all {layer.row_count} rows; "
            "use batch_size=1, or leave its parameters out",
            layer=layer.name,
        )
    lines = tokens.reshape(layer.row_count, -1)
    padding: int | None = getattr(call.module, "padding_idx", None)

    def backward(delta: torch.Tensor) -> Contributions:
        values = layer.by_row(delta).float()
        if padding is not None:
            values = values.masked_fill((lines == padding)[:, :, None], 0.0)
        yield layer.owned["weight"], Lookup(lines, values)

    return backward


def affine_rule(layer: Layer, call: Call) -> Backward:
    """Every kind of norm, y = x' w + b elementwise on the last axis, with x' whatever the layer makes of x.

    That x' is found by calling the layer with w = 1 and w = 0, so (1 + w) and epsilons need no knowledge of the layer.
    Raises InvalidInput if y is not of this form.
    """
    normed = _normed_input(layer, call) if "weight" in layer.owned else None

    def backward(delta: torch.Tensor) -> Contributions:
        if normed is not None:
            yield layer.owned["weight"], Vector(layer.by_row(delta.float() * normed).sum(1))
        yield from _bias(layer, layer.by_row(delta).float())

    return backward


def _bias(layer: Layer, outputs: torch.Tensor) -> Contributions:
    if "bias" in layer.owned:
        yield layer.owned["bias"], Vector(outputs.sum(1))


def _is_plain_embedding(module: nn.Module) -> bool:
    if not isinstance(module, nn.Embedding) or type(module).forward is not nn.Embedding.forward:
        return False
    return module.max_norm is None and not module.scale_grad_by_freq


def _is_affine(module: nn.Module) -> bool:
    """Whether a module may be a norm: no children, a vector ``weight`` and perhaps a ``bias`` like it."""
    own = dict(module.named_parameters(recurse=False))
    if not set(own) <= {"weight", "bias"} or "weight" not in own or next(module.children(), None) is not None:
        return False
    return all(value.dim() == 1 and value.shape == own["weight"].shape for value in own.values())


def _normed_input(layer: Layer, call: Call) -> torch.Tensor:
    """Finds x' of y = x' w + b: float32, of the shape of y."""
    with torch.no_grad():
        own = {name: value.detach() for name, value in call.module.named_parameters(recurse=False)}
        zeros = {name: torch.zeros_like(value) for name, value in own.items()}
        zero = _called_with(call, zeros)
        normed = _called_with(call, {**zeros, "weight": torch.ones_like(own["weight"])}) - zero
        bias = own.get("bias", zeros["weight"])
        if not _agree(zero + normed * own["weight"].float() + bias.float(), call.output.detach()):
            raise InvalidInput(
                f"{type(call.module).__name__} ({layer.name}) is not an elementwise scaling of its last axis, so there "
                f"is no rule for the per-row gradients of {layer.owned['weight'].name}; leave it out of parameters",
                parameter=layer.owned["weight"].name,
            )
    return normed


def _called_with(call: Call, parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The output that the layer would have had with other parameters, float32."""
    output: torch.Tensor = functional_call(call.module, dict(parameters), call.args, dict(call.kwargs))
    return output.float()


def _agree(found: torch.Tensor, output: torch.Tensor) -> bool:
    """Whether ``found`` is a layer's output up to rounding. Values that are not finite are reported further on."""
    if found.shape != output.shape:
        return False
    if not torch.isfinite(output).all():
        return True
    tolerance = 1e-4 if output.dtype in (torch.float32, torch.float64) else 3e-2
    return torch.allclose(found, output.float(), rtol=tolerance, atol=tolerance * float(output.abs().amax()))
