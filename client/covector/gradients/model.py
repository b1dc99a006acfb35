"""``GradientModel``: a causal language model that answers with one gradient an example."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from covector.errors import InvalidInput
from covector.gradients.batching import Batcher
from covector.gradients.capture import Capture, quiet, refuse_reentrant_checkpointing
from covector.gradients.collecting import GradientWriter, collect_rows
from covector.gradients.contributions import Projector
from covector.gradients.digest import WeightsDigest
from covector.gradients.examples import IGNORED, Batch, Encoder, Example, Template, TokenRow, pad
from covector.gradients.functions import row_functions
from covector.gradients.selection import Parameters, base_model, named_parameters, plain_model, select
from covector.gradients.sketch import CountSketch
from covector.gradients.whole import Whole
from covector.types import Function, GradientKind, Gradients, Key, Parameter, Space, TokenReduction


@dataclass(frozen=True, slots=True)
class RowAnswers:
    """What a pass over some rows says. values: float32[rows, dim]; nll (mean negative log-likelihood a token) and
    trak_q: float32[rows]."""

    values: npt.NDArray[np.float32]
    nll: npt.NDArray[np.float32]
    trak_q: npt.NDArray[np.float32]


class GradientModel:
    """Per-example gradients of a transformers (or PEFT) causal language model.

    model: any causal language model whose chosen parameters belong to linear, Conv1D, embedding or norm layers (LoRA's
    A and B are linear layers); it is not changed: mode, ``requires_grad`` and ``.grad`` are as before after each call.
    projection: ``CountSketch``, ``Kronecker``, or None for the gradient itself.
    parameters: "trainable", "all", names or shell patterns, or a callable of (name, parameter); fixed at construction.
    output: "loss", or "margin" (TRAK's), which also gives ``trak_q``. Each is the row's own, over its own tokens.
    max_length: tokens of a row that count. template: "plain" or "chat"; see ``examples``.
    batch_size, batch_tokens: the most rows and padded tokens at once; they never change the answer.
    Raises InvalidInput for a parameter that no rule covers, and for reentrant gradient checkpointing.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        projection: Projector | None = CountSketch(dim=4096, seed=0),  # noqa: B008  (frozen)
        parameters: Parameters = "trainable",
        output: Function = "loss",
        reduction: TokenReduction = "token_mean",
        max_length: int = 512,
        template: Template = "plain",
        batch_size: int = 32,
        batch_tokens: int = 2048,
    ) -> None:
        _check_choices(output=output, reduction=reduction, template=template)
        _check_counts(max_length=max_length, batch_size=batch_size, batch_tokens=batch_tokens)
        self.model = plain_model(model)
        self.tokenizer = tokenizer
        self.kind = GradientKind(function=output, reduction=reduction, correction="none")
        self._function, self._reduction = output, reduction
        self._call = _CallStyle.of(self.model, tokenizer)
        self._targets = select(self.model, parameters)
        self._capture = Capture(self.model, self._targets)
        projector = Whole() if projection is None else projection
        self._plan = projector.plan(self._targets)
        self._batcher = Batcher(rows_max=batch_size, tokens_max=batch_tokens)
        self._encoder = Encoder(tokenizer, max_length=max_length, template=template)
        self._digest = WeightsDigest()
        self.space = Space(
            dim=self._plan.dim,
            architecture=type(base_model(self.model)).__name__,
            parameters=tuple(Parameter(target.name, target.shape) for target in self._targets),
            projection=projector.describe(self._plan),
            blocks=self._plan.blocks,
        )
        refuse_reentrant_checkpointing(self.model)

    def gradients(self, examples: Iterable[Example]) -> Gradients:
        """The gradients of examples, in their order: float32[n, dim] that know space, kind and weights.

        Raises InvalidInput naming the row of an example that cannot be read or whose gradient is not finite.
        """
        if isinstance(examples, str | Mapping):
            raise InvalidInput(f"examples is a list of dicts, not {type(examples).__name__}; put it in a list")
        rows = [self.encode(example, index) for index, example in enumerate(examples)]
        values = np.zeros((len(rows), self.space.dim), np.float32)
        trak_q = np.zeros(len(rows), np.float32)
        for batch in self._batcher.batches(rows):
            answers = self.answer([rows[index] for index in batch], batch)
            values[batch], trak_q[batch] = answers.values, answers.trak_q
        return self.wrap(values, trak_q, self.weights_digest())

    def collect(
        self,
        examples: Iterable[Example],
        writer: GradientWriter,
        *,
        keys: Sequence[Key] | None = None,
        progress: bool = True,
    ) -> int:
        """Computes the gradients that the writer's checkpoint does not have yet, and adds them with their texts.

        keys: one an example; default: the positions 0, 1, 2, ... ``example["metadata"]`` goes along where given.
        Returns the number of rows added; running it again after a crash goes on where the acknowledgements ended.
        """
        return collect_rows(self, examples, writer, keys=keys, progress=progress).row_count

    def weights_digest(self) -> str:
        """Hex SHA-256 of all weights as they are now. Frozen ones are hashed once."""
        return self._digest.hex(named_parameters(self.model))

    def encode(self, example: Example, row: object) -> TokenRow:
        """The tokens of an example; ``row`` is its name in errors."""
        return self._encoder.encode(example, row)

    def batches(self, rows: Sequence[TokenRow]) -> Iterable[list[int]]:
        """Positions of the rows that go together, batch by batch."""
        return self._batcher.batches(rows)

    def wrap(self, values: npt.NDArray[np.float32], trak_q: npt.NDArray[np.float32], digest: str) -> Gradients:
        """``values`` as gradients of this model at the weights of ``digest``."""
        return Gradients(values, self.space, self.kind, digest, trak_q if self._function == "margin" else None)

    def answer(self, rows: Sequence[TokenRow], names: Sequence[object]) -> RowAnswers:
        """One batch of rows through the model. Raises InvalidInput with the name of a row that is not finite."""
        refuse_reentrant_checkpointing(self.model)
        parts = self._batcher.run(rows, self._differentiate)
        answers = RowAnswers(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        bad = np.flatnonzero(~np.isfinite(answers.values).all(axis=1))
        if len(bad):
            raise InvalidInput(
                f"the gradient of row {names[bad[0]]} holds NaN or infinity (loss {answers.nll[bad[0]]:.4g}); "
                "check the weights, or compute in float32 or bfloat16",
                row=names[bad[0]],
            )
        return answers

    def _differentiate(self, rows: Sequence[TokenRow]) -> tuple[npt.NDArray[np.float32], ...]:
        device = self._call.device(self.model)
        batch = pad(rows, side=self._call.side, pad_token=self._call.pad_token, device=device)
        total = self._plan.start(len(rows), device)
        with quiet(self.model):
            shape = (len(rows), batch.tokens.shape[1])
            with self._capture.forward(shape, lambda target, found: self._plan.add(total, target, found)):
                logits, targets = self._call.logits(self.model, batch)
            found = row_functions(logits, targets, self._function, self._reduction)
            found.value.sum().backward()  # type: ignore[no-untyped-call]
        columns = (self._plan.finish(total), found.nll, found.trak_q)
        return tuple(column.detach().cpu().numpy() for column in columns)


@dataclass(frozen=True, slots=True)
class _CallStyle:
    """How a model wants to be called: the side of its padding and the optional arguments that it knows."""

    side: str
    pad_token: int
    takes_positions: bool
    takes_cache: bool
    takes_kept: bool

    @staticmethod
    def of(model: nn.Module, tokenizer: Any) -> _CallStyle:
        base = base_model(model)
        config = getattr(base, "config", None)
        if getattr(config, "is_encoder_decoder", False):
            raise InvalidInput(f"{type(base).__name__} is an encoder-decoder; gradients are of causal language models")
        known = inspect.signature(base.forward).parameters
        takes_positions = "position_ids" in known
        kept = known.get("logits_to_keep")
        return _CallStyle(
            side=getattr(tokenizer, "padding_side", "right") if takes_positions else "right",
            pad_token=tokenizer.pad_token_id or 0,
            takes_positions=takes_positions,
            takes_cache="use_cache" in known,
            takes_kept=kept is not None and "Tensor" in str(kept.annotation),
        )

    def device(self, model: nn.Module) -> torch.device:
        """Where the tokens go."""
        return next(model.parameters()).device

    def logits(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits of the places at which some row predicts, and the targets there."""
        arguments: dict[str, Any] = {"input_ids": batch.tokens, "attention_mask": batch.mask}
        targets = batch.targets
        if self.takes_positions:
            arguments["position_ids"] = batch.positions
        if self.takes_cache:
            arguments["use_cache"] = False
        if self.takes_kept:
            arguments["logits_to_keep"] = (targets != IGNORED).any(0).nonzero()[:, 0]
            targets = targets[:, arguments["logits_to_keep"]]
        logits = model(**arguments).logits
        if logits.shape[:2] != targets.shape:
            raise InvalidInput(
                f"{type(model).__name__} answered {tuple(targets.shape)} places with logits of shape "
                f"{tuple(logits.shape)}; models that add virtual tokens (prompt or prefix tuning) are not supported"
            )
        return logits, targets


def _check_choices(**choices: str) -> None:
    for name, allowed in (("output", Function), ("reduction", TokenReduction), ("template", Template)):
        if choices[name] not in get_args(allowed):
            raise InvalidInput(f"{name} must be one of {', '.join(get_args(allowed))}, not {choices[name]!r}")


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidInput(f"{name} must be an integer of at least 1, not {value!r}")
