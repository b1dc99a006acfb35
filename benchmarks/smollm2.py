"""A real language model whose truth is affordable: LoRA on SmolLM2-135M, real questions and answers, many retrainings.

Adapters sit on the top layers alone. What the frozen layers below put out is kept for each row, so that training runs
the top layers, and the head at the places where an answer's tokens are predicted. All models have one start; a seed
draws the order of the rows.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.real_gradients import corpus_rows
from peft import PeftModel
from torch import nn
from transformers.utils import logging as transformers_logging

from covector.demo import training
from covector.demo.model import load_model
from covector.gradients.functions import row_functions
from covector.types import Function

Float32 = npt.NDArray[np.float32]
Tokens = dict[str, Any]
Adapters = dict[str, torch.Tensor]

CATEGORIES = (
    "trivia", "literature", "movies", "science", "sports", "money", "food", "politics", "computers", "history", "humor",
)  # fmt: skip
TOKENS_MAX = 48
BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is trained: AdamW without decay, the learning rate falling to zero on a line."""

    rows: int = 300
    queries: int = 60
    epochs: int = 3
    batch_rows: int = 10
    learning_rate: float = 3e-3
    rank: int = 8
    top_layers: int = 4
    start: int = 0  # seed of the adapters' start


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its answer, and the corpus it is from."""

    prompt: str
    response: str
    source: str

    @property
    def text(self) -> str:
        """As people read it, for searches that go by words."""
        return self.prompt.removeprefix("Question: ").removesuffix("\nAnswer:") + self.response


@dataclass(frozen=True, slots=True)
class State:
    """Adapters, and Adam's moments of them, by the names of the parameters, after some epoch."""

    adapters: Adapters
    first: Adapters
    second: Adapters


def questions(recipe: Recipe, tokenizer: Any) -> tuple[list[Question], list[Question]]:
    """Rows to train on and unseen queries, each question once, in a fixed order."""
    found: dict[str, Question] = {}
    for row in corpus_rows():
        question = Question(row["prompt"], row["response"], row["source"].split()[-1])
        short = len(encoded(tokenizer, question)["input_ids"]) <= TOKENS_MAX
        if question.source in CATEGORIES and short:
            found.setdefault(re.sub(r"\W+", " ", question.prompt).lower(), question)
    order = list(found.values())
    random.Random(0).shuffle(order)
    return order[: recipe.rows], order[recipe.rows : recipe.rows + recipe.queries]


def encoded(tokenizer: Any, question: Question) -> Tokens:
    """Tokens, and labels on the answer and its end: for the training here and for ``GradientModel``."""
    opening, closing = (
        tokenizer(part, add_special_tokens=False)["input_ids"] for part in (question.prompt, question.response)
    )
    closing.append(tokenizer.eos_token_id)
    return {"input_ids": opening + closing, "labels": [training.IGNORED] * len(opening) + closing}


@dataclass(frozen=True, slots=True)
class Entry:
    """A row where it enters the first layer with adapters. hidden: float32[tokens, width]; targets: int64[tokens],
    what each place is to predict, or -100."""

    hidden: torch.Tensor
    targets: torch.Tensor


