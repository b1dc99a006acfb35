"""Gradients at chosen moments of a training run, pushed as checkpoints while the Trainer trains."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from covector.errors import InvalidInput
from covector.gradients.collecting import GradientWriter, collect_rows
from covector.gradients.examples import Example
from covector.gradients.model import GradientModel
from covector.gradients.selection import plain_model
from covector.types import Key

MEMORISED_LOSS = 0.2
"""Below this mean loss a token the rows are memorised, and their gradients say little about what taught what."""

_log = logging.getLogger("covector.gradients")
_MOMENT = re.compile(r"end|(epoch|step)-[1-9][0-9]*")

OnConflict = Literal["error", "ignore", "replace"]
Moments = str | Iterable[int | str] | Callable[[TrainerState], bool]


class WritableCollection(Protocol):
    """What the callback needs of a collection."""

    def writer(
        self, checkpoint: str, *, eta: float = 1.0, on_conflict: OnConflict = "error", progress: bool = False
    ) -> AbstractContextManager[GradientWriter]:
        """Opens a writer of one checkpoint."""


class GradientCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """A transformers TrainerCallback that collects the rows' gradients and pushes them as a new checkpoint.

    collection: where to push; its space must be ``gradient_model.space``.
    gradient_model: built on the very model that is trained.
    examples, keys: the training rows, as for ``GradientModel.collect``.
    at: "epoch" (after each); or moments, which are also the checkpoints' names: "epoch-1", "step-200", "end", or the
    number of a step; or a callable of the TrainerState, asked after each step.
    eta of a checkpoint is the learning rate of the last optimiser step before it (TracIn's weight).
    The training itself is not changed: no random number is drawn, mode and gradients are put back.
    ``losses`` tells the mean loss a token of the rows at each checkpoint; a memorised one is warned about.
    """

    def __init__(
        self,
        collection: WritableCollection,
        gradient_model: GradientModel,
        *,
        examples: Sequence[Example],
        keys: Sequence[Key] | None = None,
        at: Moments = "epoch",
        progress: bool = True,
    ) -> None:
        self._collection = collection
        self._gradient_model = gradient_model
        self._examples = examples
        self._keys = keys
        self._wanted = _moments(at)
        self._progress = progress
        self._learning_rate = 0.0
        self.losses: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model = kwargs.get("model")
        if model is not None and plain_model(model) is not self._gradient_model.model:
            raise InvalidInput("the GradientModel was built on another model than the one that is trained")

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Notes the rate before the scheduler moves on: after the last step of a linear schedule it would be 0."""
        optimizer = kwargs.get("optimizer")
        if optimizer is not None:
            self._learning_rate = float(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._at_moment(f"step-{state.global_step}", state, asked=True)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._at_moment(f"epoch-{round(state.epoch or 0)}", state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._at_moment("end", state)

    def _at_moment(self, name: str, state: TrainerState, *, asked: bool = False) -> None:
        wanted = self._wanted
        due = (asked and wanted(state)) if callable(wanted) else name in wanted or _matches_all(name, wanted)
        if due and state.is_world_process_zero:
            self._push(name)

    def _push(self, checkpoint: str) -> None:
        opened = self._collection.writer(checkpoint, eta=self._learning_rate, on_conflict="ignore")
        with opened as writer:
            report = collect_rows(
                self._gradient_model, self._examples, writer, keys=self._keys, progress=self._progress
            )
        self.losses[checkpoint] = report.loss
        if report.loss < MEMORISED_LOSS:
            _log.warning(
                "checkpoint %s: the mean loss of its rows is %.3f; they are memorised, and the gradients of memorised "
                "rows mislead: ask earlier checkpoints",
                checkpoint,
                report.loss,
            )


def _matches_all(name: str, wanted: frozenset[str]) -> bool:
    return name.startswith("epoch-") and "epoch" in wanted


def _moments(at: Moments) -> frozenset[str] | Callable[[TrainerState], bool]:
    """The names of moments, or the callable. Raises InvalidInput for what is no moment."""
    if callable(at):
        return at
    names = [f"step-{item}" if isinstance(item, int) else item for item in ([at] if isinstance(at, str) else at)]
    for name in names:
        if name != "epoch" and not (isinstance(name, str) and _MOMENT.fullmatch(name)):
            raise InvalidInput(
                f'at: {name!r} is no moment; say "epoch", "epoch-1", "step-200", "end" or a step\'s number'
            )
    if not names:
        raise InvalidInput('at names no moment; say "epoch", "epoch-1", "step-200", "end" or a step\'s number')
    return frozenset(names)