class Learner:
    """A model built as Llama is, with adapters that are trained from one start again and again. ``base`` is changed;
    ``work``: a directory that keeps what its frozen layers put out."""

    def __init__(self, recipe: Recipe, base: nn.Module, tokenizer: Any, work: Path) -> None:
        self.recipe, self.tokenizer = recipe, tokenizer
        self.rows, self.queries = questions(recipe, self.tokenizer)
        self.row_tokens, self.query_tokens = (
            [encoded(self.tokenizer, question) for question in part] for part in (self.rows, self.queries)
        )
        torch.manual_seed(recipe.start)
        self.model: PeftModel = training.adapt(base, training.Recipe(rank=recipe.rank, top_layers=recipe.top_layers))
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self._causal = cast("Any", self.model.get_base_model())
        self._top: Any = cast("Any", self._causal.model).layers[-recipe.top_layers :]
        self._start = copied(self.parameters)
        self.row_entries, self.query_entries = self._entries(work / "entries.pt")

    @staticmethod
    def of_smollm2(recipe: Recipe, work: Path) -> Learner:
        """SmolLM2-135M-Instruct, unpacked into ``work``."""
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        return Learner(recipe, *load_model(None, work / "model"), work)

    def _entries(self, path: Path) -> tuple[list[Entry], list[Entry]]:
        """Of rows and queries, kept in a file."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, [asdict(self._entry(tokens)) for tokens in self.row_tokens + self.query_tokens])
        entries = [Entry(**kept) for kept in torch.load(path)]
        return entries[: len(self.rows)], entries[len(self.rows) :]

    @torch.no_grad()
    def _entry(self, tokens: Tokens) -> Entry:
        found: list[torch.Tensor] = []
        handle = self._top[0].register_forward_pre_hook(lambda _layer, given: found.append(given[0][0].clone()))
        self.model(input_ids=torch.tensor([tokens["input_ids"]]), use_cache=False, logits_to_keep=1)
        handle.remove()
        return Entry(found[0], torch.tensor([*tokens["labels"][1:], training.IGNORED]))

    def restore(self, adapters: Adapters) -> None:
        """Puts adapters into the model."""
        with torch.no_grad():
            for name, value in adapters.items():
                self.parameters[name].copy_(value)

    def train(
        self, members: Sequence[int], seed: int, each_epoch: Callable[[torch.optim.Optimizer], None] | None = None
    ) -> float:
        """Trains from the start on these rows; ``each_epoch`` is called after each epoch. Returns the last one's mean
        loss. A last batch that is not full is left out: its rows wait for another epoch's order."""
        recipe, rng = self.recipe, np.random.default_rng([seed, 1])
        self.restore(self._start)
        optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=recipe.learning_rate, betas=BETAS, eps=EPSILON, weight_decay=0.0
        )
        batch_count = len(members) // recipe.batch_rows
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: max(1 - step / (recipe.epochs * batch_count), 0.0)
        )
        losses: list[float] = []
        for _ in range(recipe.epochs):
            for batch in rng.permutation(members)[: batch_count * recipe.batch_rows].reshape(batch_count, -1):
                loss = self.functions([self.row_entries[row] for row in batch], "loss")[0].mean()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                losses.append(float(loss.detach()))
            if each_epoch is not None:
                each_epoch(optimizer)
        return float(np.mean(losses[-batch_count:]))

    def functions(self, entries: Sequence[Entry], function: Function) -> tuple[torch.Tensor, torch.Tensor]:
        """The function and the loss of rows, each its mean over the row's answer: float32[rows]. The rows run as one
        sequence without padding, in which each sees itself alone."""
        hidden, owner = self._last_hidden(entries)
        targets = torch.cat([entry.targets for entry in entries])
        told = targets != training.IGNORED
        logits = self._causal.lm_head(hidden[told])
        by_token = row_functions(logits[:, None], targets[told][:, None], function, "token_mean")
        value, nll = (row_means(found, owner[told], len(entries)) for found in (by_token.value, by_token.nll))
        return value, nll

    def _last_hidden(self, entries: Sequence[Entry]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the head gets, float32[tokens, width], and the row of each token, int64[tokens]."""
        hidden = torch.cat([entry.hidden for entry in entries])[None]
        lengths = torch.tensor([len(entry.targets) for entry in entries])
        owner = torch.arange(len(entries)).repeat_interleave(lengths)
        places = torch.cat([torch.arange(length) for length in lengths])[None]
        seen = (owner[:, None] == owner) & torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
        rotary = self._causal.model.rotary_emb(hidden, places)
        for layer in self._top:
            hidden = layer(hidden, attention_mask=seen[None, None], position_ids=places, position_embeddings=rotary)
        return self._causal.model.norm(hidden[0]), owner

    @torch.no_grad()
    def embeddings(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The mean of the last hidden states over the tokens of each row, and of each query, before any training."""
        self.restore(self._start)
        rows, queries = (
            torch.cat([self._last_hidden([entry])[0].mean(dim=0, keepdim=True) for entry in entries])
            for entries in (self.row_entries, self.query_entries)
        )
        return rows.double().numpy(), queries.double().numpy()

    @torch.no_grad()
    def outputs(self) -> Float32:
        """Minus the loss and the margin of the queries: float32[2, queries]."""
        margin, nll = self.functions(self.query_entries, "margin")
        return torch.stack([-nll, margin]).numpy()

    def state(self, optimizer: torch.optim.Optimizer) -> State:
        """What is trained, as it is now."""
        first, second = (
            {name: optimizer.state[p][moment].clone() for name, p in self.parameters.items()}
            for moment in ("exp_avg", "exp_avg_sq")
        )
        return State(copied(self.parameters), first, second)


def row_means(values: torch.Tensor, owner: torch.Tensor, row_count: int) -> torch.Tensor:
    """The mean of the values that each row owns. values: float32[n]; owner: int64[n], the row of each."""
    total = torch.zeros(row_count).index_add(0, owner, values)
    return total / torch.bincount(owner, minlength=row_count)


def copied(parameters: Mapping[str, torch.Tensor]) -> Adapters:
    """Parameters by name, of their own."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def write_whole(path: Path, kept: Any) -> None:
    """Writes a file by ``torch.save`` that is there whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    torch.save(kept, unfinished)
    unfinished.rename(path)
